"""Pixels of one slide: OpenSlide, Pillow and parquet behind the same few methods.

Readers hold open files: they don't travel between processes, each process opens its own (`csat.tiles.reader` keeps a few).
"""

import math
from pathlib import Path
from typing import Protocol

import numpy as np

from csat.errors import ConfigError, SlideError
from csat.slides.images import ImageReader, Level
from csat.slides.mpp import Mpp, choose_mpp
from csat.slides.openslide_reader import OPENSLIDE_VERSION, OpenSlideReader, vendor_of
from csat.slides.parquet import ParquetReader
from csat.slides.pixels import decode_image
from csat.slides.resizing import enlarged, shrunk
from csat.slides.tifs import why_not_openslide
from csat.storage import files
from csat.storage.node_cache import SlideCache, fetch_bytes

AS_IT_IS = 1.01  # a level this much coarser or finer than wanted is read without resampling
NEAR = 1.12  # a level this much coarser than wanted still serves, enlarged: by so much scanners differ at one magnification
NUDGE_PX = 1e-3  # rounding of positions


class SlideReader(Protocol):
    """What every reader has.

    Attributes:
        kind: "wsi", "image" or "parquet": what the file turned out to be (a plain tif listed as "wsi" is an "image" here).
        resolution: um/px of level 0 and where it comes from; None where neither the user nor the file says it.
        mpp: Its mean over both axes, or None.
        levels: Finest first. Of a parquet: one level, the size of a tile; every row must have it.
        bounds: (x, y, width, height) of the part that viewers show, level-0 px; None: all of it.
        num_rows: Rows of a parquet, else 1.
        num_bytes: Decoded or encoded bytes that the reader itself keeps in memory.
    """

    kind: str
    resolution: Mpp | None
    mpp: float | None
    levels: list[Level]
    bounds: tuple[int, int, int, int] | None
    num_rows: int
    num_bytes: int

    def read(self, x_px: int, y_px: int, level: int, size_px: int | tuple[int, int], *, row: int = 0) -> np.ndarray:
        """Pixels of a rectangle; white outside the slide and under alpha.

        Args:
            x_px: Left edge in level-0 pixels; may lie outside the slide.
            y_px: Upper edge in level-0 pixels.
            level: Index into `levels`.
            size_px: Edge, or (width, height), in pixels of that level.
            row: Row of a parquet.

        Returns:
            uint8 `[height, width, 3]`, RGB.

        Raises:
            SlideError: "unreadable" for this rectangle; the next one may well be read.
        """

    def thumbnail(self, max_px: int) -> np.ndarray:
        """All of the slide, uint8 `[h, w, 3]`, RGB, the longer edge `max_px` (less where the slide is smaller)."""

    def close(self) -> None:
        """Close the files. The reader is of no use afterwards."""


def open_slide(
    uri: str, kind: str, *, mpp: float | None = None, source_mpp: float | None = None, cache: SlideCache | None = None
) -> SlideReader:
    """A reader of a slide, an image or a parquet of encoded tiles.

    Where the resolution comes from is said in `csat.slides.mpp`. A reader without any has `resolution` None; who needs one
    raises `no_mpp_error`. Of a parquet the file says it row by row: its reader has what the user gave.

    Args:
        uri: Local path or URI. A slide in a bucket goes through the cache; images and parquet are read directly.
        kind: "wsi", "image" or "parquet", as in `SlideRow`. A "wsi" that only is a plain tif, or one that
            OpenSlide would misread (`csat.slides.tifs.why_not_openslide`), becomes an image reader.
        mpp: um/px that the user gave for this slide.
        source_mpp: um/px that the user gave for whatever states none.
        cache: Needed for slides in a bucket.

    Raises:
        SlideError: "missing" or "unreadable".
        StorageError: the fault is not the slide's (disk full, store out of reach).
    """
    if kind == "parquet":
        return ParquetReader(uri, choose_mpp(given=mpp, source_mpp=source_mpp))
    if kind == "image":
        pixels, stated = decode_image(fetch_bytes(uri), uri)
        return ImageReader(pixels, choose_mpp(given=mpp, stated=stated, source_mpp=source_mpp))
    if kind != "wsi":
        raise ConfigError(f"{uri}: kind {kind!r} is not known; expected wsi, image or parquet")
    if cache is None and not files.is_local(uri):
        raise ConfigError(f"{uri}: a slide in a bucket needs a slide cache on this node: set its folder and budget")
    lease = (cache or SlideCache(".", 0)).acquire(uri)
    try:
        if lease.path.stat().st_size == 0:
            raise SlideError("unreadable", f"{uri}: is empty (0 bytes)")
        vendor = vendor_of(lease.path)
        misread = None if vendor is None else why_not_openslide(lease.path, vendor, uri)
        if vendor is not None and misread is None:
            return OpenSlideReader(uri, lease, mpp=mpp, source_mpp=source_mpp)
        if vendor is None and lease.path.suffix.lower() not in (".tif", ".tiff"):
            raise SlideError("unreadable", f"{uri}: OpenSlide {OPENSLIDE_VERSION} does not know this format")
        pixels, stated = _decode_whole(lease.path, uri, misread)
    except BaseException:
        lease.release()
        raise
    lease.release()
    return ImageReader(pixels, choose_mpp(given=mpp, stated=stated, source_mpp=source_mpp))


def no_mpp_error(uri: str) -> SlideError:
    """The error for a slide whose resolution is needed and not known."""
    return SlideError(
        "no_mpp",
        f"{uri}: states no resolution. Give it with data.source_mpp 0.25 (um/px, for all slides that state none), or per "
        "slide in a CSV with the columns slide,mpp",
    )


def best_level(levels: list[Level], wanted: float) -> int:
    """The coarsest level that is at most NEAR coarser than wanted; the finest where none is.

    Args:
        levels: Of the slide, finest first.
        wanted: Level-0 pixels for one pixel as it is seen.
    """
    fitting = [index for index, at in enumerate(levels) if at.downsample <= wanted * NEAR]
    return max(fitting, key=lambda index: levels[index].downsample, default=0)


def read_tile(
    reader: SlideReader,
    *,
    x_px: int,
    y_px: int,
    level: int,
    read_px: int,
    tile_px: int | tuple[int, int],
    row: int = 0,
    aspect: float = 1.0,
    mirrored: bool = False,
) -> np.ndarray:
    """One tile at its final size.

    Args:
        reader: Of the tile's slide.
        x_px: Left edge in level-0 pixels.
        y_px: Upper edge in level-0 pixels.
        level: Level to read.
        read_px: Longer edge to read at that level; resized to `tile_px` by area where that is smaller, bicubic where larger.
        tile_px: Edge of the result, or its (width, height).
        row: Row of a parquet.
        aspect: Pixels to read down for one across (which `read_px` counts).
        mirrored: What lies beyond the slide is its mirror image; else white.

    Returns:
        uint8 `[tile_px, tile_px, 3]` or `[height, width, 3]`, RGB.

    Raises:
        SlideError: "unreadable".
    """
    size = (tile_px, tile_px) if isinstance(tile_px, int) else tile_px
    across = read_px / max(size)
    read_size = tuple(max(1, round(edge * ratio)) for edge, ratio in zip(size, (across, across * aspect), strict=True))
    pixels = reader.read(x_px, y_px, level, read_size, row=row)
    if mirrored:
        pixels = _mirrored(pixels, reader.levels[level], x_px, y_px)
    between = tuple(map(min, read_size, size))  # one edge may shrink while the other grows
    return enlarged(shrunk(pixels, between), size)


def _mirrored(pixels: np.ndarray, level: Level, x_px: int, y_px: int) -> np.ndarray:
    """What was read of a level, with the mirror image of the slide where the rectangle sticks out of it.

    The outermost pixels are there twice, as in the windows of `csat.prediction.windows`. A pixel that is partly outside counts
    as outside: it has some of the white in it.
    """
    height, width = pixels.shape[:2]
    starts = x_px / level.downsample, y_px / level.downsample
    left, top = (max(0, math.ceil(-start - NUDGE_PX)) for start in starts)
    beyond = starts[0] + width - level.width_px, starts[1] + height - level.height_px
    right, bottom = (max(0, math.ceil(edge - NUDGE_PX)) for edge in beyond)
    if not (left or top or right or bottom) or left + right >= width or top + bottom >= height:
        return pixels
    inside = pixels[top : height - bottom, left : width - right]
    return np.pad(inside, ((top, bottom), (left, right), (0, 0)), "symmetric")


def _decode_whole(path: Path, uri: str, misread: str | None) -> tuple[np.ndarray, Mpp | None]:
    """A tif that is no pyramid, or a pyramid that OpenSlide would misread."""
    try:
        return decode_image(path, uri)
    except SlideError as error:
        because = "" if misread is None else f". (OpenSlide cannot read it tile by tile: {misread})"
        raise SlideError(error.reason, f"{error}{because}") from error
