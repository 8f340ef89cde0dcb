import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from csat.runs.accounts import diverged_in, steady_rate, write_accounts, write_own_throughput, write_throughput
from csat.runs.checkpoints import Checkpoint, Cursor
from csat.runs.folder import RunFolder
from csat.runs.plan import Intervals, Plan
from csat.runs.quarantine import QUARANTINE_SCHEMA


def test_the_steady_rate_leaves_the_start_out():
    """100 tiles while everything started, then 100 at 50 tiles/s and 300 at 100."""
    lines = [{"tiles": 100, "tiles_per_s": 2}, {"tiles": 200, "tiles_per_s": 50}, {"tiles": 500, "tiles_per_s": 100}]
    assert steady_rate(lines) == pytest.approx(400 / 5)


def test_without_enough_after_the_first_line_there_is_none():
    """Else a last burst of what was answered before counts as a rate: 45 tiles of 173, at three times the teacher's."""
    assert steady_rate([]) is None and steady_rate([{"tiles": 5, "tiles_per_s": 1}]) is None
    assert steady_rate([{"tiles": 128, "tiles_per_s": 3.4}, {"tiles": 173, "tiles_per_s": 15.8}]) is None


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


def checkpoint_of(students, meters):
    cursor = Cursor(step=10, done=Intervals([(0, 80)]), counts={0: [80, 0, 0]}, meters=meters)
    return Checkpoint(cursor, {"students": students}, QUARANTINE_SCHEMA.empty_table())


def test_what_became_of_each_student_and_what_it_cost(tmp_path):
    """Two students share 8 of 10 seconds of one worker; one stopped after 40 of 80 tiles."""
    meters = {"rows": 80, "loop_s": 10.0, "wait_s": 2.0, "student_s/a": 6.0, "student_s/b": 2.0}
    meters |= {"student_tiles/a": 80, "student_tiles/b": 40}
    students = {"a": {}, "b": {"fault": {"step": 6, "turn": "student", "what": "loss term np_bce is"}}}
    checkpoint, folder = checkpoint_of(students, meters), RunFolder(str(tmp_path))
    accounts = write_accounts(folder, Plan([80], [0], num_epochs=1, seed=0), checkpoint)
    why = "step 6 (student): loss term np_bce is not finite"
    assert accounts["students"] == {
        "a": {"state": "trained", "steps": 10, "tiles": 80},
        "b": {"state": "diverged", "steps": 5, "tiles": 40, "error": why},
    }
    assert folder.read_json("accounting.json") == accounts and diverged_in(accounts) == {"b": why}

    costs = {name: {"input_px": 64, "params": params, "macs": 1} for name, params in (("a", 3), ("b", 1))}
    throughput = write_throughput(folder, checkpoint, num_workers=1, costs=costs)
    assert "student" not in throughput and throughput["stages"]["student"]["tiles_per_s_per_worker"] == 10
    assert throughput["students"]["a"] == {**costs["a"], "tiles_per_s": pytest.approx(80 / 6), "step_share": 0.75}
    assert throughput["students"]["b"]["tiles_per_s"] == 20
    own = write_own_throughput(RunFolder(str(tmp_path / "students" / "b")), "b", throughput)
    assert own["student"] == throughput["students"]["b"] and "students" not in own
    assert own["stages"]["student"] == {"tiles_per_s_per_worker": 20, "workers": 1}


def test_the_only_student_has_no_share(tmp_path):
    checkpoint = checkpoint_of({}, {"rows": 80, "loop_s": 10.0, "wait_s": 2.0})
    throughput = write_throughput(RunFolder(str(tmp_path)), checkpoint, num_workers=1, costs={None: {"params": 3}})
    assert throughput["student"] == {"params": 3} and "students" not in throughput
    assert "students" not in write_accounts(RunFolder(str(tmp_path)), Plan([80], [0], num_epochs=1, seed=0), checkpoint)
