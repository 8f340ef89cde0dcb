"""heatmap.png."""

import cv2
import numpy as np

from csat.prediction.heatmap import overlaid, write_overlay
from csat.prediction.palette import colours_of
from tests.csat.prediction.answered_map import CLASSES, answers, gathered


def test_the_picture_shows_the_class_over_the_tissue(tmp_path):
    thumbnail = np.full((300, 520, 3), 220, np.uint8)
    with gathered(cell_um=2.0) as slide_map:
        write_overlay(str(tmp_path / "heatmap.png"), thumbnail, slide_map, CLASSES)
        plain = overlaid(thumbnail, slide_map, CLASSES)
    picture = cv2.cvtColor(cv2.imread(str(tmp_path / "heatmap.png")), cv2.COLOR_BGR2RGB)
    assert picture.shape[1] == 520 and picture.shape[0] > 300  # the legend is below
    assert np.array_equal(picture[:300], plain)
    assert (plain[:, 402:] == 220).all() and (plain[:, :398] != 220).any(2).all()
    sure = answers()[:, 150, 260]  # level 0; the thumbnail is five times smaller
    expected = 220 * (1 - 0.65 * sure.max()) + np.array(colours_of(CLASSES)[CLASSES[sure.argmax()]]) * 0.65 * sure.max()
    assert np.abs(plain[30, 52] - expected).max() < 6
