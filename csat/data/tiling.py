"""Where the tiles of one slide lie: a grid at the wanted resolution, and how much tissue each tile has. No pixels are kept.

The wanted resolution is read from the *best level*: the coarsest that is not coarser than wanted (within 1%), then shrunk to
size. Enlarging a slide that is too coarse has to be allowed by name. Positions are in level-0 pixels; tiles that would stick
out of the slide are not made. The step between tiles is a whole number of level-0 pixels, rounded up: tiles overlap by what
was asked for or a fraction of a pixel less, never more.

With `whole`, a row is no tile of a grid but an image, or a piece of tissue of a slide, at its own size.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np
import pyarrow as pa

from csat.data.images import Level
from csat.data.mpp import MPP_RANGE, check_mpp
from csat.data.parquet_tiles import ids_of
from csat.data.slide_cache import SlideCache
from csat.data.slides import LEVEL_TOLERANCE, SlideReader, no_mpp_error, open_slide, read_tile
from csat.data.sources import SlideRow
from csat.data.tissue import tissue_mask
from csat.errors import ConfigError, SlideError

__all__ = ["TILE_SCHEMA", "Grid", "TilingConfig", "plan_grid", "read_tile", "tile_slide"]

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
    ]
)
SMALLEST_PX = 16  # edge of a tile, and of an image that is seen as a whole
SPECK_SHARE = 0.01  # of the largest piece's tissue: a smaller piece is no piece of its own
GAP_SHARE = 0.01  # of the thumbnail's longer edge: pieces of tissue that are nearer to each other count as one


@dataclass(frozen=True, kw_only=True)
class TilingConfig:
    """Which tiles to cut. Set as --data.NAME."""

    mpp: float | None = 0.5  # wanted resolution, um/px; null: pixels as they are
    tile_px: int = 256  # edge of a tile, px at the wanted resolution; not used with whole
    overlap_px: int = 0  # how far neighbouring tiles overlap, px at the wanted resolution
    min_tissue: float = 0.5  # smallest share of tissue, 0 to 1; 0 keeps every tile
    allow_upsampling: bool = False  # enlarge slides whose finest level is coarser than wanted
    source_mpp: float | None = None  # resolution of slides that state none, um/px
    tissue_thumbnail_px: int = 2048  # longer edge of the picture in which tissue is looked for, px
    whole: str | None = None  # image or tissue: no tiles, but each image, or piece of tissue, at its own size
    max_px: int = 4096  # with whole: longest edge at the wanted resolution; a larger image is quarantined, never shrunk

    def __post_init__(self):
        check_mpp(self.mpp, "--data.mpp")
        check_mpp(self.source_mpp, "--data.source_mpp")
        if self.tile_px < SMALLEST_PX:
            raise ConfigError(f"--data.tile_px must be at least {SMALLEST_PX} px, not {self.tile_px}")
        if self.whole not in (None, "image", "tissue"):
            raise ConfigError(f"--data.whole is image, tissue or null, not {self.whole!r}")
        if self.whole and self.overlap_px:
            raise ConfigError("--data.overlap_px is about tiles of a grid: leave it out with --data.whole")
        if self.max_px < SMALLEST_PX:
            raise ConfigError(f"--data.max_px must be at least {SMALLEST_PX} px, not {self.max_px}")
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
        SlideError: "missing", "unreadable", "no_mpp", "needs_upsampling", "too_small", "too_large" or "no_tissue".
    """
    reader = open_slide(row.slide, row.kind, mpp=row.mpp, source_mpp=config.source_mpp, cache=cache)
    try:
        if config.whole:
            return _tile_whole(row, config, reader)
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
    columns = dict(x_px=grid.x_px[keep], y_px=grid.y_px[keep])
    return _table(row, grid, tissue=tissue[keep].astype(np.float32), tile_px=config.tile_px, **columns)


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


def find_pieces(mask: np.ndarray) -> np.ndarray:
    """The separate pieces of tissue of a thumbnail.

    Pieces that nearly touch (GAP_SHARE) count as one; those of less than SPECK_SHARE of the largest's tissue are specks.

    Args:
        mask: bool `[h, w]`, of `tissue_mask`.

    Returns:
        int `[n, 4]`: left, top, right, bottom (beyond the last) in the mask's pixels, from the upper left; n may be 0.
    """
    reach = max(1, round(GAP_SHARE * max(mask.shape) / 2))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    _, label = cv2.connectedComponents(cv2.dilate(mask.astype(np.uint8), kernel))
    label = np.where(mask, label, 0)
    areas = np.bincount(label.ravel())
    areas[0] = 0
    boxes = []
    for piece in np.flatnonzero(areas > max(0, SPECK_SHARE * areas.max())):
        rows, columns = (np.flatnonzero((label == piece).any(axis=axis)) for axis in (1, 0))
        boxes.append((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
    return np.array(sorted(boxes, key=lambda box: (box[1], box[0])), dtype=np.int64).reshape(-1, 4)


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


def _tile_whole(row: SlideRow, config: TilingConfig, reader: SlideReader) -> pa.Table:
    """The image as one row, or one row for each piece of its tissue."""
    if reader.kind == "parquet":
        raise SlideError("unreadable", f"{row.slide}: a parquet holds tiles, and --data.whole wants images: leave it out")
    # A pixel at the wanted resolution as the unit of the grid's arithmetic: the level, and the scale from it.
    level, read_px, mpp = _best_level(row.slide, reader.levels, reader.mpp, config)
    shrink = read_px / config.tile_px  # pixels of that level for one pixel of the image as it is seen
    scale = shrink * reader.levels[level].downsample  # of level 0
    width, height = reader.levels[0].width_px, reader.levels[0].height_px
    mask = tissue_mask(reader.thumbnail(config.tissue_thumbnail_px))
    boxes = np.array([[0, 0, mask.shape[1], mask.shape[0]]]) if config.whole == "image" else find_pieces(mask)
    edges = boxes / np.tile(mask.shape[::-1], 2)  # as shares of the image
    tissue = np.array(
        [float(tissue_fraction(mask, *[np.array([v]) for v in box[:2]], *(box[2:] - box[:2]))[0]) for box in edges]
    )
    keep = tissue >= config.min_tissue
    if not keep.any():
        raise SlideError(
            "no_tissue",
            f"{row.slide}: less than {config.min_tissue:.0%} of {'it' if config.whole == 'image' else 'each piece of it'} is "
            f"tissue (the most is {tissue.max(initial=0):.0%}): lower --data.min_tissue, or leave the slide out",
        )
    left, top = np.floor(edges[keep, 0] * width).astype(int), np.floor(edges[keep, 1] * height).astype(int)
    right, bottom = np.ceil(edges[keep, 2] * width), np.ceil(edges[keep, 3] * height)
    sizes = np.stack([right - left, bottom - top], axis=1) / scale
    sizes = np.floor(sizes + 1e-6).astype(int)
    _check_sizes(row.slide, sizes, config)
    longer = sizes.max(axis=1)
    columns = dict(x_px=left, y_px=top, width_px=sizes[:, 0], height_px=sizes[:, 1])
    columns |= dict(
        read_px=np.floor(longer * shrink + 1e-6).astype(int), footprint_px=np.ceil(longer * scale - 1e-6).astype(int)
    )
    grid = Grid(left, top, level, 0, 0.0, mpp)
    return _table(row, grid, tissue=tissue[keep].astype(np.float32), **columns)


def _check_sizes(slide: str, sizes: np.ndarray, config: TilingConfig) -> None:
    """Refuse an image with a piece that is too large or too small. sizes: int `[n, 2]`, width and height as they are seen."""
    what = "the image" if config.whole == "image" else "a piece of its tissue"
    where = "as it is" if config.mpp is None else f"at {config.mpp:g} um/px"
    if sizes.max() > config.max_px:
        width, height = sizes[sizes.max(axis=1).argmax()]
        raise SlideError(
            "too_large",
            f"{slide}: {what} has {width} x {height} px {where}, and --data.max_px is {config.max_px}: raise it (memory grows "
            "with the area of the largest image), or choose a coarser --data.mpp",
        )
    if sizes.min() < SMALLEST_PX:
        width, height = sizes[sizes.min(axis=1).argmin()]
        raise SlideError(
            "too_small",
            f"{slide}: {what} has {width} x {height} px {where}, and the shorter edge must have {SMALLEST_PX} px or more: "
            "choose a finer --data.mpp, or leave the slide out",
        )


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
                ids = np.array(ids_of(facts[name]), dtype=object)
                patients = np.where(ids == None, patients, ids)  # noqa: E711 (by element)
    tables = []
    for mpp in np.unique(mpps):  # NaN counts as one value
        rows = np.flatnonzero(np.isnan(mpps) if np.isnan(mpp) else mpps == mpp)
        grid = plan_grid(row.slide, reader.levels, None if np.isnan(mpp) else float(mpp), config)
        per_row = len(grid.x_px)
        columns = dict(x_px=np.tile(grid.x_px, len(rows)), y_px=np.tile(grid.y_px, len(rows)), row=np.repeat(rows, per_row))
        tissue = np.full(per_row * len(rows), np.nan, dtype=np.float32)
        columns |= dict(patient=np.repeat(patients[rows], per_row), tissue=tissue, tile_px=config.tile_px)
        tables.append(_table(row, grid, **columns))
    table = pa.concat_tables(tables)
    return table.take(np.argsort(table["row"].to_numpy(), kind="stable"))


def _table(
    slide_row: SlideRow, grid: Grid, *, tissue: np.ndarray, tile_px: int | None = None, patient=None, **columns
) -> pa.Table:
    num_tiles = len(tissue)
    same = dict(slide=slide_row.slide, kind=slide_row.kind, level=grid.level, read_px=grid.read_px, mpp=grid.mpp, row=0)
    same |= dict(patient=slide_row.patient, footprint_px=math.ceil(grid.footprint_px - 1e-6))
    same |= dict(width_px=tile_px, height_px=tile_px)
    given = columns | dict(tissue=tissue) | ({} if patient is None else dict(patient=patient))
    arrays = []
    for field in TILE_SCHEMA:
        if field.name in given:
            arrays.append(pa.array(given[field.name], type=field.type, from_pandas=field.name == "patient"))
        else:
            arrays.append(pa.repeat(pa.scalar(same[field.name], type=field.type), num_tiles))
    return pa.table(arrays, schema=TILE_SCHEMA)
