"""A slide's map over its thumbnail, as a PNG for everybody: the most probable class's colour, the stronger the surer."""

from collections.abc import Sequence

import cv2
import numpy as np

from csat.prediction.palette import colours_of
from csat.prediction.slide_maps import SlideMap
from csat.storage import files

OPACITY = 0.65  # of probability 1
LEGEND_PX, FONT, FONT_SCALE = 22, cv2.FONT_HERSHEY_SIMPLEX, 0.45


def write_overlay(uri: str, thumbnail: np.ndarray, heatmap: SlideMap, classes: Sequence[str]) -> None:
    """heatmap.png.

    Args:
        thumbnail: uint8 `[h, w, 3]`, RGB, of the full canvas (`SlideReader.thumbnail`).
        heatmap: Of probabilities, a channel per class; its pyramid is built where it was not.
    """
    heatmap.build_pyramid()
    picture = np.concatenate([overlaid(thumbnail, heatmap, classes), _legend(classes, thumbnail.shape[1])])
    done, data = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    assert done
    files.write_bytes(uri, data.tobytes())


def overlaid(thumbnail: np.ndarray, heatmap: SlideMap, classes: Sequence[str]) -> np.ndarray:
    """uint8 `[h, w, 3]`: the thumbnail under the map."""
    height, width = thumbnail.shape[:2]
    fitting = [index for index, shape in enumerate(heatmap.levels) if shape[1] >= height or shape[2] >= width]
    level = max(fitting, default=0)
    values, shrunk = heatmap.read(level), 2**level
    grid = heatmap.grid
    rows = _cells(height, grid.frame.height_px, grid.cell_y * shrunk, values.shape[1])
    columns = _cells(width, grid.frame.width_px, grid.cell_x * shrunk, values.shape[2])
    said = values[:, rows[:, None], columns[None]]
    colours = np.array(list(colours_of(classes).values()), np.float32)[said.argmax(0)]
    weight = (OPACITY / 255 * said.max(0).astype(np.float32))[..., None]
    return np.round(thumbnail * (1 - weight) + colours * weight).astype(np.uint8)


def _cells(num_px: int, edge_px: int, cell: float, count: int) -> np.ndarray:
    """int `[num_px]`: the cell under the middle of each pixel of a thumbnail."""
    return np.minimum((np.arange(num_px) + 0.5) * (edge_px / num_px) / cell, count - 1).astype(np.int64)


def _legend(classes: Sequence[str], width: int) -> np.ndarray:
    """uint8 `[n, width, 3]`: a line for each class."""
    picture = np.full((LEGEND_PX * len(classes) + 6, width, 3), 255, np.uint8)
    for index, (name, colour) in enumerate(colours_of(classes).items()):
        top = 3 + LEGEND_PX * index
        cv2.rectangle(picture, (6, top + 4), (20, top + 18), colour, cv2.FILLED)
        text = name.encode("ascii", "replace").decode()  # OpenCV's font has no other letters
        cv2.putText(picture, text, (28, top + 16), FONT, FONT_SCALE, (0, 0, 0), 1, cv2.LINE_AA)
    return picture
