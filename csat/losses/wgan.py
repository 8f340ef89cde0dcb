"""Adversarial distillation: the three terms of WGAN-GP, where a critic tells the teacher's predictions from the student's.

Gulrajani et al. 2017, "Improved training of Wasserstein GANs", as CoCo DistillNet uses it (Zou & Sun 2021, arXiv 2108.12173):
`L_D = -E[D(T)] + E[D(S)] + 10 GP` for the critic, `L_G = -E[D(S)]` for the student. A critic of patches gives several scores
for a tile; D is their mean (decided here: the penalty then bounds the slope of the number that the other two terms use).
"""

from collections.abc import Callable

import torch
from torch import Tensor

PENALTY_WEIGHT = 10.0  # of GP in L_D, as in the paper of WGAN-GP


def critic_loss(student_scores: Tensor, teacher_scores: Tensor) -> Tensor:
    """`D(S) - D(T)`: what the critic lowers, and minus its estimate of the distance between the two.

    Args:
        student_scores: `[B, ...]`, of the student's predictions.
        teacher_scores: the same shape, of the teacher's. Both carry gradients, to the critic.

    Returns:
        float32 `[B]`; zero at agreement, and negative for a critic that can tell them apart.

    Raises:
        ValueError: the shapes differ.
    """
    if student_scores.shape != teacher_scores.shape:
        raise ValueError(
            f"critic_loss: scores of the student {list(student_scores.shape)} and of the teacher "
            f"{list(teacher_scores.shape)} must be of one shape [B, ...]"
        )
    return _per_tile(student_scores) - _per_tile(teacher_scores)


def adversarial_loss(student_scores: Tensor) -> Tensor:
    """`-D(S)`: what the student lowers.

    Args:
        student_scores: `[B, ...]`, of predictions that carry gradients to the student.

    Returns:
        float32 `[B]`, of either sign.
    """
    return -_per_tile(student_scores)


def gradient_penalty(
    critic: Callable[[Tensor, Tensor], Tensor], images: Tensor, student: Tensor, teacher: Tensor, share: Tensor
) -> Tensor:
    """`(||grad D||_2 - 1)^2` at (image, `share * teacher + (1 - share) * student`), per tile.

    The slope is taken in both inputs together, as CoCo DistillNet's code takes it: the critic is conditional, and its scores
    may not change faster with the image either.

    Args:
        critic: Images and predictions → scores `[B, ...]`; a tile's scores must depend on that tile only (no batch norm).
        images: `[B, 3, H, W]`, what both predictions are of.
        student: Predictions `[B, C, H, W]`; detached.
        teacher: the same shape; detached.
        share: `[B]` in [0, 1], drawn uniformly for each tile.

    Returns:
        float32 `[B]`, with gradients to the critic's parameters (second derivatives).

    Raises:
        ValueError: the shapes do not fit each other.
    """
    if student.shape != teacher.shape or share.shape != student.shape[:1]:
        raise ValueError(
            f"gradient_penalty: student {list(student.shape)} and teacher {list(teacher.shape)} must be of one shape, with "
            f"one share per tile, not {list(share.shape)}"
        )
    share = share.float().view(-1, *[1] * (student.ndim - 1))
    between = torch.lerp(student.detach().float(), teacher.detach().float(), share).requires_grad_()
    images = images.detach().float().requires_grad_()
    # Also where no graph is kept otherwise; and in float32: slopes of slopes would lose the few digits of half precision.
    with torch.enable_grad(), torch.autocast(between.device.type, enabled=False):
        scores = _per_tile(critic(images, between))
        slopes = torch.autograd.grad(scores.sum(), (images, between), create_graph=True)
    slope = torch.cat([each.flatten(1) for each in slopes], 1)
    return (torch.linalg.vector_norm(slope, dim=1) - 1).square()


def _per_tile(scores: Tensor) -> Tensor:
    return scores.float().flatten(1).mean(1) if scores.ndim > 1 else scores.float()
