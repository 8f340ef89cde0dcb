"""How well a student says what its teacher says, tile by tile, on tiles that neither training nor tuning has seen.

Every figure is kept as counts or sums per tile, so that tiles can be measured anywhere and pooled at the end. Dice is pooled
over all pixels of all tiles (2 TP / (2 TP + FP + FN)): a tile without nuclei neither helps nor hurts. The interval comes
from a bootstrap over slides where there are several, else over tiles: neighbouring tiles are not independent.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from csat.evaluation.metrics.bootstrap import SumTally, index_groups, interval, ratio, resample
from csat.responses import Kind, ResponseSpec

NUCLEUS_THRESHOLD = 0.5  # on the student's, the teacher's and the pooled known mask alike
NUM_BOOTSTRAPS = 2000

TP, FP, TN, FN = range(4)  # columns of counts
COUNTS = ".counts"  # how the name of a figure ends that is counts; the others are values of a tile
TILES = "tiles"  # how many there are, summed up as the figures are


def compare_masks(prediction: Tensor, target: Tensor) -> np.ndarray:
    """Pixel counts per tile of two soft masks, each cut at one half.

    Args:
        prediction: `[B, 1, h, w]` or `[B, h, w]`, probabilities.
        target: same shape; what counts as true.

    Returns:
        int64 `[B, 4]`: true positives, false positives, true negatives, false negatives.
    """
    # torchmetrics' samplewise scores fail on a batch of one tile (1.9.0: they squeeze the batch away).
    said, true = ((each.float() >= NUCLEUS_THRESHOLD).flatten(1) for each in (prediction, target))
    return torch.stack([(said & true).sum(1), (said & ~true).sum(1), (~said & ~true).sum(1), (~said & true).sum(1)], 1).numpy()


def measure(spec: ResponseSpec, prediction: Tensor, response: Tensor) -> dict[str, np.ndarray]:
    """Figures of one response for a batch.

    Args:
        spec: The response.
        prediction: The student's raw prediction on the response's grid (logits where the response is a probability).
        response: The teacher's, same shape.

    Returns:
        figure → `[B]` or `[B, 4]`: `<name>.counts` for a mask, `<name>.correlation` for a regression, `<name>.agreement`
        (share of cells with the same most likely channel) for distributions, `<name>.cosine` for features.
    """
    prediction, response = prediction.float(), response.float()
    if spec.kind == Kind.PROBABILITY and spec.channels == 1:
        return {f"{spec.name}{COUNTS}": compare_masks(prediction.sigmoid().flatten(1), response.flatten(1))}
    if spec.kind in (Kind.PROBABILITY, Kind.LOGITS):
        same = (prediction.argmax(1) == response.argmax(1)).float()
        return {f"{spec.name}.agreement": same.flatten(1).mean(1).numpy() if same.ndim > 1 else same.numpy()}
    if spec.kind == Kind.FEATURES:
        cosine = F.cosine_similarity(prediction, response, dim=1)
        return {f"{spec.name}.cosine": cosine.flatten(1).mean(1).numpy() if cosine.ndim > 1 else cosine.numpy()}
    return {f"{spec.name}.correlation": _correlation(prediction.flatten(1), response.flatten(1)).numpy()}


def dice(counts: np.ndarray) -> np.ndarray:
    """Dice of pooled counts `[..., 4]`, `[...]`; 1 where neither has a positive pixel."""
    tp, fp, fn = counts[..., TP], counts[..., FP], counts[..., FN]
    return np.where(tp + fp + fn > 0, ratio(2 * tp, 2 * tp + fp + fn), 1.0)


def summarise(figures: Mapping[str, np.ndarray], groups: Sequence[str], *, seed: int = 0) -> dict[str, dict[str, float]]:
    """Pool per-tile figures: Dice of counts, means of the rest, each with a 95% interval.

    Args:
        figures: figure → `[N]` or `[N, 4]`, as `measure` gives them, all tiles together.
        groups: `[N]`, the slide (or patient) of each tile: what the bootstrap draws.
        seed: Of the bootstrap.

    Returns:
        figure (`.counts` becomes `.dice`) → {"value", "low", "high", "tiles", "groups"}.
    """
    group_of, num_groups = index_groups(groups)
    tally = SumTally({**figures, TILES: np.ones(len(groups))}, _pooled, group_of, num_groups)
    drawn = resample([tally], num_groups, num_bootstraps=NUM_BOOTSTRAPS, seed=seed)
    about = {"tiles": len(groups), "groups": len(set(groups))}
    summary = {}
    for name, value in tally.point().items():
        low, high = interval(drawn[name])
        summary[name] = {"value": value, "low": low, "high": high, **about}
    return summary


def _pooled(sums: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Figures of all tiles together, from their sums."""
    sums = dict(sums)
    tiles = sums.pop(TILES)
    counts = {name: total for name, total in sums.items() if name.endswith(COUNTS)}
    means = {name: ratio(total, tiles) for name, total in sums.items() if name not in counts}
    return {name.replace(COUNTS, ".dice"): dice(total) for name, total in counts.items()} | means


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's r of each row; 0 where one side is constant."""
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    norms = a.norm(dim=1) * b.norm(dim=1)
    return torch.where(norms > 0, (a * b).sum(1) / norms.clamp(min=1e-12), torch.zeros_like(norms))
