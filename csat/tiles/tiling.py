"""The tiles of one slide: a grid at the wanted resolution, and how much tissue each tile has. No pixels are kept.

Where the tiles lie is worked out in `csat.tiles.grid`. With `whole`, a row is no tile of a grid but an image, or a piece of
tissue of a slide, at its own size. In a parquet each row is tiled by itself: one that does not fit is refused by itself.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import pyarrow as pa

from csat.errors import SlideError
from csat.slides.mpp import MPP_RANGE, choose_mpp, stated_mpp
from csat.slides.reader import SlideReader, open_slide, read_tile
from csat.slides.tissue import tissue_mask
from csat.storage.node_cache import SlideCache
from csat.storage.tables import ids_of, numbers_of
from csat.tiles.grid import SMALLEST_PX, TILE_SCHEMA, Grid, TilingConfig, plan_grid, plan_scale, table_of
from csat.tiles.sources import SlideRow

__all__ = ["TILE_SCHEMA", "Cut", "Grid", "TilingConfig", "cut_slide", "plan_grid", "read_tile", "tile_slide"]

REFUSED_SCHEMA = pa.schema([("row", pa.int32()), ("reason", pa.string()), ("message", pa.string())])
SPECK_SHARE = 0.01  # of the largest piece's tissue: a smaller piece is no piece of its own
GAP_SHARE = 0.01  # of the thumbnail's longer edge: pieces of tissue that are nearer to each other count as one


@dataclass(frozen=True)
class Cut:
    """What became of one slide."""

    tiles: pa.Table  # of TILE_SCHEMA, at least one row
    refused: pa.Table  # rows of a parquet that gave no tile, of REFUSED_SCHEMA: the reason is a code of QUARANTINE_REASONS


def tile_slide(row: SlideRow, config: TilingConfig, cache: SlideCache | None = None) -> pa.Table:
    """The tiles of `cut_slide`, without what it says of rows that were refused."""
    return cut_slide(row, config, cache).tiles


def cut_slide(row: SlideRow, config: TilingConfig, cache: SlideCache | None = None) -> Cut:
    """The tiles of one slide that hold enough tissue, row by row from the upper left.

    The encoded tiles of a parquet file were chosen by whoever wrote them: `min_tissue` does not apply to them, their
    `tissue` is NaN; a tile that is larger than wanted is cut by the same grid.

    Args:
        row: The slide.
        config: Which tiles to cut.
        cache: For slides in a bucket.

    Raises:
        SlideError: "missing", "unreadable", "no_mpp", "needs_upsampling", "too_small", "too_large" or "no_tissue".
    """
    source_mpp = config.source_mpp if row.source_mpp is None else row.source_mpp
    reader = open_slide(row.slide, row.kind, mpp=row.mpp, source_mpp=source_mpp, cache=cache)
    try:
        if reader.kind == "parquet":
            return _cut_parquet(row, config, reader, source_mpp)
        tiles = _tile_whole(row, config, reader) if config.whole else _tile_grid(row, config, reader)
    finally:
        reader.close()
    return Cut(tiles, REFUSED_SCHEMA.empty_table())


def _tile_grid(row: SlideRow, config: TilingConfig, reader: SlideReader) -> pa.Table:
    """Those tiles of the grid that hold enough tissue."""
    grid = plan_grid(row.slide, reader.levels, reader.resolution, config)
    width, height = reader.levels[0].width_px, reader.levels[0].height_px
    mask = tissue_mask(reader.thumbnail(config.tissue_thumbnail_px))
    across, down = grid.footprint_px / width, grid.footprint_px * grid.aspect / height
    tissue = tissue_fraction(mask, grid.x_px / width, grid.y_px / height, across, down)
    keep = tissue >= config.min_tissue
    if not keep.any():
        raise SlideError(
            "no_tissue",
            f"{row.slide}: none of its {len(tissue)} tiles is at least {config.min_tissue:.0%} tissue (the most is "
            f"{tissue.max():.0%}): lower data.min_tissue, or leave the slide out",
        )
    columns = dict(x_px=grid.x_px[keep], y_px=grid.y_px[keep])
    return table_of(row, grid, tissue=tissue[keep].astype(np.float32), tile_px=config.tile_px, **columns)


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


def _tile_whole(row: SlideRow, config: TilingConfig, reader: SlideReader) -> pa.Table:
    """The image as one row, or one row for each piece of its tissue."""
    scale = plan_scale(row.slide, reader.levels, reader.resolution, config)
    downsample = reader.levels[scale.level].downsample
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
            f"tissue (the most is {tissue.max(initial=0):.0%}): lower data.min_tissue, or leave the slide out",
        )
    left, top = np.floor(edges[keep, 0] * width).astype(int), np.floor(edges[keep, 1] * height).astype(int)
    right, bottom = np.ceil(edges[keep, 2] * width), np.ceil(edges[keep, 3] * height)
    sizes = np.stack([(right - left) / scale.across, (bottom - top) / scale.down], axis=1) / downsample
    sizes = np.floor(sizes + 1e-6).astype(int)
    _check_sizes(row.slide, sizes, config)
    longer_px = sizes.max(axis=1) * scale.across  # at that level, counted across
    columns = dict(x_px=left, y_px=top, width_px=sizes[:, 0], height_px=sizes[:, 1])
    columns |= dict(
        read_px=np.floor(longer_px + 1e-6).astype(int), footprint_px=np.ceil(longer_px * downsample - 1e-6).astype(int)
    )
    grid = Grid(left, top, scale.level, 0, 0.0, scale.mpp, scale.down / scale.across, scale.source)
    return table_of(row, grid, tissue=tissue[keep].astype(np.float32), **columns)


def _check_sizes(slide: str, sizes: np.ndarray, config: TilingConfig) -> None:
    """Refuse an image with a piece that is too large or too small. sizes: int `[n, 2]`, width and height as they are seen."""
    what = "the image" if config.whole == "image" else "a piece of its tissue"
    where = "as it is" if config.mpp is None else f"at {config.mpp:g} um/px"
    if sizes.max() > config.max_px:
        width, height = sizes[sizes.max(axis=1).argmax()]
        raise SlideError(
            "too_large",
            f"{slide}: {what} has {width} x {height} px {where}, and data.max_px is {config.max_px}: raise it (memory grows "
            "with the area of the largest image), or choose a coarser data.mpp",
        )
    if sizes.min() < SMALLEST_PX:
        width, height = sizes[sizes.min(axis=1).argmin()]
        raise SlideError(
            "too_small",
            f"{slide}: {what} has {width} x {height} px {where}, and the shorter edge must have {SMALLEST_PX} px or more: "
            "choose a finer data.mpp, or leave the slide out",
        )


def _cut_parquet(row: SlideRow, config: TilingConfig, reader: SlideReader, source_mpp: float | None) -> Cut:
    """Tiles of a parquet of encoded images: the same grid in every row of one resolution."""
    if config.whole:
        raise SlideError("unreadable", f"{row.slide}: a parquet holds tiles, and data.whole wants images: leave it out")
    facts = reader.metadata()
    patients = _row_patients(row, facts)
    stated, misfits = _row_mpps(row, config, facts)
    tables, refused = [], [_refused(row.slide, "no_mpp", misfits)]
    fitting = np.flatnonzero(~np.isin(np.arange(len(stated)), list(misfits)))
    values, value_of = np.unique(stated[fitting], return_inverse=True)  # NaN, which states nothing, counts as one value
    for index, mpp in enumerate(values.tolist()):
        rows = fitting[value_of == index]
        try:
            resolution = choose_mpp(given=row.mpp, stated=stated_mpp(mpp), source_mpp=source_mpp)
            grid = plan_grid(row.slide, reader.levels, resolution, config)
        except SlideError as error:
            if len(rows) == reader.num_rows:
                raise
            text = str(error).removeprefix(f"{row.slide}: ")
            refused.append(_refused(row.slide, error.reason, dict.fromkeys(rows.tolist(), text)))
            continue
        per_row = len(grid.x_px)
        columns = dict(x_px=np.tile(grid.x_px, len(rows)), y_px=np.tile(grid.y_px, len(rows)), row=np.repeat(rows, per_row))
        tissue = np.full(per_row * len(rows), np.nan, dtype=np.float32)
        columns |= dict(patient=np.repeat(patients[rows], per_row), tissue=tissue, tile_px=config.tile_px)
        tables.append(table_of(row, grid, **columns))
    rest = pa.concat_tables(refused).sort_by("row")
    if not tables:
        first = rest.slice(0, 1).to_pylist()[0]
        raise SlideError(first["reason"], f"{row.slide}: none of its {rest.num_rows} rows fits; the first: {first['message']}")
    table = pa.concat_tables(tables)
    return Cut(table.take(np.argsort(table["row"].to_numpy(), kind="stable")), rest)


def _row_patients(row: SlideRow, facts: pa.Table) -> np.ndarray:
    """object `[rows]`: the patient of each row, else the slide that it came from, which groups tiles as well; else None."""
    patients = np.full(facts.num_rows, row.patient, dtype=object)
    if row.patient is None:
        for name in ("slide", "patient"):
            if name in facts.column_names:
                ids = np.array(ids_of(facts[name]), dtype=object)
                patients = np.where(ids == None, patients, ids)  # noqa: E711 (by element)
    return patients


def _row_mpps(row: SlideRow, config: TilingConfig, facts: pa.Table) -> tuple[np.ndarray, dict[int, str]]:
    """um/px that each row states, float64 `[rows]`, NaN for nothing; and row → why, of those that hold no resolution."""
    if row.mpp is not None or "mpp" not in facts.column_names:
        return np.full(facts.num_rows, np.nan), {}
    stated, others = numbers_of(facts["mpp"])
    is_wrong = ~np.isnan(stated) & ~((stated >= MPP_RANGE[0]) & (stated <= MPP_RANGE[1]))
    others |= {index: float(stated[index]) for index in np.flatnonzero(is_wrong).tolist()}
    stated[is_wrong] = np.nan
    if config.mpp is None:  # pixels as they are: nobody asks for their resolution
        return stated, {}
    expected = f"expected micrometres per pixel, {MPP_RANGE[0]} to {MPP_RANGE[1]}, or nothing where it is not known"
    return stated, {index: f"{cell!r} is no resolution: {expected}" for index, cell in others.items()}


def _refused(slide: str, reason: str, texts: dict[int, str]) -> pa.Table:
    """Rows of a parquet that give no tile: row → why."""
    messages = [f"{slide}, row {row}, column mpp: {text}" for row, text in texts.items()]
    return pa.table([list(texts), [reason] * len(texts), messages], schema=REFUSED_SCHEMA)
