"""The order in which a run visits its tiles, and the cursor that says which of them are done.

A run is one line of *positions*: `position = epoch * num_tiles + rank`, where rank is the tile's place in that epoch's order.
Nothing of the line is stored. An epoch's order follows from (seed, epoch) and the manifest's chunk table: the shards are
permuted, then the chunks inside each shard, then the rows inside each chunk. So only one shard's slides are live at a time
(which is what a node-local slide cache needs), no pixel and no row is read to plan, and a worker can find the tile of any
position by itself.

Because tiles are consumed nearly in order, the set of positions that are done is a few intervals, whatever the data's size:
that set is the cursor in a checkpoint. Resuming filters the *plan*, before any pixel is read or any teacher is run.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np


class Intervals:
    """A set of int64 positions, kept as sorted disjoint half-open intervals `[start, stop)`."""

    def __init__(self, pairs: Sequence[tuple[int, int]] = ()):
        self.starts, self.stops = _merge(np.asarray(pairs, dtype=np.int64).reshape(-1, 2))

    @classmethod
    def of(cls, positions: np.ndarray) -> "Intervals":
        """The set of these positions (any order, repeats allowed)."""
        positions = np.asarray(positions, dtype=np.int64)
        return cls(np.stack([positions, positions + 1], axis=1))

    def __len__(self) -> int:
        return int((self.stops - self.starts).sum())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Intervals) and self.pairs() == other.pairs()

    __hash__ = None

    def __or__(self, other: "Intervals") -> "Intervals":
        return Intervals(np.concatenate([self._pairs(), other._pairs()]))

    def contains(self, positions: np.ndarray) -> np.ndarray:
        """bool array: which of `positions` are in the set."""
        positions = np.asarray(positions, dtype=np.int64)
        if not len(self.starts):
            return np.zeros(positions.shape, dtype=bool)
        index = np.searchsorted(self.starts, positions, side="right") - 1
        return (index >= 0) & (positions < self.stops[np.maximum(index, 0)])

    def cover(self, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
        """bool array: which of the ranges `[start, stop)`, none of them empty, are wholly in the set."""
        if not len(self.starts):
            return np.zeros(np.shape(starts), dtype=bool)
        index = np.searchsorted(self.starts, starts, side="right") - 1
        return (index >= 0) & (stops <= self.stops[np.maximum(index, 0)])

    def first_gap(self) -> int:
        """The smallest position ≥ 0 that is not in the set."""
        return int(self.stops[0]) if len(self.starts) and self.starts[0] == 0 else 0

    def pairs(self) -> list[list[int]]:
        """`[[start, stop], …]`, JSON-ready."""
        return self._pairs().tolist()

    def _pairs(self) -> np.ndarray:
        return np.stack([self.starts, self.stops], axis=1)


@dataclass(frozen=True)
class Slot:
    """One chunk at its place in the plan."""

    epoch: int
    chunk_index: int  # row of the manifest's chunk table
    first_position: int
    num_rows: int


class Plan:
    """Which chunk comes when, and which row inside it. Pure arithmetic on the manifest's chunk table.

    Args:
        chunk_rows: int `[num_chunks]`, tiles of each chunk, in manifest order.
        chunk_shard: int `[num_chunks]`, the manifest's shard of each chunk, ascending.
        num_epochs: Visits of every tile.
        seed: Of the order; None: the manifest's own, in every epoch.
    """

    def __init__(self, chunk_rows: np.ndarray, chunk_shard: np.ndarray, *, num_epochs: int, seed: int | None):
        self.chunk_rows = np.asarray(chunk_rows, dtype=np.int64)
        self.chunk_shard = np.asarray(chunk_shard, dtype=np.int64)
        self.num_epochs = num_epochs
        self.seed = seed
        self.num_chunks = len(self.chunk_rows)
        self.num_tiles = int(self.chunk_rows.sum())
        self.num_positions = self.num_tiles * num_epochs
        self.num_slots = self.num_chunks * num_epochs
        self._epoch = lru_cache(maxsize=2)(self._order_and_offsets)

    def __getstate__(self) -> dict:
        return {key: value for key, value in self.__dict__.items() if key != "_epoch"}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._epoch = lru_cache(maxsize=2)(self._order_and_offsets)

    def slot(self, slot_index: int) -> Slot:
        """The chunk at `slot_index` (0 … num_slots - 1)."""
        epoch, rank = divmod(slot_index, self.num_chunks)
        order, offsets = self._epoch(epoch)
        chunk = int(order[rank])
        return Slot(epoch, chunk, epoch * self.num_tiles + int(offsets[rank]), int(self.chunk_rows[chunk]))

    def row_order(self, slot: Slot) -> np.ndarray:
        """Row numbers inside the chunk, in the order of the slot's positions. int64 `[num_rows]`."""
        if self.seed is None:
            return np.arange(slot.num_rows)
        return np.random.default_rng((self.seed, 2, slot.epoch, slot.chunk_index)).permutation(slot.num_rows)

    def tiles_at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which tile each position is: its chunk, and its row in that chunk. int64 `[n]` both."""
        epochs, ranks = np.divmod(np.asarray(positions, dtype=np.int64), self.num_tiles)
        chunks, rows = np.empty_like(ranks), np.empty_like(ranks)
        for epoch in np.unique(epochs).tolist():
            order, offsets = self._epoch(epoch)
            here = np.flatnonzero(epochs == epoch)
            places = np.searchsorted(offsets, ranks[here], side="right") - 1
            for place in np.unique(places).tolist():
                slot = self.slot(epoch * self.num_chunks + place)
                mine = here[places == place]
                chunks[mine] = order[place]
                rows[mine] = self.row_order(slot)[ranks[mine] - offsets[place]]
        return chunks, rows

    def first_slot(self, done: Intervals) -> int:
        """The first slot with anything left to do; `num_slots` when all is done."""
        position = done.first_gap()
        if position >= self.num_positions:
            return self.num_slots
        epoch, rank_in_epoch = divmod(position, self.num_tiles)
        _, offsets = self._epoch(epoch)
        return epoch * self.num_chunks + int(np.searchsorted(offsets, rank_in_epoch, side="right")) - 1

    def slots(self, start: int = 0) -> Iterator[Slot]:
        """All slots from `start` on."""
        return (self.slot(index) for index in range(start, self.num_slots))

    def epochs_of(self, positions: np.ndarray) -> np.ndarray:
        """The epoch of each position."""
        return np.asarray(positions, dtype=np.int64) // self.num_tiles

    def _order_and_offsets(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        if self.seed is None:
            return np.arange(self.num_chunks), np.cumsum(self.chunk_rows) - self.chunk_rows
        rng = np.random.default_rng((self.seed, 1, epoch))
        shards, first, counts = np.unique(self.chunk_shard, return_index=True, return_counts=True)
        place_of_shard = np.empty(len(shards), dtype=np.int64)
        place_of_shard[rng.permutation(len(shards))] = np.arange(len(shards))
        # Sort by (place of the shard, random key): chunks stay inside their shard, shards and chunks are both shuffled.
        order = np.lexsort((rng.random(self.num_chunks), np.repeat(place_of_shard, counts)))
        offsets = np.concatenate([[0], np.cumsum(self.chunk_rows[order])[:-1]])
        return order, offsets


def _merge(pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    pairs = pairs[pairs[:, 1] > pairs[:, 0]]
    if not len(pairs):
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    pairs = pairs[np.argsort(pairs[:, 0], kind="stable")]
    reach = np.maximum.accumulate(pairs[:, 1])
    is_new = np.concatenate([[True], pairs[1:, 0] > reach[:-1]])
    last = np.concatenate([np.flatnonzero(is_new)[1:] - 1, [len(pairs) - 1]])
    return pairs[is_new, 0], reach[last]
