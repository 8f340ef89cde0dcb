"""Rows of what could not be used: one schema, and the files that earlier versions wrote."""

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from csat.runs.checkpoints import Checkpoint, Checkpoints, Cursor
from csat.runs.quarantine import QUARANTINE_SCHEMA, QuarantineBuffer, read_quarantine


def written(table):
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def test_what_was_added_comes_back_in_order():
    buffer = QuarantineBuffer()
    for index in range(buffer.FLUSH_ROWS + 3):
        buffer.add(f"{index}.svs", "no_mpp" if index else "unreadable", "why")
    table = read_quarantine(buffer.to_bytes())
    assert table.schema == QUARANTINE_SCHEMA
    assert table["slide"].to_pylist() == [f"{index}.svs" for index in range(buffer.FLUSH_ROWS + 3)]
    assert set(table["status"].to_pylist()) == {"quarantined"} and table["position"].null_count == table.num_rows
    assert buffer.summary() == f"{buffer.FLUSH_ROWS + 2} no_mpp, 1 unreadable"


def test_an_earlier_manifest_s_rows_are_read():
    """It had five columns, and places as int32."""
    row = dict(slide="a.svs", x_px=7, y_px=None, reason="no_mpp", message="why")
    types = [(name, pa.int32() if name.endswith("_px") else pa.string()) for name in row]
    table = read_quarantine(written(pa.Table.from_pylist([row], schema=pa.schema(types))))
    assert table.schema == QUARANTINE_SCHEMA
    assert table.to_pylist() == [dict(row, position=None, status="quarantined")]
    assert read_quarantine(written(pa.schema(types).empty_table())).schema == QUARANTINE_SCHEMA


FILTERED = dict(position=3, slide="a", x_px=1, y_px=2**40, status="filtered", reason="r", message="m")


@pytest.mark.parametrize("rows", [[], [FILTERED]])
def test_a_checkpoint_s_rows_come_back_as_they_were(tmp_path, rows):
    table = pa.Table.from_pylist(rows, schema=QUARANTINE_SCHEMA)
    checkpoints = Checkpoints(str(tmp_path / "checkpoints"))
    checkpoints.save(Checkpoint(Cursor(), {}, table))
    assert checkpoints.load().quarantine.equals(table)
