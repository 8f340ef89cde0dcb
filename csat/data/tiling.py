"""Where the tiles of one slide lie: a grid at the wanted resolution, and how much tissue each tile has. No pixels are kept.

The wanted resolution is read from the *best level*: the coarsest that is not coarser than wanted (within 1%), then shrunk to
size. Enlarging a slide that is too coarse has to be allowed by name. Positions are in level-0 pixels; tiles that would stick
out of the slide are not made. The step between tiles is a whole number of level-0 pixels, rounded up: tiles overlap by what
was asked for or a fraction of a pixel less, never more.
"""

import math
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from csat.data.images import MPP_RANGE, Level
from csat.data.slide_cache import SlideCache
from csat.data.slides import SlideReader, no_mpp_error, open_slide, read_tile
from csat.data.sources import SlideRow
from csat.data.tissue import tissue_mask
from csat.errors import ConfigError, SlideError

__all__ = ["TILE_SCHEMA", "Grid", "TilingConfig", "plan_grid", "read_tile", "tile_slide"]

LEVEL_TOLERANCE = 1.01  # a level this much coarser than wanted still serves, and is then read without resampling

TILE_SCHEMA = pa.schema(
    [
        ("slide", pa.string()),  # absolute path or URI
        ("kind", pa.string()),  # how to open it, see SlideRow
        ("patient", pa.string()),  # null where not known
        ("x_px", pa.int32()),  # left edge, level-0 pixels
        ("y_px", pa.int32()),  # upper edge, level-0 pixels
        ("level", pa.int8()),  # pyramid level to read
        ("read_px", pa.int32()),  # edge to read at that level, then resampled to tile_px
        ("footprint_px", pa.int32()),  # edge at level 0, rounded up
        ("mpp", pa.float32()),  # of the tile as the teacher sees it, um/px; NaN where not known
        ("tissue", pa.float32()),  # share of the tile that is tissue; NaN where it was not looked at (parquet)
        ("row", pa.int32()),  # row of a parquet, else 0
    ]
)


@dataclass(frozen=True, kw_only=True)
class TilingConfig:
    """Which tiles to cut. Set as --data.NAME."""

    mpp: float | None = 0.5  # wanted resolution, um/px; null: pixels as they are
    tile_px: int = 256  # edge of a tile, px at the wanted resolution
    overlap_px: int = 0  # how far neighbouring tiles overlap, px at the wanted resolution
    min_tissue: float = 0.5  # smallest share of tissue, 0 to 1; 0 keeps every tile
    allow_upsampling: bool = False  # enlarge slides whose finest level is coarser than wanted
    source_mpp: float | None = None  # resolution of slides that state none, um/px
    tissue_thumbnail_px: int = 2048  # longer edge of the picture in which tissue is looked for, px

    def __post_init__(self):
        for name, mpp in (("mpp", self.mpp), ("source_mpp", self.source_mpp)):
            if mpp is not None and not MPP_RANGE[0] <= mpp <= MPP_RANGE[1]:
                raise ConfigError(
                    f"--data.{name} is in um/px, {MPP_RANGE[0]} to {MPP_RANGE[1]} (40x is about 0.25), not {mpp}"
                )
        if self.tile_px < 16:
            raise ConfigError(f"--data.tile_px must be at least 16 px, not {self.tile_px}")
        if not 0 <= self.overlap_px < self.tile_px:
            raise ConfigError(f"--data.overlap_px must be 0 to tile_px - 1 = {self.tile_px - 1}, not {self.overlap_px}")
        if not 0 <= self.min_tissue <= 1:
            raise ConfigError(f"--data.min_tissue is a share, 0 to 1, not {self.min_tissue}")
        if self.tissue_thumbnail_px < 64:
            raise ConfigError(f"--data.tissue_thumbnail_px must be at least 64 px, not {self.tissue_thumbnail_px}")


@dataclass(frozen=True)
class Grid:
    """All tile positions of one image, and how each is read."""

    x_px: np.ndarray  # int64 [n], row by row from the upper left, level-0 px
    y_px: np.ndarray  # int64 [n]
    level: int  # to read
    read_px: int  # edge at that level
    footprint_px: float  # edge at level 0
    mpp: float  # of the finished tile; NaN where not known


def tile_slide(row: SlideRow, config: TilingConfig, cache: SlideCache | None = None) -> pa.Table:
    """The tiles of one slide that hold enough tissue, row by row from the upper left.

    The encoded tiles of a parquet file were chosen by whoever wrote them: `min_tissue` does not apply to them, their
    `tissue` is NaN; a tile that is larger than wanted is cut by the same grid.

    Args:
        row: The slide.
        config: Which tiles to cut.
        cache: For slides in a bucket.

    Returns:
        A table of TILE_SCHEMA with at least one row.

    Raises:
        SlideError: "missing", "unreadable", "no_mpp", "needs_upsampling", "too_small" or "no_tissue".
    """
    reader = open_slide(row.slide, row.kind, mpp=row.mpp, source_mpp=config.source_mpp, cache=cache)
    try:
        if reader.kind == "parquet":
            return _tile_parquet(row, config, reader)
        grid = plan_grid(row.slide, reader.levels, reader.mpp, config)
        width, height = reader.levels[0].width_px, reader.levels[0].height_px
        mask = tissue_mask(reader.thumbnail(config.tissue_thumbnail_px))
    finally:
        reader.close()
    tissue = tissue_fraction(
        mask, grid.x_px / width, grid.y_px / height, grid.footprint_px / width, grid.footprint_px / height
    )
    keep = tissue >= config.min_tissue
    if not keep.any():
        raise SlideError(
            "no_tissue",
            f"{row.slide}: none of its {len(tissue)} tiles is at least {config.min_tissue:.0%} tissue (the most is "
            f"{tissue.max():.0%}): lower --data.min_tissue, or leave the slide out",
        )
    return _table(row, grid, tissue=tissue[keep].astype(np.float32), x_px=grid.x_px[keep], y_px=grid.y_px[keep])


def plan_grid(slide: str, levels: list[Level], source_mpp: float | None, config: TilingConfig) -> Grid:
    """Every tile that fits into an image.

    Args:
        slide: For messages.
        levels: Of the slide, finest first.
        source_mpp: um/px of level 0; None where not known.
        config: Which tiles to cut.

    Raises:
        SlideError: "no_mpp", "needs_upsampling" or "too_small".
    """
    level, read_px, mpp = _best_level(slide, levels, source_mpp, config)
    footprint_px = read_px * levels[level].downsample
    step_px = math.ceil(footprint_px * (config.tile_px - config.overlap_px) / config.tile_px - 1e-6)
    width, height = levels[0].width_px, levels[0].height_px
    if min(width, height) < footprint_px:
        raise SlideError(
            "too_small",
            f"{slide}: {width} x {height} px is smaller than one tile of {config.tile_px} px, which covers "
            f"{math.ceil(footprint_px)} px of it: lower --data.tile_px{'' if config.mpp is None else ' or --data.mpp'}",
        )
    columns = np.arange(0, math.floor(width - footprint_px) + 1, step_px)
    rows = np.arange(0, math.floor(height - footprint_px) + 1, step_px)
    return Grid(np.tile(columns, len(rows)), np.repeat(rows, len(columns)), level, read_px, footprint_px, mpp)


def tissue_fraction(mask: np.ndarray, left, top, width: float, height: float) -> np.ndarray:
    """Share of tissue in rectangles of a mask, exact to fractions of the mask's pixels.

    Args:
        mask: bool `[h, w]`.
        left: float `[n]`, as a share of the mask's width; `top` of its height.
        top: float `[n]`.
        width: Of every rectangle, as a share of the mask's width; `height` of its height.
        height: See `width`.

    Returns:
        float64 `[n]`, in 0 to 1.
    """
    mask_height, mask_width = mask.shape
    total = np.zeros((mask_height + 1, mask_width + 1))
    total[1:, 1:] = mask.cumsum(axis=0, dtype=np.int64).cumsum(axis=1)

    def up_to(y: np.ndarray, x: np.ndarray) -> np.ndarray:  # bilinear in the integral image: exact for a mask of squares
        y, x = np.clip(y * mask_height, 0, mask_height), np.clip(x * mask_width, 0, mask_width)
        j, i = np.minimum(y.astype(np.intp), mask_height - 1), np.minimum(x.astype(np.intp), mask_width - 1)
        v, u = y - j, x - i
        upper = total[j, i] * (1 - u) + total[j, i + 1] * u
        return upper * (1 - v) + (total[j + 1, i] * (1 - u) + total[j + 1, i + 1] * u) * v

    left, top = np.asarray(left, dtype=np.float64), np.asarray(top, dtype=np.float64)
    right, bottom = left + width, top + height
    inside = up_to(bottom, right) - up_to(top, right) - up_to(bottom, left) + up_to(top, left)
    return np.clip(inside / (width * mask_width * height * mask_height), 0.0, 1.0)


def _best_level(slide: str, levels: list[Level], source_mpp: float | None, config: TilingConfig) -> tuple[int, int, float]:
    """(level, edge to read there, um/px of the finished tile)."""
    if config.mpp is None:
        return 0, config.tile_px, math.nan if source_mpp is None else source_mpp
    if source_mpp is None:
        raise no_mpp_error(slide)
    level_mpps = [source_mpp * level.downsample for level in levels]
    fitting = [index for index, mpp in enumerate(level_mpps) if mpp <= config.mpp * LEVEL_TOLERANCE]
    if not fitting and not config.allow_upsampling:
        raise SlideError(
            "needs_upsampling",
            f"{slide}: its finest level has {source_mpp:.4g} um/px, coarser than the wanted {config.mpp:g}: set --data.mpp "
            f"{source_mpp:.4g}, or --data.allow_upsampling true to enlarge it",
        )
    level = max(fitting, key=level_mpps.__getitem__) if fitting else 0
    ratio = config.mpp / level_mpps[level]
    is_close = 1 / LEVEL_TOLERANCE <= ratio <= LEVEL_TOLERANCE
    read_px = config.tile_px if is_close else max(1, round(config.tile_px * ratio))
    return level, read_px, level_mpps[level] * read_px / config.tile_px


def _tile_parquet(row: SlideRow, config: TilingConfig, reader: SlideReader) -> pa.Table:
    """Tiles of a parquet of encoded images: the same grid in every row, by the row's own mpp where the file has it."""
    facts = reader.metadata()
    mpps = np.full(reader.num_rows, np.nan if reader.mpp is None else reader.mpp)
    if row.mpp is None and "mpp" in facts.column_names:
        own = np.asarray(facts["mpp"].to_pylist(), dtype=np.float64)
        mpps = np.where((own >= MPP_RANGE[0]) & (own <= MPP_RANGE[1]), own, mpps)
    patients = np.full(reader.num_rows, row.patient, dtype=object)
    if row.patient is None:  # the slide that a tile came from groups tiles as well as a patient does
        for name in ("slide", "patient"):
            if name in facts.column_names:
                patients = np.where(facts[name].is_valid().to_numpy(), facts[name].to_numpy(), patients)
    tables = []
    for mpp in np.unique(mpps):  # NaN counts as one value
        rows = np.flatnonzero(np.isnan(mpps) if np.isnan(mpp) else mpps == mpp)
        grid = plan_grid(row.slide, reader.levels, None if np.isnan(mpp) else float(mpp), config)
        per_row = len(grid.x_px)
        columns = dict(x_px=np.tile(grid.x_px, len(rows)), y_px=np.tile(grid.y_px, len(rows)), row=np.repeat(rows, per_row))
        tissue = np.full(per_row * len(rows), np.nan, dtype=np.float32)
        tables.append(_table(row, grid, tissue=tissue, patient=np.repeat(patients[rows], per_row), **columns))
    table = pa.concat_tables(tables)
    return table.take(np.argsort(table["row"].to_numpy(), kind="stable"))


def _table(slide_row: SlideRow, grid: Grid, *, tissue: np.ndarray, patient=None, **columns) -> pa.Table:
    num_tiles = len(tissue)
    same = dict(slide=slide_row.slide, kind=slide_row.kind, level=grid.level, read_px=grid.read_px, mpp=grid.mpp, row=0)
    same |= dict(patient=slide_row.patient, footprint_px=math.ceil(grid.footprint_px - 1e-6))
    given = columns | dict(tissue=tissue) | ({} if patient is None else dict(patient=patient))
    arrays = []
    for field in TILE_SCHEMA:
        if field.name in given:
            arrays.append(pa.array(given[field.name], type=field.type, from_pandas=field.name == "patient"))
        else:
            arrays.append(pa.repeat(pa.scalar(same[field.name], type=field.type), num_tiles))
    return pa.table(arrays, schema=TILE_SCHEMA)
