"""Where things lie on a slide: its size, its resolution, the part that QuPath shows, and what each tile's answer covers.

Everything is in level-0 pixels of the full canvas, as floats; x runs to the right, y down, and (0, 0) is the upper left corner
of the first pixel. A tile's pixel u (from its left edge) lies at x_px + u · read_px · downsample / tile_px.
"""

import uuid
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from csat.slides.reader import SlideReader
from csat.storage.uris import base_name


class Place(NamedTuple):
    """The rectangle of a slide that one answer covers, level-0 px: a tile less the response's crop."""

    left: float
    top: float
    right: float
    bottom: float

    def pixel(self, shape: tuple[int, int]) -> tuple[float, float]:
        """Width and height of one cell of an answer of `shape` (rows, columns) in level-0 px."""
        return (self.right - self.left) / shape[1], (self.bottom - self.top) / shape[0]


@dataclass(frozen=True, kw_only=True)
class SlideFrame:
    """What has to be known of a slide to place answers on it. Small, and travels between processes.

    Attributes:
        slide: Its URI, as the manifest has it.
        width_px, height_px: Of level 0, the full canvas.
        mpp_x, mpp_y: um/px of level 0; None where the slide's resolution is not known.
        downsamples: Level-0 pixels per pixel of each level.
        bounds: (x, y, width, height) of the part that QuPath shows of a slide that states one smaller than its canvas (MRXS
            always does); None: it shows all.
    """

    slide: str
    width_px: int
    height_px: int
    mpp_x: float | None = None
    mpp_y: float | None = None
    downsamples: tuple[float, ...] = (1.0,)
    bounds: tuple[int, int, int, int] | None = None

    @property
    def origin_px(self) -> tuple[int, int]:
        """Where QuPath has its (0, 0): subtract it from coordinates that QuPath is to read."""
        return self.bounds[:2] if self.bounds else (0, 0)

    @property
    def um2_per_px2(self) -> float:
        """Area of a level-0 pixel, um²; NaN where the resolution is not known."""
        return self.mpp_x * self.mpp_y if self.mpp_x else float("nan")

    @property
    def ids(self) -> uuid.UUID:
        """The name space of this slide's objects: of its file name, so that a copy elsewhere has the same ids."""
        return uuid.uuid5(uuid.NAMESPACE_URL, base_name(self.slide))

    def place(self, *, x_px: int, y_px: int, level: int, read_px: int, aspect: float, tile_px: int, crop_px: int = 0) -> Place:
        """What an answer about a square tile covers.

        Args:
            x_px, y_px, level, read_px, aspect: Of the tile, as the manifest has them.
            tile_px: Edge of the tile as the model sees it.
            crop_px: Tile pixels on each side that the answer does not cover, `ResponseSpec.crop_px`.
        """
        across = read_px * self.downsamples[level] / tile_px
        down = max(1, round(read_px * aspect)) * self.downsamples[level] / tile_px
        inner_px = tile_px - crop_px
        return Place(x_px + crop_px * across, y_px + crop_px * down, x_px + inner_px * across, y_px + inner_px * down)

    def places(self, columns: dict[str, np.ndarray], *, tile_px: int, crop_px: int = 0) -> list[Place]:
        """`place` of each row of the manifest's columns."""
        names = ("x_px", "y_px", "level", "read_px", "aspect")
        rows = zip(*(np.asarray(columns[name]).tolist() for name in names), strict=True)
        return [self.place(**dict(zip(names, row, strict=True)), tile_px=tile_px, crop_px=crop_px) for row in rows]


def frame_of(uri: str, reader: SlideReader) -> SlideFrame:
    """The frame of a slide, or of an image, that is open."""
    first, resolution = reader.levels[0], reader.resolution
    return SlideFrame(
        slide=uri,
        width_px=first.width_px,
        height_px=first.height_px,
        mpp_x=resolution and resolution.x,
        mpp_y=resolution and resolution.y,
        downsamples=tuple(level.downsample for level in reader.levels),
        bounds=reader.bounds,
    )
