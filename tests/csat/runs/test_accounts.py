import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from csat.runs.accounts import steady_rate, write_accounts
from csat.runs.checkpoints import Checkpoint, Cursor
from csat.runs.folder import RunFolder
from csat.runs.plan import Intervals, Plan
from csat.runs.quarantine import QUARANTINE_SCHEMA


def test_the_steady_rate_leaves_the_start_out():
    """100 tiles while everything started, then 100 at 50 tiles/s and 300 at 100."""
    lines = [{"tiles": 100, "tiles_per_s": 2}, {"tiles": 200, "tiles_per_s": 50}, {"tiles": 500, "tiles_per_s": 100}]
    assert steady_rate(lines) == pytest.approx(400 / 5)


def test_without_a_second_line_there_is_none():
    assert steady_rate([]) is None and steady_rate([{"tiles": 5, "tiles_per_s": 1}]) is None


def test_what_one_of_several_teachers_has_not_answered_is_told_by_its_name(tmp_path):
    """And is not counted among what was not used: the tile was trained."""
    place = dict(slide="a", x_px=1, y_px=2, message="m")
    rows = [
        dict(position=0, status="unanswered", reason="a.teacher_error", **place),
        dict(position=1, status="unanswered", reason="a.teacher_nonfinite", **place),
        dict(position=1, status="unanswered", reason="ab.teacher_error", **place),
        dict(position=2, status="quarantined", reason="unreadable", **place),
    ]
    meters = {"unanswered.a": 2.0, "unanswered.ab": 1.0, "rows": 10.0}
    cursor = Cursor(step=1, done=Intervals([(0, 10)]), counts={0: [9, 1, 0]}, meters=meters)
    table = pa.Table.from_pylist(rows, schema=QUARANTINE_SCHEMA)
    told = write_accounts(RunFolder(str(tmp_path)), Plan([10], [0], num_epochs=1, seed=0), Checkpoint(cursor, {}, table))
    assert told["teachers"] == {
        "a": {"answered": 7, "unanswered": 2, "reasons": {"teacher_error": 1, "teacher_nonfinite": 1}},
        "ab": {"answered": 8, "unanswered": 1, "reasons": {"teacher_error": 1}},
    }
    assert [(each["reason"], each["count_all"]) for each in told["not_used"]] == [("unreadable", 1)]
    assert told["epochs"] == [{"epoch": 0, "manifest": 10, "trained": 9, "quarantined": 1, "filtered": 0}]
    assert pq.read_table(tmp_path / "quarantine.parquet").num_rows == 4
