"""Losses for one probability per cell, such as that of a nucleus: soft cross-entropy and soft Dice."""

import torch
import torch.nn.functional as F
from torch import Tensor

from csat.losses.pairs import check_pair

SMOOTHING_CELLS = 1.0  # keeps a tile without nuclei from turning a few false cells into a Dice loss of 1


def soft_bce(student_logits: Tensor, teacher_probs: Tensor) -> Tensor:
    """Binary cross-entropy against a soft target, less the target's own entropy: `KL(teacher || student)` per cell.

    HoVer-Net's binary cross-entropy (Graham et al. 2019, loss of the nuclear pixel branch) with the teacher's probability in
    the place of the label. Differs: a soft target's cross-entropy is bounded below by its entropy, so that entropy is taken
    off. The gradient is the same, and the loss is zero at agreement.

    Args:
        student_logits: `[B, 1, ...]`.
        teacher_probs: the same shape, in [0, 1]; detached.

    Returns:
        float32 `[B]`, the mean over cells, in nats.

    Raises:
        ValueError: the shapes differ, or there is more than one channel.
    """
    logits, probs = _check_single(student_logits, teacher_probs, "soft_bce")
    entropy = torch.special.entr(probs) + torch.special.entr(1 - probs)
    excess = F.binary_cross_entropy_with_logits(logits, probs, reduction="none") - entropy
    return excess.flatten(1).mean(dim=1)


def soft_dice(student_logits: Tensor, teacher_probs: Tensor) -> Tensor:
    """`1 - (2 sum(p q) + s) / (sum(p^2) + sum(q^2) + s)` over the cells of a tile.

    The Dice loss of HoVer-Net's nuclear pixel branch for soft targets. Differs: squares in the denominator, since
    `1 - 2 sum(p q) / (sum p + sum q)` is not zero, nor least, at p = q unless the target is hard; per tile, so that the mean
    over ranks that hold different numbers of tiles is exact; and s of one cell.

    Args:
        student_logits: `[B, 1, ...]`.
        teacher_probs: the same shape, in [0, 1]; detached.

    Returns:
        float32 `[B]` in [0, 1).

    Raises:
        ValueError: the shapes differ, or there is more than one channel.
    """
    logits, q = _check_single(student_logits, teacher_probs, "soft_dice")
    p, q = logits.sigmoid().flatten(1), q.flatten(1)
    overlap = 2 * (p * q).sum(dim=1) + SMOOTHING_CELLS
    return 1 - overlap / (p.square().sum(dim=1) + q.square().sum(dim=1) + SMOOTHING_CELLS)


def _check_single(logits: Tensor, probs: Tensor, what: str) -> tuple[Tensor, Tensor]:
    logits, probs = check_pair(logits, probs, what)
    if logits.shape[1] != 1:
        raise ValueError(f"{what}: one probability per cell, not {logits.shape[1]} channels: use distribution_kl")
    return logits, probs
