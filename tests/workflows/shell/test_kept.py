"""What is said of an interrupted run follows from what lies in its folder."""

import numpy as np
import pyarrow as pa
import pytest

from csat.prediction.layout import Layout
from csat.runs.checkpoints import Checkpoint, Checkpoints, Cursor
from csat.runs.folder import RunFolder
from csat.runs.plan import Intervals
from csat.runs.quarantine import QUARANTINE_SCHEMA
from workflows.shell.kept import kept_of_prediction, kept_of_run, kept_of_sweep


def commit(folder, num_tiles, step):
    cursor = Cursor(step=step, done=Intervals([(0, num_tiles)]))
    Checkpoints(folder.path("checkpoints")).save(Checkpoint(cursor, {}, QUARANTINE_SCHEMA.empty_table()))
    folder.write_text("metrics.jsonl", f'{{"step": {step}, "tiles": {num_tiles}, "tiles_total": 5000}}\n')


def test_tiles_of_the_committed_checkpoint(tmp_path):
    folder = RunFolder(str(tmp_path / "run"))
    assert kept_of_run(folder.uri) == "nothing trained yet" and not (tmp_path / "run").exists()
    folder.write_json("manifest/index.json", {})
    assert kept_of_run(folder.uri) == "the manifest of tiles, and nothing trained yet"
    folder.set_status("running")
    commit(folder, 1200, 75)
    assert kept_of_run(folder.uri) == "1,200 of 5,000 tiles, in the checkpoint of step 75"
    assert folder.read_json("status.json")["state"] == "interrupted"


def test_a_stage_before_the_training(tmp_path):
    folder = RunFolder(str(tmp_path))
    commit(RunFolder(folder.path("paraphrasers")), 300, 10)
    assert (
        kept_of_run(folder.uri)
        == "of the paraphrasers, which are trained first, 300 of 5,000 tiles, in the checkpoint of step 10"
    )
    commit(folder, 8, 1)
    assert kept_of_run(folder.uri).startswith("8 of 5,000 tiles")


@pytest.mark.parametrize("state", ["failed", "finished"])
def test_what_had_ended_is_left_as_it_is(tmp_path, state):
    folder = RunFolder(str(tmp_path))
    folder.set_status(state, error="why")
    kept_of_run(folder.uri)
    assert folder.read_json("status.json") == {"state": state, "error": "why"}


def test_runs_of_a_sweep(tmp_path):
    folder = RunFolder(str(tmp_path))
    for name, state in (
        ("trials/000", "finished"),
        ("trials/001", "pruned"),
        ("trials/002", "interrupted"),
        ("seeds/000", "running"),
    ):
        run = RunFolder(folder.path("cells", "lung", "nano", name))
        run.set_status(state)
        if name == "trials/002":
            commit(run, 40, 5)
    said = kept_of_sweep(folder.uri)
    assert said.startswith("2 runs that have ended; of one that has not, ")
    assert "40 of 5,000 tiles, in the checkpoint of step 5" in said and "nothing yet" in said


def test_files_and_tiles_of_a_prediction(tmp_path):
    folder, layout = RunFolder(str(tmp_path / "out")), Layout(str(tmp_path / "out"))
    assert kept_of_prediction(folder.uri) == "nothing: it starts from the beginning" and not (tmp_path / "out").exists()
    folder.write_json("manifest/index.json", {})
    folder.set_status("running")
    layout.mark_done(0, {})
    positions = np.arange(1000, 3500)
    layout.parts.write(1, {"tiles": pa.table({"position": positions})}, positions=positions)
    assert kept_of_prediction(folder.uri) == "the files of 1 slides, and what was said of 2,500 tiles of others"
    assert folder.read_json("status.json") == {"state": "interrupted"}
    folder.set_status("finished")
    assert kept_of_prediction(folder.uri) == "all of it, the prediction is finished"
