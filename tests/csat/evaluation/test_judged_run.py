import pytest

from csat.errors import ConfigError, DatasetError
from csat.evaluation.judged_run import read_run
from tests.support.made_up import classified, write_run


def test_a_run_as_its_folder_tells_it(tmp_path):
    write_run(tmp_path / "run", {"test": classified()}, seed=5)
    run = read_run(str(tmp_path / "run"), "test")
    assert run.predictions.keys == classified().keys
    assert (run.task, run.classes, run.evaluation["seed"]) == ("classification", classified().classes, 5)
    assert read_run(run.uri, None).predictions is None


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: (path / "config.yaml").unlink(), ["no run folder", "config.yaml"]),
        (lambda path: (path / "status.json").write_text('{"state": "running"}'), ["not finished", "running", "repeat"]),
        (lambda path: (path / "status.json").write_text('{"state": "failed", "error": "no luck"}'), ["failed (no luck)"]),
        (lambda path: (path / "status.json").unlink(), ["not begun"]),
        (lambda path: (path / "evaluation.json").write_text("{}"), ["another verb", "finetune.py"]),
        (lambda path: (path / "predictions" / "test.parquet").unlink(), ["not judged on a test part", "it has: val"]),
    ],
    ids=["no run", "running", "failed", "not begun", "another verb", "no such part"],
)
def test_runs_that_cannot_be_compared(tmp_path, spoil, words):
    write_run(tmp_path / "run", {"val": classified(num_samples=6), "test": classified(num_samples=6)})
    spoil(tmp_path / "run")
    with pytest.raises(ConfigError) as caught:
        read_run(str(tmp_path / "run"), "test")
    for word in [*words, str(tmp_path / "run")]:
        assert word in str(caught.value)


def test_predictions_that_are_none(tmp_path):
    write_run(tmp_path / "run", {"test": classified(num_samples=6)})
    (tmp_path / "run" / "predictions" / "test.parquet").write_bytes(b"not parquet")
    with pytest.raises(DatasetError, match="cannot be read as parquet"):
        read_run(str(tmp_path / "run"), "test")
