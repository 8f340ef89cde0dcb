"""Losses for a labelled class, of a tile or of each pixel: cross-entropy and soft Dice over several classes."""

import torch
import torch.nn.functional as F
from torch import Tensor

SMOOTHING_CELLS = 1.0  # keeps a class with a few pixels from deciding a tile's Dice


def cross_entropy(
    logits: Tensor, target: Tensor, *, weights: Tensor | None = None, smoothing: float = 0.0, ignore: int | None = None
) -> Tensor:
    """Cross-entropy of the labelled class, per tile.

    With class weights, each tile's (or pixel's) value is multiplied by its class's weight and not divided by their sum: the
    mean over tiles then does not depend on which tiles share a batch or a rank. Weights with a mean of 1 over the training set
    keep the loss's size. Differs from torch's, which weighs the smoothed part of a label by every class's weight.

    Args:
        logits: `[B, C]` or `[B, C, H, W]`.
        target: int `[B]` or `[B, H, W]`, class index.
        weights: float `[C]`, or None.
        smoothing: Share of the label that is spread over all classes (Szegedy et al. 2016).
        ignore: Value of pixels that do not count.

    Returns:
        float32 `[B]`: the mean over the pixels that count, 0 where none does.

    Raises:
        ValueError: the shapes do not fit each other.
    """
    target, counts = _check_labels(logits, target, ignore, "cross_entropy")
    values = F.cross_entropy(logits.float(), target, label_smoothing=smoothing, reduction="none") * counts
    if weights is not None:
        values = values * weights.float()[target]
    return values.reshape(len(values), -1).sum(1) / counts.reshape(len(values), -1).sum(1).clamp_min(1)


def classes_dice(logits: Tensor, target: Tensor, *, ignore: int | None = None) -> Tensor:
    """`1 - mean over classes of (2 sum(p t) + s) / (sum p + sum t + s)`, per tile, over the classes that the tile has.

    HoVer-Net's Dice for nucleus types (Graham et al. 2019) sums over classes; differs: the mean over the classes that are
    labelled in the tile, so that a tile is not rewarded for classes that it does not have, and s of one cell.

    Args:
        logits: `[B, C, H, W]`.
        target: int `[B, H, W]`, class index.
        ignore: Value of pixels that do not count.

    Returns:
        float32 `[B]` in [0, 1); 0 for a tile in which no pixel counts.

    Raises:
        ValueError: the shapes do not fit each other.
    """
    if logits.ndim != 4:
        raise ValueError(f"classes_dice: logits are [B, C, H, W], not {list(logits.shape)}")
    target, counts = _check_labels(logits, target, ignore, "classes_dice")
    probs = logits.float().softmax(1) * counts[:, None]
    labelled = F.one_hot(target, logits.shape[1]).permute(0, 3, 1, 2) * counts[:, None]
    overlap, said, true = (x.flatten(2).sum(2) for x in (probs * labelled, probs, labelled.float()))
    dice = (2 * overlap + SMOOTHING_CELLS) / (said + true + SMOOTHING_CELLS)
    is_there = (true > 0).float()
    return ((1 - dice) * is_there).sum(1) / is_there.sum(1).clamp_min(1)


def _check_labels(logits: Tensor, target: Tensor, ignore: int | None, what: str) -> tuple[Tensor, Tensor]:
    """The target as int64, 0 where it does not count, and bool of its shape: where it counts."""
    if target.shape != logits.shape[:1] + logits.shape[2:]:
        raise ValueError(f"{what}: logits {list(logits.shape)} and target {list(target.shape)} do not fit each other")
    counts = torch.ones_like(target, dtype=torch.bool) if ignore is None else target != ignore
    return torch.where(counts, target.long(), 0), counts
