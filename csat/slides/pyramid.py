"""A tile at a fraction of its resolution, from the level of the slide's pyramid that was made for it.

The scanner's lower level and the mean over the finer one's pixels show the same tissue, but not the same pixels: each level is
compressed, and often filtered, by itself. A student that will read the lower level should learn from it.
"""

import numpy as np

from csat.slides.reader import AS_IT_IS, SlideReader, best_level, read_tile
from csat.slides.resizing import shrunk


def read_shrunk(
    reader: SlideReader,
    tile: np.ndarray,
    *,
    x_px: int,
    y_px: int,
    level: int,
    read_px: int,
    row: int,
    factor: int,
    aspect: float = 1.0,
) -> np.ndarray:
    """The field of a tile at 1 / `factor` of its resolution.

    Read from the best level for that (see `best_level`); where that is the level of the tile itself (a plain image, a pyramid
    with large steps), it is the mean over squares of the tile's pixels.

    Args:
        reader: Of the tile's slide.
        tile: uint8 `[height, width, 3]`, without padding; other arguments as it was read.
        x_px: Left edge in level-0 pixels.
        y_px: Upper edge in level-0 pixels.
        level: That it was read from.
        read_px: Longer edge that was read there.
        row: Row of a parquet.
        factor: Whole.
        aspect: As the tile was read.

    Returns:
        uint8 `[ceil(height / factor), ceil(width / factor), 3]`.

    Raises:
        SlideError: "unreadable".
    """
    height, width = tile.shape[:2]
    size = (-(-width // factor), -(-height // factor))
    scale = reader.levels[level].downsample * read_px / max(width, height)  # level-0 pixels for one of the tile
    wanted = scale * factor
    lower = best_level(reader.levels, wanted * min(1.0, aspect))  # in the direction in which the pixels are coarser
    if lower <= level:
        return _mean_over_squares(tile, factor)
    ratio = wanted / reader.levels[lower].downsample
    is_close = 1 / AS_IT_IS <= ratio <= AS_IT_IS
    longer_px = max(size) if is_close else round(max(size) * ratio)
    return read_tile(reader, x_px=x_px, y_px=y_px, level=lower, read_px=longer_px, tile_px=size, row=row, aspect=aspect)


def _mean_over_squares(tile: np.ndarray, factor: int) -> np.ndarray:
    below, beside = -tile.shape[0] % factor, -tile.shape[1] % factor
    padded = np.pad(tile, ((0, below), (0, beside), (0, 0)), "edge") if below or beside else tile
    return shrunk(padded, (padded.shape[1] // factor, padded.shape[0] // factor))
