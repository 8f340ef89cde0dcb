import pytest

from csat.errors import ConfigError, DatasetError
from csat.evaluation.judged_run import is_finetuned, judged_answers, read_run
from csat.prediction.answers import ModelAnswers
from csat.responses import Kind, ResponseSpec
from csat.tasks import Task
from tests.csat.prediction.by_colour import ByColour, responses_of
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


def test_whatever_answers_is_judged_through_windows_of_its_own():
    answers = ModelAnswers(ByColour(responses_of(Task.NUCLEI)), tile_px=64, metadata={"mpp": 0.5})
    run = judged_answers(answers, "by colour", model={"init": "teacher"}, seed=3, cost={"params": 7})
    assert (run.task, run.classes, run.uri, run.answers) == (Task.NUCLEI, (), "by colour", answers)
    assert run.config["data"] == {"tile_px": 64, "mpp": 0.5, "fit": "crop"}
    assert run.sees == "64 px at 0.5 um/px"
    assert run.evaluation["metric"] == "dice" and run.evaluation["model"] == {"name": "ByColour", "init": "teacher"}
    assert judged_answers(answers, "x", fit="resize").sees == "the whole image as 64 px"


def test_embeddings_alone_cannot_be_judged():
    model = ByColour((ResponseSpec(name="np", kind=Kind.PROBABILITY, channels=1),))
    with pytest.raises(ConfigError, match="x answers np, which no labels can be compared with: nuclei need np and hv"):
        judged_answers(ModelAnswers(model, tile_px=64), "x")


def test_what_is_a_run_and_what_only_answers(tmp_path):
    write_run(tmp_path / "run", {"test": classified(num_samples=6)})
    assert is_finetuned(str(tmp_path / "run"))
    (tmp_path / "run" / "config.yaml").write_text("slides: [a]")
    assert not is_finetuned(str(tmp_path / "run"))
    assert not is_finetuned(str(tmp_path / "model.onnx"))
    (tmp_path / "config.json").write_text("{}")
    assert not is_finetuned(str(tmp_path))
    assert is_finetuned(str(tmp_path / "nowhere")), "and `read_run` says what is missing"
