"""Pixels of one slide: OpenSlide, Pillow and parquet behind the same few methods. (signatures first; being filled in)"""

from typing import NamedTuple, Protocol

import numpy as np

from csat.data.slide_cache import SlideCache


class Level(NamedTuple):
    width_px: int
    height_px: int
    downsample: float  # level-0 pixels per pixel of this level


class SlideReader(Protocol):
    """What every reader has.

    Attributes:
        kind: "wsi", "image" or "parquet": what the file turned out to be (a small tif listed as "wsi" is "image" here).
        mpp: um/px of level 0, None where neither user nor file says it.
        levels: finest first. For parquet: one level, the size of row 0's tile; every row must have that size.
        num_bytes: decoded bytes that the reader itself keeps in memory.
        num_rows: rows of a parquet, else 1.
    """

    kind: str
    mpp: float | None
    levels: list[Level]
    num_bytes: int
    num_rows: int

    def read(self, x_px: int, y_px: int, level: int, size_px: int | tuple[int, int], *, row: int = 0) -> np.ndarray:
        """uint8 [h, w, 3] RGB; x_px, y_px in level-0 pixels, size_px (edge, or (width, height)) in pixels of `level`; white outside and under alpha."""

    def thumbnail(self, max_px: int) -> np.ndarray:
        """uint8 [h, w, 3] RGB of the whole of level 0, longer edge at most max_px."""

    def close(self) -> None: ...


def open_slide(
    uri: str, kind: str, *, mpp: float | None = None, source_mpp: float | None = None, cache: SlideCache | None = None
) -> SlideReader:
    """A reader of the slide. `mpp` overrides what the file says, `source_mpp` is used where nothing else says.

    Raises:
        SlideError: "missing" or "unreadable". (no mpp is not an error here: reader.mpp is None; use `no_mpp_error(uri)`)
    """
    raise NotImplementedError


def no_mpp_error(uri: str):
    """SlideError("no_mpp") that names the slide and how to give its mpp."""
    raise NotImplementedError


def read_tile(
    reader: SlideReader, *, x_px: int, y_px: int, level: int, read_px: int, tile_px: int, row: int = 0
) -> np.ndarray:
    """uint8 [tile_px, tile_px, 3]."""
    raise NotImplementedError
