"""A model's nuclei on a field of a slide that is larger than a tile, as a picture."""

import cv2
import numpy as np
import shapely

from csat.prediction.loaded import Loaded
from csat.prediction.nuclei import UNTYPED, nuclei_of_tile
from csat.prediction.overlays import LINE_PX
from csat.prediction.palette import colours_of
from csat.prediction.slide_frame import SlideFrame
from csat.prediction.windows import View, see


def draw_nuclei(model: Loaded, slide: str, x: int, y: int, *, edge_px: int) -> tuple[np.ndarray, int]:
    """A square field, seen through windows as a prediction sees a slide, with the outlines of the nuclei.

    Args:
        model: It finds nuclei.
        slide: A slide or an image; a path or a URI.
        x, y: Left and upper edge, pixels of level 0.
        edge_px: Of the field, at the model's resolution.

    Returns:
        uint8 `[edge_px, edge_px, 3]`, RGB; and the number of nuclei.

    Raises:
        SlideError: the slide cannot be read, or is too coarse for this model.
    """
    pixels = model.on(slide, x, y, edge_px=edge_px)
    ((_, seen),) = see(model.answers, [(0, pixels)], View(fit="crop"))
    frame = SlideFrame(slide=slide, width_px=edge_px, height_px=edge_px, mpp_x=model.mpp, mpp_y=model.mpp)
    place = frame.place(x_px=0, y_px=0, level=0, read_px=edge_px, aspect=1.0, tile_px=edge_px)
    types = ("background", *model.classes) if model.classes else ()
    table = nuclei_of_tile(seen.maps, place, frame, types=types)
    drawn, colours = pixels.copy(), colours_of(model.classes or (UNTYPED,))
    for name, outline in zip(table["class"].to_pylist(), shapely.from_wkb(table["geometry"].to_numpy()), strict=True):
        points = np.round(shapely.get_coordinates(outline)).astype(np.int32)
        cv2.polylines(drawn, [points], True, colours[name], LINE_PX, cv2.LINE_AA)
    return drawn, len(table)
