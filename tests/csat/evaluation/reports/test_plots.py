import base64
import io

import numpy as np
import pytest
from PIL import Image

from csat.evaluation.metrics.classification import BINS
from csat.evaluation.reports import plots as figures


def decode(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB")).astype(int)


def near(pixels: np.ndarray, color) -> bool:
    return np.abs(pixels - np.asarray(color)).max() < 30  # jpeg


def square(value: int) -> np.ndarray:
    mask = np.zeros((100, 100), np.int64)
    mask[20:80, 20:80] = value
    return mask


def test_a_picture_alone_is_only_made_smaller():
    shown = decode(figures.picture(np.full((540, 1080, 3), 90, np.uint8), [], num_classes=3))
    assert shown.shape == (figures.ALONE_PX // 2, figures.ALONE_PX, 3)
    assert near(shown, 90)
    tiny = decode(figures.picture(np.zeros((10, 12, 3), np.uint8), [], num_classes=3))
    assert tiny.shape == (10, 12, 3)  # never enlarged


def test_classes_are_tinted_and_what_is_ignored_is_white():
    image = np.full((100, 100, 3), 60, np.uint8)
    true, said = square(1), square(255)
    shown = decode(figures.picture(image, [true, said], num_classes=2))
    step = 100 + figures.GAP_PX
    assert shown.shape == (100, 2 * step + 100, 3)
    color = figures.class_colors(2)[1].astype(int)
    assert near(shown[50, step + 50], (1 - figures.TINT) * 60 + figures.TINT * color)
    assert near(shown[50, 2 * step + 50], (1 - figures.TINT) * 60 + figures.TINT * 255)
    for panel in range(3):
        assert near(shown[5, panel * step + 5], 60)  # the first class is left as it is


def test_nuclei_are_outlined_even_where_they_touch():
    image = np.full((100, 100, 3), 60, np.uint8)
    instances = square(1)
    instances[20:80, 50:80] = 2
    shown = decode(figures.picture(image, [instances], num_classes=None))[:, 100 + figures.GAP_PX :]
    is_line = (shown[..., 0] > 150) & (shown[..., 2] < 120)
    assert is_line[50, 48:52].any()  # between the two
    assert is_line[50, 19:22].any()
    assert not is_line[50, 30:45].any()
    assert not is_line[:15].any()


@pytest.mark.parametrize("count", [2, 9, 22])
def test_every_class_has_a_colour(count):
    colors = figures.class_colors(count)
    assert colors.shape == (count, 3)
    assert len({tuple(color) for color in colors}) == min(count, 20)


def test_confusion_matrix_and_reliability_are_drawn():
    assert decode(figures.confusion_matrix(np.array([[3, 1], [0, 0]]), ["a$b", "c" * 60], as_shares=True)).ndim == 3
    assert decode(figures.confusion_matrix(np.eye(30), [str(i) for i in range(30)], as_shares=False)).ndim == 3
    bins = np.zeros((BINS, 3))
    bins[-1] = 4, 3.9, 3
    assert decode(figures.reliability(bins)).ndim == 3


def test_learning_curves_of_a_run_that_has_only_begun():
    assert figures.learning_curves([], [], metric="miou", best_step=None) is None
    one = [{"step": 1, "loss": 1.0, "lr": 0.1}]
    assert figures.learning_curves(one, [], metric="miou", best_step=0).startswith("data:")
    measured = [{"step": 1, "loss": None, "metric": 0.5, "miou": 0.5, "dice": None}]
    assert figures.learning_curves(one, measured, metric="miou", best_step=1).startswith("data:")


def test_the_frontier_is_what_nobody_beats_in_both():
    points = [(1.0, 0.5), (2.0, 0.4), (3.0, 0.7), (3.0, 0.6), (4.0, 0.7)]
    assert figures.frontier(points, more_is_better=False) == [(1.0, 0.5), (3.0, 0.7)]
    assert figures.frontier(points, more_is_better=True) == [(4.0, 0.7)]
    assert figures.frontier([], more_is_better=True) == []


def test_comparisons_are_drawn_without_what_is_not_known():
    groups = {
        "rckd": {"value": 0.8, "low": 0.7, "high": 0.9},
        "scratch": {"value": 0.7, "low": 0.6, "high": 0.8},
        "broken": {"value": None, "low": None, "high": None},
    }
    costs = {"rckd": {"macs": 10**9, "images_per_s": 20.0}, "scratch": {"macs": 10**8, "images_per_s": None}}
    assert decode(figures.pareto(groups, costs, metric="dice")).ndim == 3
    assert figures.pareto(groups, {}, metric="dice") is None
    single = {"rckd": [0.79, 0.81], "scratch": [0.7, None], "broken": [None]}
    assert decode(figures.forest(groups, metric="dice", single=single)).ndim == 3
