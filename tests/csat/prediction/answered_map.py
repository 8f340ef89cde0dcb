"""A slide's map whose every value is known, and of which the right part was not seen."""

import cv2
import numpy as np

from csat.prediction.slide_frame import Place, SlideFrame
from csat.prediction.slide_maps import SlideMap, cells_of, grid_of_um

CLASSES = ("tumour", "stroma & fat", "Lücke")
FRAME = SlideFrame(slide="a.svs", width_px=2600, height_px=1500, mpp_x=0.25, mpp_y=0.25)


def answers():
    """float `[3, 1500, 2600]` that sums to 1 over the classes."""
    small = np.random.default_rng(0).random((3, 15, 26)).astype(np.float32)
    large = np.stack([cv2.resize(each, (2600, 1500)) for each in small])
    return large / large.sum(0)


def gathered(*, labels=False, cell_um=0.5):
    grid = grid_of_um(FRAME, cell_um)
    slide_map = SlideMap(grid, 1 if labels else 3, labels=labels)
    place = Place(0, 0, 2000, 1500)
    slide_map.add(cells_of(answers()[:, :, :2000], place, grid, labels=labels), place)
    return slide_map
