"""Which tiles are kept from training, to measure the student on: whole slides (patients), or blocks of slides.

The choice follows from the seed and the names alone (a hash), so it is the same on every machine and in every run. The name is
the patient's, else the slide's file name, so that the same slides in another folder or bucket hold out the same ones; where a
file name repeats, the folders above it that tell them apart belong to it.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from csat.errors import ConfigError
from csat.tiles.grid import TILE_SCHEMA
from csat.tiles.sources import SlideRow
from csat.views.draws import hash_text

PARQUET_BLOCK_ROWS = 16  # rows of a parquet file have no place: neighbours in the file stand in for neighbours in the slide
ASPECT_ROUNDING_PX = 0.01  # of an edge worked out by `aspect`, which the manifest has in single precision

TRAIN, HELD_OUT, LEFT_OUT = 0, 1, 2


class HoldoutError(ConfigError):
    """These slides cannot be held out in this way, or nothing would be left to train on."""


class SlideHoldout:
    """Holds out whole patients; a slide without a patient counts as its own.

    Args:
        fraction: Share of the patients, at least one of them.
        seed: Of the choice.
        slides: Every slide that will come.

    Raises:
        HoldoutError: fewer than two patients.
    """

    def __init__(self, fraction: float, seed: int, slides: Sequence[SlideRow]):
        self.fraction, self.seed = fraction, seed
        # Patients of a parquet stand in its rows: they are not known before it is read, and are judged one by one.
        self._names = {
            **short_names(row.slide for row in slides),
            **{row.patient: row.patient for row in slides if row.patient},
        }
        groups = sorted({row.patient or row.slide for row in slides if row.kind != "parquet" or row.patient})
        if len(groups) < 2 and all(row.kind != "parquet" for row in slides):
            raise HoldoutError(
                f"manifest.holdout_by slide keeps whole slides (patients) from training, and there is only {len(groups)}: "
                "nothing would remain to train on. Use manifest.holdout_by tile, or manifest.holdout_fraction 0"
            )
        ranked = sorted(groups, key=lambda group: hash_text(self._names[group], seed=seed))
        count = min(max(1, round(fraction * len(groups))), len(groups) - 1) if len(groups) > 1 else 0
        self._chosen, self._known = frozenset(ranked[:count]), frozenset(groups)

    def __call__(self, table: pa.Table) -> np.ndarray:
        """TRAIN or HELD_OUT for every row: uint8 `[n]`."""
        groups = pc.coalesce(table["patient"], table["slide"]).combine_chunks().dictionary_encode()
        held = [HELD_OUT if self._is_held_out(group) else TRAIN for group in groups.dictionary.to_pylist()]
        return np.array(held, dtype=np.uint8)[groups.indices.to_numpy()]

    def _is_held_out(self, group: str) -> bool:
        if group in self._known:
            return group in self._chosen
        return hash_text(self._names.get(group, group), seed=self.seed) < self.fraction


class BlockHoldout:
    """Holds out square blocks of every slide, so that a tile and its neighbours are mostly on the same side.

    Tiles that reach over the border between a held-out block and another (where tiles overlap) are left out of both: no
    pixel is on both sides.

    Args:
        fraction: Share of the blocks.
        seed: Of the choice.
        block_tiles: Edge of a block, in edges of a tile.
        slides: Every slide that will come.
    """

    def __init__(self, fraction: float, seed: int, block_tiles: int, slides: Sequence[SlideRow]):
        self.fraction, self.seed, self.block_tiles = fraction, seed, block_tiles
        self._names = short_names(row.slide for row in slides)
        self._found_any = False

    def __call__(self, table: pa.Table) -> np.ndarray:
        """TRAIN, HELD_OUT or LEFT_OUT for every row of one slide's table: uint8 `[n]`."""
        x, y, across, row = (table[name].to_numpy().astype(np.int64) for name in ("x_px", "y_px", "footprint_px", "row"))
        down = np.ceil(across * table["aspect"].to_numpy() - ASPECT_ROUNDING_PX).astype(np.int64)
        has_place = table["kind"][0].as_py() != "parquet"

        def ends(start: np.ndarray, edge: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            block_px = edge * self.block_tiles if has_place else np.iinfo(np.int32).max
            return start // block_px, (start + edge - 1) // block_px

        # A tile is no larger than a block: it lies in those of its four corners.
        columns, rows = ends(x, across), ends(y, down)
        place = row // PARQUET_BLOCK_ROWS
        corners = np.concatenate([np.stack([column, line, place], axis=1) for column in columns for line in rows])
        blocks, where = np.unique(corners, axis=0, return_inverse=True)
        where = where.reshape(4, -1)
        inside_one = (where == where[0]).all(axis=0)
        held = np.zeros(len(blocks), dtype=bool)
        name = self._names[table["slide"][0].as_py()]
        held[self._choose(name, blocks, np.unique(where[0, inside_one]))] = True
        held = held[where]
        return np.where(held.all(axis=0), HELD_OUT, np.where(held.any(axis=0), LEFT_OUT, TRAIN)).astype(np.uint8)

    def _choose(self, slide: str, blocks: np.ndarray, usable: np.ndarray) -> np.ndarray:
        """Which of the blocks that hold a whole tile: `fraction` of them, rounded up or down by chance, and at least one of
        the first slide that has several."""
        count = int(self.fraction * len(usable) + hash_text(slide, seed=self.seed))
        if count == 0 and not self._found_any and len(usable) > 1:
            count = 1
        self._found_any = self._found_any or count > 0
        keys = [hash_text(f"{slide}|{'|'.join(map(str, block))}", seed=self.seed) for block in blocks[usable].tolist()]
        return usable[np.argsort(keys)[:count]]


def short_names(slides: Iterable[str]) -> Mapping[str, str]:
    """The shortest end of each slide's path that no other slide has: its file name, and folders where that repeats.

    Args:
        slides: Absolute paths or URIs; the same one may come again.

    Returns:
        Slide → name.
    """
    parts = {slide: slide.split("/") for slide in slides}
    names = {slide: path[-1] for slide, path in parts.items()}
    for depth in range(2, max((len(path) for path in parts.values()), default=0) + 1):
        counts = Counter(names.values())
        repeated = [slide for slide, name in names.items() if counts[name] > 1]
        if not repeated:
            break
        names |= {slide: "/".join(parts[slide][-depth:]) for slide in repeated}
    return names


class TileSample:
    """A uniform sample of bounded size from tables that pass by: those rows whose random key is among the smallest.

    Attributes:
        table: The rows that are kept, in the order of their coming.
        num_seen: Rows that passed by.
    """

    def __init__(self, size: int, seed: int):
        self.size = size
        self.num_seen = 0
        self._rng = np.random.Generator(np.random.PCG64([seed, 0x401D]))
        self.table, self._keys = TILE_SCHEMA.empty_table(), np.empty(0)

    @property
    def num_kept(self) -> int:
        return self.table.num_rows

    def add(self, table: pa.Table) -> None:
        self.num_seen += table.num_rows
        keys = np.concatenate([self._keys, self._rng.random(table.num_rows)])
        kept = np.sort(np.argsort(keys, kind="stable")[: self.size])  # in the order of their coming
        self.table, self._keys = pa.concat_tables([self.table, table]).take(kept).combine_chunks(), keys[kept]
