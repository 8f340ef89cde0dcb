"""The spatial view of a tile: the eight symmetries of the square, for tiles and responses alike.

One view is drawn per tile (`d4_of`), from its position alone. The tile and every response go through the same view, and a
response that is a vector field (HoVer-Net's horizontal and vertical maps) also changes its signs and swaps its channels.

**The index of a symmetry** is `4 * transpose + 2 * flip_rows + flip_columns`, and the operations act in that order:
first rows and columns are exchanged, then the image is turned upside down, then left and right are exchanged. Index 0 is
the identity; 3 is the rotation by 180 degrees; 6 and 5 are those by 90 degrees anticlockwise and clockwise.
"""

import numpy as np
import torch
from torch import Tensor

from csat.columns import of_arrays
from csat.responses import Symmetry
from csat.views.draws import hash_positions

TRANSPOSE, FLIP_ROWS, FLIP_COLUMNS = 4, 2, 1  # bits of the index
D4_STREAM = 0  # which of a tile's random streams picks its view


def d4_of(positions: np.ndarray | Tensor, seed: int) -> np.ndarray | Tensor:
    """The symmetry under which the tile at each position is seen.

    Args:
        positions: int64 `[B]`, place in the run's plan (another one in each epoch, so another view).
        seed: The run's seed.

    Returns:
        uint8 `[B]` in 0..7, in numpy or torch as `positions`; the two agree.
    """
    bits = hash_positions(positions, seed=seed, stream=D4_STREAM)
    if isinstance(bits, Tensor):
        return ((bits >> 61) & 7).to(torch.uint8)
    return (bits >> np.uint64(61)).astype(np.uint8)


def invert_d4(index: int) -> int:
    """The symmetry that undoes `index`: itself, but for the two quarter turns, which undo each other."""
    return {5: 6, 6: 5}.get(index, index)


def apply_d4(x: Tensor, index: Tensor, symmetry: Symmetry = Symmetry.SCALAR) -> Tensor:
    """Put every sample of a batch through its own symmetry.

    On the CPU each sample is copied once, turned (8 times as fast as selecting). Elsewhere the choice is made by selecting
    between flipped and unflipped batches: the index stays on the device, nothing waits, and it compiles into one gather.

    Args:
        x: `[B, C, n, n]` of any dtype, or `[B, C]` for a response to the tile as a whole; carries no gradient.
        index: integers `[B]` in 0..7, on the device of `x`.
        symmetry: SCALAR: values move with the pixels. HV: channels are (horizontal, vertical), positive to the right and
            downwards; they move, swap under a transposition and change sign under a flip.

    Returns:
        The same shape and dtype.

    Raises:
        ValueError: the symmetry is NONE (the teacher has to see the transformed tile itself), or `x` is not square.
    """
    if symmetry == Symmetry.NONE:
        raise ValueError("a response of symmetry 'none' cannot be transformed: apply the view to the tile before the teacher")
    if x.ndim == 4 and x.shape[-1] != x.shape[-2]:
        raise ValueError(f"the eight symmetries act on squares, not on {x.shape[-2]} x {x.shape[-1]}")
    return _turn_each(x, index, symmetry) if x.device.type == "cpu" else _turn_by_selection(x, index, symmetry)


def apply_d4_tiles(tiles: np.ndarray, index: np.ndarray) -> np.ndarray:
    """`apply_d4` for tiles on their way to a teacher.

    Args:
        tiles: uint8 `[B, H, W, 3]`, or object `[B]` of images `[height, width, 3]`, each of its own size.
        index: integers `[B]` in 0..7.

    Returns:
        A new array of the same shape; of rectangles an object array, since one that is transposed changes height and width.
    """
    if tiles.dtype == object or (tiles.ndim == 4 and tiles.shape[1] != tiles.shape[2]):
        turned = (_turn_tile(tile, bits) for tile, bits in zip(tiles, np.asarray(index).tolist(), strict=True))
        return of_arrays([np.ascontiguousarray(tile) for tile in turned])
    if tiles.ndim != 4:
        raise ValueError(f"expected tiles [B, H, W, 3], got {list(tiles.shape)}")
    seen = np.empty_like(tiles)
    for row, bits in enumerate(np.asarray(index).tolist()):
        seen[row] = _turn_tile(tiles[row], bits)
    return seen


def _turn_tile(tile: np.ndarray, bits: int) -> np.ndarray:
    view = tile.transpose(1, 0, 2) if bits & TRANSPOSE else tile
    view = view[::-1] if bits & FLIP_ROWS else view
    return view[:, ::-1] if bits & FLIP_COLUMNS else view


def _turn_each(x: Tensor, index: Tensor, symmetry: Symmetry) -> Tensor:
    turned = torch.empty_like(x, memory_format=torch.contiguous_format)
    for sample, source, bits in zip(turned, x, index.tolist(), strict=True):
        if source.ndim == 3:
            source = source.mT if bits & TRANSPOSE else source
            axes = [axis for axis, bit in ((-2, FLIP_ROWS), (-1, FLIP_COLUMNS)) if bits & bit]
            source = source.flip(axes) if axes else source
        if symmetry == Symmetry.HV:
            source = source.flip(0) if bits & TRANSPOSE else source
        sample.copy_(source)
        if symmetry == Symmetry.HV:
            for channel, bit in enumerate((FLIP_COLUMNS, FLIP_ROWS)):
                if bits & bit:
                    sample[channel].neg_()
    return turned


def _turn_by_selection(x: Tensor, index: Tensor, symmetry: Symmetry) -> Tensor:
    transpose, flip_rows, flip_columns = (
        (index & bit).bool().view(-1, *[1] * (x.ndim - 1)) for bit in (TRANSPOSE, FLIP_ROWS, FLIP_COLUMNS)
    )
    if x.ndim == 4:
        x = torch.where(transpose, x.mT, x)
        x = torch.where(flip_rows, x.flip(-2), x)
        x = torch.where(flip_columns, x.flip(-1), x)
    if symmetry == Symmetry.HV:
        x = torch.where(transpose, x.flip(1), x)
        x = torch.where(torch.cat([flip_columns, flip_rows], dim=1), -x, x)
    return x
