"""Tiles of a slide that gave no answer, and why: compressed as they come, and written beside the slide's files."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from csat.columns import OK, POSITION, QUARANTINED, REASON, STATUS
from csat.runs.quarantine import PARQUET_OPTIONS, QUARANTINE_SCHEMA
from csat.storage import files
from csat.words import printable


class QuarantinedTiles:
    """Rows of a quarantine.parquet.

    Attributes:
        reasons: "status: code" → how many tiles.
    """

    def __init__(self, slide: str):
        self.reasons: Counter[str] = Counter()
        self._slide = printable(slide)
        self._sink = pa.BufferOutputStream()
        self._writer = pq.ParquetWriter(self._sink, QUARANTINE_SCHEMA, **PARQUET_OPTIONS)

    def add(self, tiles: pa.Table) -> None:
        """Those of a part's tiles that have no answer."""
        status = tiles[STATUS].to_numpy()
        rows = tiles.filter(pa.array(status != OK))
        if not len(rows):
            return
        reasons = [reason.partition(": ") for reason in rows[REASON].to_pylist()]
        said = np.where(rows[STATUS].to_numpy() == QUARANTINED, "quarantined", "filtered").tolist()
        self.reasons.update(f"{fate}: {code}" for fate, (code, _, _) in zip(said, reasons, strict=True))
        columns = {
            "position": rows[POSITION],
            "slide": [self._slide] * len(rows),
            "x_px": rows["x_px"].cast(pa.int64()),
            "y_px": rows["y_px"].cast(pa.int64()),
            "status": said,
            "reason": [code for code, _, _ in reasons],
            "message": [message for _, _, message in reasons],
        }
        self._writer.write_table(pa.table(columns, schema=QUARANTINE_SCHEMA))

    def write(self, uri: str) -> None:
        """The file; none where every tile has its answer. Of an earlier attempt, nothing is left."""
        self._writer.close()
        if self.reasons:
            files.insist(lambda: files.write_bytes(uri, self._sink.getvalue().to_pybytes()))
