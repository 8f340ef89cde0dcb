import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_f1_score, multiclass_jaccard_index

from csat.evaluation.metrics.segmentation import count_pixels, segmentation_figures
from csat.tasks import IGNORE

CLASSES = ("background", "tumour", "stroma")


def test_counts_by_hand_without_ignored_pixels():
    true = np.array([[0, 0, 1], [1, 2, IGNORE]], np.uint8)
    said = np.array([[0, 1, 1], [1, 0, 2]], np.int64)
    assert count_pixels(said, true, 3).tolist() == [[1, 1, 0], [0, 2, 0], [1, 0, 0]]


def test_nothing_labelled_counts_nothing():
    assert not count_pixels(np.zeros((4, 4)), np.full((4, 4), IGNORE, np.uint8), 3).any()


def test_figures_by_hand():
    figures = segmentation_figures(np.array([[1, 1, 0], [0, 2, 0], [1, 0, 0]]), CLASSES)
    assert {name: float(value) for name, value in figures.items()} == pytest.approx(
        {
            "miou": (1 / 3 + 2 / 3 + 0) / 3,
            "dice": (2 / 4 + 4 / 5 + 0) / 3,
            "pixel_accuracy": 3 / 5,
            "iou/background": 1 / 3,
            "dice/background": 2 / 4,
            "iou/tumour": 2 / 3,
            "dice/tumour": 4 / 5,
            "iou/stroma": 0,
            "dice/stroma": 0,
        }
    )


def test_a_class_that_is_nowhere_is_left_out_and_one_that_is_only_said_is_not():
    nowhere = segmentation_figures(np.array([[4, 0, 0], [0, 4, 0], [0, 0, 0]]), CLASSES)
    assert nowhere["miou"] == nowhere["dice"] == 1
    assert np.isnan(nowhere["iou/stroma"])
    only_said = segmentation_figures(np.array([[4, 0, 0], [0, 4, 4], [0, 0, 0]]), CLASSES)
    assert only_said["iou/stroma"] == 0
    assert only_said["miou"] == pytest.approx((1 + 0.5 + 0) / 3)


def test_pooled_agrees_with_torchmetrics_on_all_pixels():
    rng = np.random.default_rng(0)
    true, said = rng.integers(0, 3, (2, 5, 9, 7))
    true[rng.random(true.shape) < 0.1] = IGNORE
    confusion = sum(count_pixels(a, b.astype(np.uint8), 3) for a, b in zip(said, true, strict=True))
    figures = segmentation_figures(confusion, CLASSES)
    options = {"num_classes": 3, "ignore_index": IGNORE}
    said, true = torch.from_numpy(said), torch.from_numpy(true)
    assert float(figures["miou"]) == pytest.approx(float(multiclass_jaccard_index(said, true, **options)))
    assert float(figures["dice"]) == pytest.approx(float(multiclass_f1_score(said, true, average="macro", **options)))


def test_leading_axes_are_kept():
    counts = np.stack([np.diag([3, 2, 1]), np.ones((3, 3))])
    figures = segmentation_figures(counts, CLASSES)
    assert figures["miou"].tolist() == pytest.approx([1, 1 / 5])
