"""Losses for a distribution over channels, per cell or per tile: nucleus types, classes."""

import torch
import torch.nn.functional as F
from torch import Tensor

from csat.losses.pairs import check_pair

TINY = 1e-12


def distribution_kl(student_logits: Tensor, teacher_probs: Tensor, temperature: float = 1.0) -> Tensor:
    """`T^2 KL(teacher || student)` over the channels, both softened by T.

    Hinton et al. 2015, "Distilling the knowledge in a neural network", section 2; the factor T^2 keeps the size of the
    gradient when T changes. The student's logits are divided by T; a probability has no logits left, but
    `softmax(z / T)` is `softmax(z)^(1/T)` renormalised, which is what the teacher's become. A cell in which the teacher gave
    no probability to any channel counts as agreement.

    Args:
        student_logits: `[B, C, ...]`, C of 2 or more.
        teacher_probs: the same shape, non-negative, summing to 1 over C up to rounding; detached.
        temperature: T, positive; above 1 softens.

    Returns:
        float32 `[B]`, the mean over cells, in nats times T^2.

    Raises:
        ValueError: the shapes differ, there is one channel only, or T is not positive.
    """
    logits, probs = _check(student_logits, teacher_probs, temperature, "distribution_kl")
    softened = probs if temperature == 1 else probs.pow(1 / temperature)
    softened = softened / softened.sum(dim=1, keepdim=True).clamp_min(TINY)
    return _softened_kl(logits, softened, temperature)


def logits_kl(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """`distribution_kl` for a teacher that gives logits.

    Args:
        student_logits: `[B, C, ...]`, C of 2 or more.
        teacher_logits: the same shape; detached.
        temperature: T, positive; above 1 softens.

    Returns:
        float32 `[B]`.

    Raises:
        ValueError: as `distribution_kl`.
    """
    logits, teacher = _check(student_logits, teacher_logits, temperature, "logits_kl")
    return _softened_kl(logits, F.softmax(teacher / temperature, dim=1), temperature)


def softened_cross_entropy(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """`sum_c -softmax(z_T / tau) log softmax(z_S)`: only the teacher is softened, by tau.

    `L_KD` of del Amor et al. 2024 (arXiv 2401.06010), as given. Two things follow. It is not zero at agreement but the entropy
    of the softened teacher, a constant for the student. And with tau above 1 it is least where the student is as soft as the
    softened teacher, not where their logits agree; `logits_kl` softens both.

    Args:
        student_logits: `[B, C, ...]`, C of 2 or more.
        teacher_logits: the same shape; detached.
        temperature: tau, positive.

    Returns:
        float32 `[B]`, the mean over cells, in nats.

    Raises:
        ValueError: as `distribution_kl`.
    """
    logits, teacher = _check(student_logits, teacher_logits, temperature, "softened_cross_entropy")
    entropies = -(F.softmax(teacher / temperature, dim=1) * F.log_softmax(logits, dim=1)).sum(dim=1)
    return entropies[:, None].flatten(1).mean(dim=1)  # also where there are no cells, [B]


def _check(student: Tensor, teacher: Tensor, temperature: float, what: str) -> tuple[Tensor, Tensor]:
    student, teacher = check_pair(student, teacher, what)
    if student.shape[1] < 2:
        raise ValueError(f"{what}: a distribution needs 2 or more channels; for one probability per cell use soft_bce")
    if not temperature > 0:
        raise ValueError(f"{what}: temperature must be positive, not {temperature}")
    return student, teacher


def _softened_kl(logits: Tensor, softened: Tensor, temperature: float) -> Tensor:
    log_student = F.log_softmax(logits / temperature, dim=1)
    kl = -(torch.special.entr(softened) + softened * log_student).sum(dim=1)
    return temperature**2 * kl[:, None].flatten(1).mean(dim=1)  # also where there are no cells, [B]
