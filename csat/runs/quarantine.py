"""Slides and tiles that could not be used, and why: rows of `quarantine.parquet`, of a manifest, a checkpoint and a run."""

import io
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq

from csat.words import printable

# No statistics and no Arrow schema: they would be most of a file of many small row groups.
PARQUET_OPTIONS = dict(compression="zstd", store_schema=False, write_statistics=False)

QUARANTINE_SCHEMA = pa.schema(
    [
        ("position", pa.int64()),  # in the plan; null: a slide, or a row of a parquet, that never got tiles
        ("slide", pa.string()),
        ("x_px", pa.int64()),  # level 0
        ("y_px", pa.int64()),
        ("status", pa.string()),  # quarantined, filtered, or unanswered: by one of several teachers, and trained by the others
        ("reason", pa.string()),  # of an unanswered one "TEACHER.code"
        ("message", pa.string()),
    ]
)


def read_quarantine(data: bytes) -> pa.Table:
    """A quarantine.parquet: a table of QUARANTINE_SCHEMA.

    Earlier versions wrote those of a manifest without `position` and `status`, and places as int32.
    """
    table = pq.read_table(io.BytesIO(data))
    for name, value in (("position", None), ("status", "quarantined")):
        if name not in table.column_names:
            column = pa.repeat(pa.scalar(value, QUARANTINE_SCHEMA.field(name).type), table.num_rows)
            table = table.append_column(name, column)
    return table.select(QUARANTINE_SCHEMA.names).cast(QUARANTINE_SCHEMA)


class QuarantineBuffer:
    """Quarantine rows, compressed as they come: a million of them take megabytes."""

    FLUSH_ROWS, NUM_EXAMPLES = 1024, 5

    def __init__(self):
        self.counts: Counter[str] = Counter()
        self._messages: dict[str, list[str]] = {}
        self._rows: list[dict] = []
        self._sink = pa.BufferOutputStream()
        self._writer = pq.ParquetWriter(self._sink, QUARANTINE_SCHEMA, **PARQUET_OPTIONS)

    def add(self, slide: str, reason: str, message: str) -> None:
        """One more slide that cannot be used. Whatever stands in the row is written: made printable where it is not."""
        slide, reason, message = map(printable, (slide, reason, message))
        self.counts[reason] += 1
        examples = self._messages.setdefault(reason, [])
        if len(examples) < self.NUM_EXAMPLES:
            examples.append(message)
        self._rows.append(dict(slide=slide, status="quarantined", reason=reason, message=message))
        if len(self._rows) >= self.FLUSH_ROWS:
            self._flush()

    def to_bytes(self) -> bytes:
        """The whole as a parquet file. Nothing can be added afterwards."""
        self._flush()
        self._writer.close()
        return self._sink.getvalue().to_pybytes()

    def summary(self) -> str:
        """For example "3 no_mpp, 1 unreadable"."""
        return ", ".join(f"{count} {reason}" for reason, count in self.counts.most_common()) or "none"

    def examples(self) -> list[str]:
        """Up to five messages, of as many different reasons as there are."""
        by_turns = [(turn, reason, text) for reason, texts in self._messages.items() for turn, text in enumerate(texts)]
        by_turns.sort(key=lambda entry: entry[0])
        return [f"{reason}: {text}" for _, reason, text in by_turns[: self.NUM_EXAMPLES]]

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=QUARANTINE_SCHEMA))
            self._rows = []
