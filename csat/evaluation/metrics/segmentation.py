"""Metrics of a segmentation, from pixel counts by true and predicted class, pooled over all images.

Pooled means that the pixels of all images are counted together, not that images are averaged: an image without a class neither
helps nor hurts. Pixels labelled 255 do not count.
"""

import numpy as np

from csat.evaluation.metrics.bootstrap import nan_mean, ratio
from csat.tasks import IGNORE

# Metric → the protocol. A name that ends in / is followed by a class.
METRICS = {
    "miou": "mean over classes, background included, of intersection over union; a class that occurs nowhere is left out",
    "dice": "mean over classes, background included, of Dice; a class that occurs nowhere is left out",
    "pixel_accuracy": "share of pixels whose most likely class is the labelled one",
    "iou/": "intersection over union of one class",
    "dice/": "Dice of one class",
}


def count_pixels(said: np.ndarray, true: np.ndarray, num_classes: int) -> np.ndarray:
    """int64 `[K, K]`: pixels by true class (row) and said class (column), of uint8 `[H, W]` maps."""
    import torch  # here, as torchmetrics takes seconds to load, torch with it
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    said, true = (torch.from_numpy(np.ascontiguousarray(each, np.int64)) for each in (said, true))
    return multiclass_confusion_matrix(said, true, num_classes=num_classes, ignore_index=IGNORE).numpy().astype(np.int64)


def segmentation_figures(confusion: np.ndarray, classes: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Metric → `[...]` from counts `[..., K, K]`."""
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    true, said = confusion.sum(-1), confusion.sum(-2)
    iou, dice = ratio(hits, true + said - hits), ratio(2 * hits, true + said)
    figures = {
        "miou": nan_mean(iou, axis=-1),
        "dice": nan_mean(dice, axis=-1),
        "pixel_accuracy": ratio(hits.sum(-1), true.sum(-1)),
    }
    for index, name in enumerate(classes):
        figures |= {f"iou/{name}": iou[..., index], f"dice/{name}": dice[..., index]}
    return figures
