"""What was said of a tile, drawn on it: outlines of nuclei as they are in the slide's file, or the most probable class."""

from collections.abc import Sequence

import cv2
import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import shapely

from csat.prediction.palette import colours_of
from csat.prediction.slide_frame import Place
from csat.prediction.table import read_about
from csat.storage import files

OPACITY = 0.55  # of a class that is certain
LINE_PX = 2


def with_nuclei(image: np.ndarray, nuclei_uri: str, place: Place, *, row: int | None = None) -> np.ndarray:
    """The tile with outlines in the colours of their types.

    Args:
        image: uint8 `[H, W, 3]`, the tile at any size.
        nuclei_uri: nuclei.parquet of the slide.
        place: What the tile covers.
        row: Of a parquet: which of its images the tile is from.
    """
    within = (pc.field("x_px") > place.left) & (pc.field("x_px") < place.right)
    within &= (pc.field("y_px") > place.top) & (pc.field("y_px") < place.bottom)
    if row is not None:
        within &= pc.field("row") == row
    with files.open_native(nuclei_uri) as native:
        table = pq.read_table(native, columns=["class", "geometry"], filters=within)
    drawn, colours = image.copy(), colours_of(read_about(nuclei_uri)["classes"])
    scale = np.array([image.shape[1] / (place.right - place.left), image.shape[0] / (place.bottom - place.top)])
    for name, outline in zip(table["class"].to_pylist(), shapely.from_wkb(table["geometry"].to_numpy()), strict=True):
        points = (shapely.get_coordinates(outline) - (place.left, place.top)) * scale
        cv2.polylines(drawn, [np.round(points).astype(np.int32)], True, colours.get(name, (255, 255, 0)), LINE_PX, cv2.LINE_AA)
    return drawn


def with_classes(image: np.ndarray, probabilities: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """The tile in the colour of the most probable class, the stronger the surer.

    Args:
        image: uint8 `[H, W, 3]`, the tile at any size.
        probabilities: float32 `[C, n, m]`, of all of the tile.
        classes: Names of the channels.
    """
    size = image.shape[1::-1]
    colours = np.array(list(colours_of(classes).values()), np.float32)[probabilities.argmax(0)]
    colours = cv2.resize(colours, size, interpolation=cv2.INTER_NEAREST)
    weight = OPACITY * cv2.resize(probabilities.max(0), size, interpolation=cv2.INTER_LINEAR)[..., None]
    return np.round(image * (1 - weight) + colours * weight).astype(np.uint8)
