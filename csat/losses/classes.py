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
    keep the loss's size.

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
    if target.shape != logits.shape[:1] + logits.shape[2:]:
        raise ValueError(f"cross_entropy: logits {list(logits.shape)} and target {list(target.shape)} do not fit each other")
    skipped = -100 if ignore is None else ignore
    target = target.long()
    weights = None if weights is None else weights.float()
    values = F.cross_entropy(
        logits.float(), target, weight=weights, label_smoothing=smoothing, ignore_index=skipped, reduction="none"
    )
    counted = (target != skipped)[:, None].flatten(1).float()
    return values[:, None].flatten(1).sum(1) / counted.sum(1).clamp_min(1)


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
    if logits.ndim != 4 or target.shape != logits.shape[:1] + logits.shape[2:]:
        raise ValueError(f"classes_dice: logits {list(logits.shape)} and target {list(target.shape)} do not fit each other")
    target = target.long()
    counts = torch.ones_like(target, dtype=torch.bool) if ignore is None else target != ignore
    probs = logits.float().softmax(1) * counts[:, None]
    labelled = F.one_hot(torch.where(counts, target, 0), logits.shape[1]).permute(0, 3, 1, 2) * counts[:, None]
    overlap, said, true = (x.flatten(2).sum(2) for x in (probs * labelled, probs, labelled.float()))
    dice = (2 * overlap + SMOOTHING_CELLS) / (said + true + SMOOTHING_CELLS)
    is_there = (true > 0).float()
    return ((1 - dice) * is_there).sum(1) / is_there.sum(1).clamp_min(1)
