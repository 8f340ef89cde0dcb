"""Decoded images, which have a single level, read as slides are."""

from typing import NamedTuple

import numpy as np

from csat.slides.mpp import Mpp
from csat.slides.resizing import shrunk


class Level(NamedTuple):
    """One level of a slide's pyramid."""

    width_px: int
    height_px: int
    downsample: float  # level-0 pixels per pixel of this level


class ImageReader:
    """A decoded image behind the methods of `csat.slides.reader.SlideReader`."""

    kind = "image"
    num_rows = 1
    bounds = None

    def __init__(self, pixels: np.ndarray, resolution: Mpp | None):
        """
        Args:
            pixels: uint8 `[H, W, 3]`, RGB.
            resolution: None where not known.
        """
        self._pixels = pixels
        self.resolution = resolution
        self.mpp = resolution and resolution.mean
        self.levels = [Level(pixels.shape[1], pixels.shape[0], 1.0)]

    @property
    def num_bytes(self) -> int:
        return self._pixels.nbytes

    def read(self, x_px: int, y_px: int, level: int, size_px: int | tuple[int, int], *, row: int = 0) -> np.ndarray:
        """See `SlideReader.read`."""
        assert level == 0 and row == 0, (level, row)
        width_px, height_px = (size_px, size_px) if isinstance(size_px, int) else size_px
        height, width = self._pixels.shape[:2]
        left, right = np.clip([x_px, x_px + width_px], 0, width)
        top, bottom = np.clip([y_px, y_px + height_px], 0, height)
        if (right - left, bottom - top) == (width_px, height_px):
            return self._pixels[top:bottom, left:right].copy()
        out = np.full((height_px, width_px, 3), 255, np.uint8)
        out[top - y_px : bottom - y_px, left - x_px : right - x_px] = self._pixels[top:bottom, left:right]
        return out

    def thumbnail(self, max_px: int) -> np.ndarray:
        """See `SlideReader.thumbnail`."""
        height, width = self._pixels.shape[:2]
        scale = min(1.0, max_px / max(height, width))
        small = shrunk(self._pixels, (max(1, round(width * scale)), max(1, round(height * scale))))
        return small.copy() if small is self._pixels else small

    def close(self) -> None:
        """Nothing to close; the pixels go with the object."""
