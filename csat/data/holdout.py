"""Which tiles are kept from training, to measure the student on: whole slides (patients), or blocks of slides.

The choice follows from the seed and the names alone (a hash), so it is the same on every machine and in every run.
"""

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
import pyarrow as pa

from csat.data.sources import SlideRow
from csat.errors import ConfigError

PARQUET_BLOCK_ROWS = 16  # rows of a parquet file have no place: neighbours in the file stand in for neighbours in the slide

TRAIN, HELD_OUT, LEFT_OUT = 0, 1, 2


class SlideHoldout:
    """Holds out whole patients; a slide without a patient counts as its own.

    Args:
        fraction: Share of the patients, at least one of them.
        seed: Of the choice.
        slides: Every slide that will come.

    Raises:
        ConfigError: fewer than two patients.
    """

    def __init__(self, fraction: float, seed: int, slides: Sequence[SlideRow]):
        self.fraction, self.seed = fraction, seed
        # Patients of a parquet stand in its rows: they are not known before it is read, and are judged one by one.
        groups = sorted({row.patient or row.slide for row in slides if row.kind != "parquet" or row.patient})
        if len(groups) < 2 and all(row.kind != "parquet" for row in slides):
            raise ConfigError(
                f"--data.holdout_by slide keeps whole slides (patients) from training, and there is only {len(groups)}: "
                "nothing would remain to train on. Use --data.holdout_by tile, or --data.holdout_fraction 0"
            )
        ranked = sorted(groups, key=lambda group: _hash(seed, group))
        count = min(max(1, round(fraction * len(groups))), len(groups) - 1) if len(groups) > 1 else 0
        self._chosen, self._known = frozenset(ranked[:count]), frozenset(groups)

    def __call__(self, table: pa.Table) -> np.ndarray:
        """TRAIN or HELD_OUT for every row: uint8 `[n]`."""
        groups = np.array([p or s for p, s in zip(*(table[c].to_pylist() for c in ("patient", "slide")), strict=True)], object)
        names, where = np.unique(groups.astype(str), return_inverse=True)
        return np.array([HELD_OUT if self._is_held_out(name) else TRAIN for name in names], dtype=np.uint8)[where]

    def _is_held_out(self, group: str) -> bool:
        return group in self._chosen if group in self._known else _hash(self.seed, group) < self.fraction


class BlockHoldout:
    """Holds out square blocks of every slide, so that a tile and its neighbour are mostly on the same side.

    Where tiles overlap, those that reach over the border between a held-out block and another are left out of both: no
    pixel is on both sides.

    Args:
        fraction: Share of the blocks.
        seed: Of the choice.
        block_tiles: Edge of a block, in tiles.
        step_share: Step between tiles as a share of their edge: 1 without overlap.
    """

    def __init__(self, fraction: float, seed: int, *, block_tiles: int, step_share: float):
        self.fraction, self.seed, self.block_tiles, self.step_share = fraction, seed, block_tiles, step_share
        self._found_any = False

    def __call__(self, table: pa.Table) -> np.ndarray:
        """TRAIN, HELD_OUT or LEFT_OUT for every row of one slide: uint8 `[n]`."""
        x, y, footprint, row = (table[name].to_numpy().astype(np.int64) for name in ("x_px", "y_px", "footprint_px", "row"))
        # A tile's edge is whole, so a step of tiles without overlap is one too, and no tile crosses a border.
        step = np.ceil(footprint * self.step_share - 1e-6).astype(np.int64)
        edge = np.maximum(step * self.block_tiles, 1)
        is_row = np.full(len(x), table["kind"][0].as_py() == "parquet")
        left, right = np.where(is_row, 0, x // edge), np.where(is_row, 0, (x + footprint - 1) // edge)
        top, bottom = np.where(is_row, 0, y // edge), np.where(is_row, 0, (y + footprint - 1) // edge)
        rows = row // PARQUET_BLOCK_ROWS
        corners = np.stack([np.stack([i, j, rows], axis=1) for i in (left, right) for j in (top, bottom)])  # [4, n, 3]
        assert (right - left).max() <= 1 and (bottom - top).max() <= 1, "a tile larger than a block"
        blocks, where = np.unique(corners.reshape(-1, 3), axis=0, return_inverse=True)
        held = self._choose(str(table["slide"][0]), blocks)[where.reshape(4, -1)]
        return np.where(held.all(axis=0), HELD_OUT, np.where(held.any(axis=0), LEFT_OUT, TRAIN)).astype(np.uint8)

    def _choose(self, slide: str, blocks: np.ndarray) -> np.ndarray:
        """bool per block: `fraction` of them, rounded up or down by chance, and one of the first slide that has several."""
        count = int(self.fraction * len(blocks) + _hash(self.seed, slide))
        if count == 0 and not self._found_any and len(blocks) > 1:
            count = 1
        self._found_any = self._found_any or count > 0
        order = np.argsort([_hash(self.seed, f"{slide}|{'|'.join(map(str, block))}") for block in blocks.tolist()])
        held = np.zeros(len(blocks), dtype=bool)
        held[order[:count]] = True
        return held


def _hash(seed: int, name: str) -> float:
    """A number in [0, 1) that follows from a name."""
    return int.from_bytes(blake2b(f"{seed}|{name}".encode(), digest_size=7).digest(), "big") / 2.0**56
