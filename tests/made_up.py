"""Predictions of models that never were, with known truth: for what judges models, compares runs and draws reports."""

import numpy as np

from csat.data.datasets.contract import Task
from csat.evaluation.predictions import Predictions

CLASSES = ("benign", "adenocarcinoma", "squamous")
TISSUES = ("background", "gland")


def names(num_samples: int, per_group: int) -> dict[str, tuple[str, ...]]:
    """Keys in order, and a group for each `per_group` of them."""
    return {
        "keys": tuple(f"images/{index:03d}.png" for index in range(num_samples)),
        "groups": tuple(f"patient {index // per_group}" for index in range(num_samples)),
    }


def classified(
    seed: int = 0, *, num_samples: int = 60, per_group: int = 5, classes: tuple[str, ...] = CLASSES, skill: float = 1.5
) -> Predictions:
    """Softmax of noise plus `skill` for the right class; the truth does not depend on `seed`."""
    labels = np.random.default_rng(99).integers(len(classes), size=num_samples)
    logits = np.random.default_rng(seed).normal(size=(num_samples, len(classes)))
    logits[np.arange(num_samples), labels] += skill
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return Predictions(
        task=Task.CLASSIFICATION,
        classes=classes,
        **names(num_samples, per_group),
        loss=-np.log(probs[np.arange(num_samples), labels]),
        arrays={"probs": probs.astype(np.float32), "label": labels},
    )


def segmented(seed: int = 0, *, num_samples: int = 12, per_group: int = 3, classes: tuple[str, ...] = TISSUES) -> Predictions:
    """Pixel counts, most of them on the diagonal."""
    rng = np.random.default_rng(seed)
    confusion = rng.integers(10, 200, size=(num_samples, len(classes), len(classes)))
    confusion += 600 * np.eye(len(classes), dtype=np.int64)
    return Predictions(
        task=Task.SEGMENTATION,
        classes=classes,
        **names(num_samples, per_group),
        loss=rng.random(num_samples),
        arrays={"confusion": confusion},
    )


def nuclei(seed: int = 0, *, num_samples: int = 12, per_group: int = 3, types: tuple[str, ...] = ()) -> Predictions:
    """Counts of images with about 20 nuclei each."""
    rng = np.random.default_rng(seed)
    found, extra, lost = rng.integers(10, 20, num_samples), rng.integers(0, 8, num_samples), rng.integers(0, 8, num_samples)
    pixels = np.stack([50 * found, 50 * extra, 50 * lost], 1)
    match = np.stack([found, extra, lost, 0.8 * found], 1).astype(np.float64)
    arrays = {
        "pixels": pixels,
        "aji": np.stack([pixels[:, 0], pixels.sum(1)], 1),
        "detection": np.stack([found, extra, lost], 1),
        "match": match,
    }
    if types:
        arrays["match_by_type"] = np.stack([match / len(types)] * len(types), 1)
    return Predictions(
        task=Task.NUCLEI, classes=types, **names(num_samples, per_group), loss=rng.random(num_samples), arrays=arrays
    )
