"""Which tiles to cut, from which level, and where they lie: the geometry of one slide, worked out without any pixel.

The wanted resolution is read from the *best level*: the coarsest that is at most 12% coarser than wanted, resampled to size.
Scanners differ by that much at one magnification (40x is 0.2325 to 0.263 um/px), so that resampling by a few per cent, up or
down, is the rule; within 1% a level is read as it is. Enlarging more has to be allowed by name.

Positions are in level-0 pixels; tiles that would stick out of the slide are not made, unless `margin_px` allows it. The step
between tiles is a whole number of level-0 pixels, rounded up: tiles overlap by what was asked for or a fraction of a pixel
less, never more. Only with `cover_edges` the last tile of a row or column ends at the slide's edge, and overlaps its neighbour
by more. Where pixels are not square, a tile takes more of them in one direction than in the other, and is resampled to square
ones.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from csat.errors import ConfigError, SlideError
from csat.settings import Often
from csat.slides.images import Level
from csat.slides.mpp import Mpp, check_mpp
from csat.slides.reader import AS_IT_IS, NEAR, best_level, no_mpp_error
from csat.tiles.sources import SlideRow

TILE_SCHEMA = pa.schema(
    [
        ("slide", pa.string()),  # absolute path or URI
        ("kind", pa.string()),  # how to open it, see SlideRow
        ("patient", pa.string()),  # null where not known
        ("x_px", pa.int32()),  # left edge, level-0 pixels
        ("y_px", pa.int32()),  # upper edge, level-0 pixels
        ("level", pa.int8()),  # pyramid level to read
        ("read_px", pa.int32()),  # longer edge to read at that level, then resampled to that of (width_px, height_px)
        ("footprint_px", pa.int32()),  # longer edge at level 0, rounded up
        ("mpp", pa.float32()),  # of the tile as the teacher sees it, um/px; NaN where not known
        ("tissue", pa.float32()),  # share of the tile that is tissue; NaN where it was not looked at (parquet)
        ("row", pa.int32()),  # row of a parquet, else 0
        ("width_px", pa.int32()),  # of the tile as the teacher sees it, without padding: tile_px for squares
        ("height_px", pa.int32()),
        ("aspect", pa.float32()),  # pixels to read down for one across (read_px, footprint_px count those across); 1: square
        ("mpp_source", pa.string()),  # where the resolution comes from, see csat.slides.mpp; null: not known
    ]
)
SMALLEST_PX = 16  # edge of a tile, and of an image that is seen as a whole
ROUNDING_PX = 1e-6  # by which a length that should be whole may miss it, as 300.00000000000006 does
MOST_UNEQUAL = 2.0  # how many times longer than wide a slide's pixels may be


@dataclass(frozen=True, kw_only=True)
class TilingConfig:
    """Which tiles to cut: the settings data.NAME.

    A slide's resolution is, in this order: what a CSV's column mpp says of this slide; what the file states; source_mpp;
    a guess (10 / objective power). A printer's resolution (72, 300, 600 dpi) states nothing.
    """

    mpp: Often[float | None] = 0.5  # wanted resolution, um/px (levels within 12% are resampled); null: pixels as they are
    tile_px: Often[int] = 256  # edge of a tile, px at the wanted resolution; not used with whole
    overlap_px: int = 0  # how far neighbouring tiles overlap, px at the wanted resolution
    min_tissue: float = 0.5  # smallest share of tissue, 0 to 1; 0 keeps every tile
    allow_upsampling: bool = False  # enlarge slides whose finest level is over 12% coarser than wanted
    max_upsampling: float = 2.0  # with allow_upsampling: at most so many times; a slide that needs more is quarantined
    source_mpp: float | None = None  # resolution of slides and rows that state none, um/px; beats a guess, nothing else
    tissue_thumbnail_px: int = 2048  # longer edge of the picture in which tissue is looked for, px
    whole: str | None = None  # image or tissue: no tiles, but each image, or piece of tissue, at its own size
    max_px: int = 4096  # with whole: longest edge at the wanted resolution; a larger image is quarantined, never shrunk
    cover_edges: bool = False  # cover the right and lower edge too, by tiles that overlap their neighbours by more
    margin_px: int = 0  # how far the outermost tiles reach beyond the slide, where they see its mirror image, px as overlap_px

    def __post_init__(self):
        check_mpp(self.mpp, "data.mpp")
        check_mpp(self.source_mpp, "data.source_mpp")
        if self.tile_px < SMALLEST_PX:
            raise ConfigError(f"data.tile_px must be at least {SMALLEST_PX} px, not {self.tile_px}")
        if self.whole not in (None, "image", "tissue"):
            raise ConfigError(f"data.whole is image, tissue or null, not {self.whole!r}")
        if self.whole and self.overlap_px:
            raise ConfigError("data.overlap_px is about tiles of a grid: leave it out with data.whole")
        if self.max_px < SMALLEST_PX:
            raise ConfigError(f"data.max_px must be at least {SMALLEST_PX} px, not {self.max_px}")
        if not 0 <= self.overlap_px < self.tile_px:
            raise ConfigError(f"data.overlap_px must be 0 to tile_px - 1 = {self.tile_px - 1}, not {self.overlap_px}")
        if not 0 <= self.margin_px < self.tile_px / 2:
            raise ConfigError(f"data.margin_px must be 0 or more, and less than half of tile_px, not {self.margin_px}")
        if not 0 <= self.min_tissue <= 1:
            raise ConfigError(f"data.min_tissue is a share, 0 to 1, not {self.min_tissue}")
        if not 1 <= self.max_upsampling < math.inf:
            raise ConfigError(f"data.max_upsampling is a factor of 1 or more, not {self.max_upsampling}")
        if self.tissue_thumbnail_px < 64:
            raise ConfigError(f"data.tissue_thumbnail_px must be at least 64 px, not {self.tissue_thumbnail_px}")


class Scale(NamedTuple):
    """How a slide is read at the wanted resolution."""

    level: int
    across: float  # pixels of that level for one pixel as it is seen; 1 in both directions: read as it is
    down: float
    mpp: float  # of what is seen, um/px; NaN where not known
    source: str | None  # of that resolution, see csat.slides.mpp


@dataclass(frozen=True)
class Grid:
    """All tile positions of one image, and how each is read."""

    x_px: np.ndarray  # int64 [n], row by row from the upper left, level-0 px
    y_px: np.ndarray  # int64 [n]
    level: int  # to read
    read_px: int  # edge at that level, across
    footprint_px: float  # edge at level 0, across
    mpp: float  # of the finished tile; NaN where not known
    aspect: float = 1.0  # the same edges down, as a multiple
    mpp_source: str | None = None


def plan_scale(slide: str, levels: list[Level], resolution: Mpp | None, config: TilingConfig) -> Scale:
    """The level to read, and how its pixels become those of the wanted resolution.

    Args:
        slide: For messages.
        levels: Of the slide, finest first.
        resolution: Of level 0; None where not known.
        config: What is wanted.

    Raises:
        SlideError: "no_mpp" or "needs_upsampling".
    """
    if config.mpp is None:
        known = (resolution.mean, resolution.source) if resolution else (math.nan, None)
        return Scale(0, 1.0, 1.0, *known)
    if resolution is None:
        raise no_mpp_error(slide)
    x, y = resolution.x, resolution.y
    if max(x, y) > MOST_UNEQUAL * min(x, y):
        raise SlideError(
            "no_mpp",
            f"{slide}: states {x:.4g} um/px across and {y:.4g} down, more than {MOST_UNEQUAL:g} times apart, which no square "
            "pixels are made of: give its resolution in a CSV with the columns slide,mpp, or leave it out",
        )
    if max(x, y) <= AS_IT_IS * min(x, y):
        x = y = resolution.mean
    _check_upsampling(slide, max(x, y) / config.mpp, max(x, y), config)
    level = best_level(levels, config.mpp / max(x, y))
    at = levels[level].downsample
    across, down = config.mpp / (x * at), config.mpp / (y * at)
    if all(1 / AS_IT_IS <= ratio <= AS_IT_IS for ratio in (across, down)):
        return Scale(level, 1.0, 1.0, (x + y) / 2 * at, resolution.source)
    return Scale(level, across, down, config.mpp, resolution.source)


def plan_grid(slide: str, levels: list[Level], resolution: Mpp | None, config: TilingConfig) -> Grid:
    """Every tile that fits into an image.

    Args:
        slide: For messages.
        levels: Of the slide, finest first.
        resolution: Of level 0; None where not known.
        config: Which tiles to cut.

    Raises:
        SlideError: "no_mpp", "needs_upsampling" or "too_small".
    """
    scale = plan_scale(slide, levels, resolution, config)
    read_px, read_down_px = (max(1, round(config.tile_px * ratio)) for ratio in (scale.across, scale.down))
    footprints_px = [edge * levels[scale.level].downsample for edge in (read_px, read_down_px)]
    width, height = levels[0].width_px, levels[0].height_px
    if width < footprints_px[0] or height < footprints_px[1]:
        covered = [str(math.ceil(edge - ROUNDING_PX)) for edge in footprints_px]
        raise SlideError(
            "too_small",
            f"{slide}: {width} x {height} px is smaller than one tile of {config.tile_px} px, which covers "
            f"{covered[0] if covered[0] == covered[1] else ' x '.join(covered)} px of it: lower data.tile_px"
            f"{'' if config.mpp is None else ' or data.mpp'}",
        )
    shares = {"step": 1 - config.overlap_px / config.tile_px, "margin": config.margin_px / config.tile_px}
    columns, rows = (
        _starts(edge, footprint_px, **shares, cover_edges=config.cover_edges)
        for edge, footprint_px in zip((width, height), footprints_px, strict=True)
    )
    return Grid(
        x_px=np.tile(columns, len(rows)),
        y_px=np.repeat(rows, len(columns)),
        level=scale.level,
        read_px=read_px,
        footprint_px=footprints_px[0],
        mpp=scale.mpp * read_px / (config.tile_px * scale.across),
        aspect=read_down_px / read_px,
        mpp_source=scale.source,
    )


def table_of(slide_row: SlideRow, grid: Grid, *, tissue: np.ndarray, tile_px: int | None = None, **columns) -> pa.Table:
    """Tiles as a table of TILE_SCHEMA: what the slide and the grid say, but for the columns that are given."""
    num_tiles = len(tissue)
    same = dict(slide=slide_row.slide, kind=slide_row.kind, patient=slide_row.patient, row=0)
    same |= dict(level=grid.level, read_px=grid.read_px, footprint_px=math.ceil(grid.footprint_px - ROUNDING_PX))
    same |= dict(mpp=grid.mpp, mpp_source=grid.mpp_source, aspect=grid.aspect, width_px=tile_px, height_px=tile_px)
    given = columns | dict(tissue=tissue)
    arrays = []
    for field in TILE_SCHEMA:
        if field.name in given:
            arrays.append(pa.array(given[field.name], type=field.type, from_pandas=field.name == "patient"))
        else:
            arrays.append(pa.repeat(pa.scalar(same[field.name], type=field.type), num_tiles))
    return pa.table(arrays, schema=TILE_SCHEMA)


def _starts(edge_px: int, footprint_px: float, *, step: float, margin: float, cover_edges: bool) -> np.ndarray:
    """int64: where tiles begin along one edge of an image.

    Args:
        step: From one to the next, in tiles.
        margin: How far the first and the last reach beyond the image, in tiles; to the nearest pixel.
    """
    first, last = -round(margin * footprint_px), math.floor(edge_px - footprint_px + ROUNDING_PX)
    if margin:
        last = round(edge_px - (1 - margin) * footprint_px)
    starts = np.arange(first, last + 1, math.ceil(footprint_px * step - ROUNDING_PX))
    return np.append(starts, last) if cover_edges and starts[-1] < last else starts


def _check_upsampling(slide: str, factor: float, finest_mpp: float, config: TilingConfig) -> None:
    """Refuse to enlarge by more than NEAR without leave, and with leave by more than its limit."""
    if factor <= (max(NEAR, config.max_upsampling) if config.allow_upsampling else NEAR):
        return
    if factor > config.max_upsampling:
        advice = (
            "leave it out; if that is not its resolution, give the right one in a CSV with the columns slide,mpp (enlarging "
        )
        advice += f"stops at data.max_upsampling {config.max_upsampling:g})"
    else:
        advice = "data.allow_upsampling true to enlarge it"
    raise SlideError(
        "needs_upsampling",
        f"{slide}: its finest level has {finest_mpp:.4g} um/px, {factor:.3g} times coarser than the wanted {config.mpp:g}: "
        f"set data.mpp {finest_mpp:.4g}, or {advice}",
    )
