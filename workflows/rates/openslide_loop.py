"""Tiles through OpenSlide as one reads them by hand, nothing checked, nothing quarantined: what the reader is held against."""

from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
from openslide import OpenSlide


def open_by_hand(path: Path) -> OpenSlide:
    """To be closed by who opened it."""
    return OpenSlide(str(path))


def read_by_hand(slide: OpenSlide, rows: Mapping[str, np.ndarray], tile_px: int) -> np.ndarray:
    """uint8 `[B, tile_px, tile_px, 3]`.

    Args:
        slide: Open.
        rows: Of its manifest: x_px, y_px, level, read_px.
    """
    tiles = np.empty((len(rows["x_px"]), tile_px, tile_px, 3), np.uint8)
    for index in range(len(tiles)):
        x, y, level, edge = (int(rows[name][index]) for name in ("x_px", "y_px", "level", "read_px"))
        pixels = np.asarray(slide.read_region((x, y), level, (edge, edge)))[..., :3]
        tiles[index] = pixels if edge == tile_px else cv2.resize(pixels, (tile_px, tile_px), interpolation=cv2.INTER_AREA)
    return tiles
