"""From slots of the plan to rows with pixels: the first stage of the stream."""

import os
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from csat.columns import POSITION
from csat.runs.plan import Intervals, Plan
from csat.tiles.manifest import read_manifest
from csat.tiles.reader import TileReader

SLOT = "slot"  # the stream's first column: int64, index of a slot in the plan


class PlannedReader:
    """Opens each slot's chunk of the manifest, leaves out what is done, and reads the pixels of the rest.

    Made once per reader actor: the manifest's index and the slides' handles are kept.

    Args:
        manifest_uri: Of the tile manifest.
        plan: The run's order.
        done: Positions to leave out.
        reader: Reads the pixels.
        rows_at_once: Rows that leave the stage together; bounds the memory of one output block.
        niceness: Added to that of this process, so that others come first; it cannot be taken back.
    """

    def __init__(
        self,
        manifest_uri: str,
        plan: Plan,
        done: Intervals,
        reader: TileReader,
        *,
        rows_at_once: int = 256,
        niceness: int = 0,
    ):
        os.nice(niceness)
        self.manifest = read_manifest(manifest_uri)
        self.plan = plan
        self.done = done
        self.reader = reader
        self.rows_at_once = rows_at_once

    def __call__(self, columns: dict[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
        """Slots in, tiles out: one or several batches of rows per slot, none for a slot that is done."""
        for slot_index in columns[SLOT].tolist():
            slot = self.plan.slot(slot_index)
            positions = slot.first_position + np.arange(slot.num_rows)
            todo = ~self.done.contains(positions)
            if not todo.any():
                continue
            shard, chunk = self.manifest.locate(slot.chunk_index)
            table = self.manifest.read_chunk(shard, chunk)
            rows, positions = self.plan.row_order(slot)[todo], positions[todo]
            for start in range(0, len(rows), self.rows_at_once):
                taken = slice(start, start + self.rows_at_once)
                batch = columns_of(table.take(rows[taken]))
                batch[POSITION] = positions[taken]
                yield self.reader(batch)


def columns_of(table: pa.Table) -> dict[str, np.ndarray]:
    """A table's columns, texts without nulls: of a block that has nothing but nulls nobody could tell that they are texts."""
    columns = zip(table.column_names, table.combine_chunks().columns, strict=True)
    return {
        name: (pc.fill_null(column, "") if pa.types.is_string(column.type) else column).to_numpy() for name, column in columns
    }
