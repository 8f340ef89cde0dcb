"""metrics.jsonl and validation.jsonl: one line each, none twice after a resume, in a folder and in a bucket."""

import json

from csat.runs.recorder import Recorder, read_metrics
from csat.storage import files


def lines_of(folder, file="metrics"):
    return [line["step"] for line in read_metrics(folder, file)]


def test_each_file_has_its_own_lines(tmp_path):
    recorder = Recorder(str(tmp_path), last_step=0)
    recorder.log({"step": 1, "loss": 0.5})
    recorder.log({"step": 2, "loss": 0.25})
    recorder.log({"step": 2, "metric": 0.9}, file="validation")
    recorder.close()
    assert read_metrics(str(tmp_path)) == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}]
    assert read_metrics(str(tmp_path), "validation") == [{"step": 2, "metric": 0.9}]
    assert not (tmp_path / "validation.jsonl").read_text().count("loss")


def test_a_run_without_validation_has_no_such_file(tmp_path):
    recorder = Recorder(str(tmp_path), last_step=0)
    recorder.log({"step": 1, "loss": 0.5})
    recorder.close()
    assert not (tmp_path / "validation.jsonl").exists()
    assert read_metrics(str(tmp_path), "validation") == []


def test_lines_of_lost_steps_are_dropped_from_both_files(tmp_path):
    recorder = Recorder(str(tmp_path), last_step=0)
    for step in range(1, 6):
        recorder.log({"step": step, "loss": 1.0})
        recorder.log({"step": step, "metric": 0.5}, file="validation")
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # cut off by a kill
    resumed = Recorder(str(tmp_path), last_step=3)
    assert lines_of(str(tmp_path)) == lines_of(str(tmp_path), "validation") == [1, 2, 3]
    resumed.log({"step": 4, "metric": 0.6}, file="validation")
    resumed.close()
    assert lines_of(str(tmp_path), "validation") == [1, 2, 3, 4]
    Recorder(str(tmp_path), last_step=0).close()
    assert lines_of(str(tmp_path)) == lines_of(str(tmp_path), "validation") == []


def test_validation_has_its_own_curves(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recorder = Recorder(str(tmp_path), last_step=0)
    recorder.log({"step": 1, "loss": 0.5, "note": "text has no curve"})
    recorder.log({"step": 1, "metric": 0.75}, file="validation")
    recorder.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert sorted(events.Tags()["scalars"]) == ["loss", "validation/metric"]
    assert events.Scalars("validation/metric")[0].value == 0.75


def test_in_a_bucket_both_files_are_there_after_a_sync_and_go_on_after_a_resume(s3):
    run_folder = f"{s3}/run"
    recorder = Recorder(run_folder, last_step=0)
    recorder.log({"step": 1, "loss": 0.5})
    recorder.log({"step": 1, "metric": 0.75}, file="validation")
    assert read_metrics(run_folder, "validation") == []
    recorder.sync()
    assert read_metrics(run_folder, "validation") == [{"step": 1, "metric": 0.75}]
    resumed = Recorder(run_folder, last_step=1)
    resumed.log({"step": 2, "metric": 0.8}, file="validation")
    resumed.close()
    assert lines_of(run_folder, "validation") == [1, 2]
    assert lines_of(run_folder) == [1]
    assert json.loads(files.read_bytes(f"{run_folder}/metrics.jsonl").decode()) == {"step": 1, "loss": 0.5}
