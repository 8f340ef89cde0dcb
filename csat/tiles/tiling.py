"""The tiles of one slide: a grid at the wanted resolution, and how much tissue each tile has. No pixels are kept.

Where the tiles lie is worked out in `csat.tiles.grid`. With `whole`, a row is no tile of a grid but an image, or a piece of
tissue of a slide, at its own size. Rows of a parquet: `csat.tiles.parquet_rows`.
"""

import numpy as np
import pyarrow as pa

from csat.errors import SlideError
from csat.slides.reader import SlideReader, open_slide
from csat.slides.tissue import tissue_mask
from csat.slides.tissue_areas import find_pieces, tissue_fraction
from csat.storage.node_cache import SlideCache
from csat.tiles.grid import SMALLEST_PX, Grid, TilingConfig, plan_grid, plan_scale, table_of
from csat.tiles.parquet_rows import REFUSED_SCHEMA, Cut, cut_parquet
from csat.tiles.sources import SlideRow


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
            return cut_parquet(row, config, reader, source_mpp)
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
    if config.margin_px:
        tissue = np.minimum(tissue / (_inside(grid.x_px / width, across) * _inside(grid.y_px / height, down)), 1.0)
    keep = tissue >= config.min_tissue
    if not keep.any():
        raise SlideError(
            "no_tissue",
            f"{row.slide}: none of its {len(tissue)} tiles is at least {config.min_tissue:.0%} tissue (the most is "
            f"{tissue.max():.0%}): lower data.min_tissue, or leave the slide out",
        )
    columns = dict(x_px=grid.x_px[keep], y_px=grid.y_px[keep])
    return table_of(row, grid, tissue=tissue[keep].astype(np.float32), tile_px=config.tile_px, **columns)


def _inside(start: np.ndarray, length: float) -> np.ndarray:
    """Which share of each stretch along an axis lies on the slide, 0 to 1. All in edges of the slide."""
    return (np.minimum(start + length, 1) - np.maximum(start, 0)) / length


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
