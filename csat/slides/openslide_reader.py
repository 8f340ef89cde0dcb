"""Pyramids through OpenSlide, which is used here and nowhere else. See `csat.slides.reader`."""

import functools
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np
import openslide
from openslide import OpenSlide, OpenSlideCache, OpenSlideError

from csat.errors import SlideError
from csat.slides.images import Level
from csat.slides.mpp import Mpp, choose_mpp, guess_mpp, mpp_of_tags, stated_mpp
from csat.slides.raster import on_white
from csat.slides.resizing import shrunk
from csat.storage.node_cache import Lease

OPENSLIDE_VERSION = openslide.__library_version__
TILE_CACHE_BYTES = 16 * 2**20  # decoded tiles that OpenSlide keeps, per process, not per slide (its default: 32 MiB a slide)
THUMBNAIL_BLOCK_PX = 2048  # edge of what is decoded at once for a thumbnail; a single-level slide may have 10 gigapixels
UNREADABLE_RGB = (190, 110, 170)  # counts as tissue, so that each tile below is tried, and quarantined, by itself

T = TypeVar("T")


def vendor_of(path: Path) -> str | None:
    """The format that OpenSlide takes a file for; None: it does not know it."""
    return OpenSlide.detect_format(str(path))


class OpenSlideReader:
    """One slide. See `SlideReader`."""

    kind = "wsi"
    num_rows = 1
    num_bytes = 0  # OpenSlide's own cache is shared by the process's slides

    def __init__(self, uri: str, lease: Lease, *, mpp: float | None = None, source_mpp: float | None = None):
        """
        Args:
            uri: Named in the errors.
            lease: The local file; released by `close`.
            mpp: See `open_slide`.
            source_mpp: See `open_slide`.
        """
        self._uri = uri
        self.lease = lease
        self._slide: OpenSlide | None = None
        self.levels = self._attempt("be opened", _levels_of)
        properties = self._attempt("be opened", lambda slide: dict(slide.properties))
        guessed = guess_mpp(_number(properties, "openslide.objective-power"))
        self.resolution = choose_mpp(given=mpp, stated=_stated(properties), source_mpp=source_mpp, guessed=guessed)
        self.mpp = self.resolution and self.resolution.mean
        self.bounds = _bounds_of(properties, self.levels[0])

    def read(self, x_px: int, y_px: int, level: int, size_px: int | tuple[int, int], *, row: int = 0) -> np.ndarray:
        """See `SlideReader.read`."""
        assert row == 0, row
        size = (size_px, size_px) if isinstance(size_px, int) else size_px
        where = f"be read at x_px={x_px}, y_px={y_px}, level {level}"
        region = self._attempt(where, lambda slide: slide.read_region((x_px, y_px), level, size))
        return on_white(np.asarray(region))

    def thumbnail(self, max_px: int) -> np.ndarray:
        """See `SlideReader.thumbnail`. Read in blocks; a block that cannot be read is painted so as to count as tissue.

        Raises:
            SlideError: "unreadable": none of it can be read.
        """
        width, height, _ = self.levels[0]
        shrink = max(1.0, max(width, height) / max_px)
        level = max(i for i, at in enumerate(self.levels) if i == 0 or at.downsample <= shrink * 1.01)
        source = self.levels[level]
        out_width, out_height = max(1, round(width / shrink)), max(1, round(height / shrink))
        out = np.empty((out_height, out_width, 3), np.uint8)
        # Pixels of the level per pixel of the thumbnail, and a block's edge in pixels of the thumbnail.
        scale_x, scale_y = source.width_px / out_width, source.height_px / out_height
        block = max(1, math.floor(THUMBNAIL_BLOCK_PX / max(scale_x, scale_y)))
        num_read, failure = 0, None
        for top in range(0, out_height, block):
            for left in range(0, out_width, block):
                target = out[top : top + block, left : left + block]
                rows, columns = target.shape[:2]
                x, y = round(left * scale_x), round(top * scale_y)
                size = max(1, round((left + columns) * scale_x) - x), max(1, round((top + rows) * scale_y) - y)
                try:
                    pixels = self.read(round(x * source.downsample), round(y * source.downsample), level, size)
                    target[:] = shrunk(pixels, (columns, rows))
                    num_read += 1
                except SlideError as error:
                    failure = error
                    target[:] = UNREADABLE_RGB
        if failure is not None and num_read == 0:
            raise failure
        return out

    def close(self) -> None:
        """Close the slide and give its file back to the cache."""
        self._close_handle()
        self.lease.release()

    def _attempt(self, what: str, action: Callable[[OpenSlide], T]) -> T:
        """Do something with the handle. An error latches on an OpenSlide handle for good, so the next try gets a new one."""
        try:
            if self._slide is None:
                self._slide = OpenSlide(str(self.lease.path))
                self._slide.set_cache(_tile_cache(os.getpid()))
            return action(self._slide)
        except (OpenSlideError, OSError) as error:
            self._close_handle()
            raise SlideError("unreadable", f"{self._uri}: cannot {what}: {type(error).__name__}: {error}") from error

    def _close_handle(self) -> None:
        if self._slide is not None:
            self._slide.close()
            self._slide = None


def _levels_of(slide: OpenSlide) -> list[Level]:
    return [Level(*size, shrink) for size, shrink in zip(slide.level_dimensions, slide.level_downsamples, strict=True)]


def _stated(properties: Mapping[str, str]) -> Mpp | None:
    """The resolution by the slide's own properties, the most trustworthy first; None where there is none that is plausible."""
    tags = (_number(properties, "tiff.XResolution"), _number(properties, "tiff.YResolution"))
    by_tags = mpp_of_tags(*tags, properties.get("tiff.ResolutionUnit"))
    if properties.get("openslide.vendor") == "generic-tiff":  # its mpp is made of the tags, a printer's too
        return by_tags
    return stated_mpp(_number(properties, "openslide.mpp-x"), _number(properties, "openslide.mpp-y")) or by_tags


def _bounds_of(properties: Mapping[str, str], canvas: Level) -> tuple[int, int, int, int] | None:
    """What viewers crop the slide to; None where it does not say all four, or where that is the whole canvas."""
    numbers = [_number(properties, f"openslide.bounds-{name}", least=0) for name in ("x", "y", "width", "height")]
    if None in numbers:
        return None
    x, y, width, height = map(int, numbers)
    return None if (width, height) == (canvas.width_px, canvas.height_px) else (x, y, width, height)


def _number(properties: Mapping[str, str], name: str, *, least: float | None = None) -> float | None:
    try:
        number = float(properties.get(name, "nan"))
    except ValueError:
        return None
    is_good = number > 0 if least is None else number >= least
    return number if is_good else None  # neither NaN nor, without `least`, 0


@functools.lru_cache(maxsize=1)
def _tile_cache(process_id: int) -> OpenSlideCache:
    """One cache for all slides of a process; by its id, for a forked child must not share the parent's."""
    return OpenSlideCache(TILE_CACHE_BYTES)
