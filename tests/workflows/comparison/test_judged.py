"""What is judged is opened by what it is: a run, a student, a model's folder, a teacher."""

import pytest

from csat.errors import ConfigError, DatasetError
from csat.evaluation.judged_run import TEACHER
from csat.labels.sets import LabelledConfig
from csat.settings import with_places
from csat.tasks import Task
from tests.support.made_up import classified, write_run
from tests.support.nuclei_folders import NUCLEI, TYPES, make_nuclei, write_student
from workflows.comparison.config import AnswererConfig, EvaluateConfig, name_runs
from workflows.comparison.data import gather
from workflows.comparison.judged import read_judged


@pytest.fixture
def student(tmp_path):
    return write_student(tmp_path / "student")


def judged(given, split=None):
    return read_judged(given, split, device="cpu")


def test_names_of_whatever_answers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = {
        "student": "a",
        "stain": {"teacher": "stain"},
        "net": {"teacher": "hovernet", "weights": "w.pth", "options": {"mode": "fast"}},
        "file": {"model": "m.onnx", "mpp": 0.5},
    }
    config = with_places(EvaluateConfig(runs=runs, run_folder="out"))
    found = name_runs(config.runs)
    assert found["student"] == [f"{tmp_path}/a"]
    assert found["stain"] == [AnswererConfig(teacher="stain")]
    assert found["net"][0].name == f'hovernet {tmp_path}/w.pth {{"mode": "fast"}}'
    assert found["file"] == [AnswererConfig(model=f"{tmp_path}/m.onnx", mpp=0.5)]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "a teacher .* or a model .*, and not both"),
        ({"teacher": "stain", "model": "x"}, "and not both"),
        ({"teacher": "stain", "mpp": 0.0}, "mpp"),
        ({"teachr": "stain"}, "no setting 'teachr'. Did you mean teacher"),
    ],
)
def test_settings_that_cannot_work(given, words):
    with pytest.raises(ConfigError, match=words):
        name_runs({"a": given})


def test_a_student_straight_from_pretraining(student):
    run = judged(student)
    assert (run.task, run.classes, run.sees) == (Task.NUCLEI, (), "64 px at 0.5 um/px")
    assert run.evaluation["model"] == {"name": "csat_nano", "init": "random", "from_run": student}
    assert run.evaluation["cost"]["params"] == sum(each.numel() for each in run.answers.model.parameters())
    assert run.evaluation["cost"]["macs"] > 0
    with pytest.raises(ConfigError, match=r"student is no run of finetune.py and knows no labelled images: .*data.sets.NAME"):
        judged(student, "test")


def test_an_exported_folder_and_a_teacher(student):
    assert judged(f"{student}/exported").sees == "64 px at 0.5 um/px"
    stain = judged(AnswererConfig(teacher="stain", mpp=0.25, tile_px=128))
    assert (stain.uri, stain.sees, stain.evaluation["cost"]) == ("stain", "128 px at 0.25 um/px", {})
    assert stain.evaluation["model"] == {"name": "stain", "init": TEACHER, "weights": None}
    options = {"mode": "fast", "width": 0.0625, "random_weights": True}
    net = judged(AnswererConfig(teacher="hovernet", options=options))
    assert (len(net.classes), net.evaluation["cost"]["params"] > 0) == (5, True)


def test_a_model_of_the_package_by_its_name_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # no folder of that name is here
    run = judged("hovernet-nuclei")
    assert (run.sees, run.evaluation["model"]["name"]) == ("224 px at 0.5 um/px", "hovernet-nuclei")
    with pytest.raises(ConfigError, match="hovernet-nucleii is no run folder.*With the package come: .*hovernet-nuclei"):
        judged("hovernet-nucleii")


def test_a_finished_run_is_read_as_one(tmp_path):
    folder = write_run(tmp_path / "run", {"test": classified(num_samples=6)})
    assert judged(folder.uri, "test").predictions.keys == classified(num_samples=6).keys


def test_a_pretraining_on_whole_images_needs_to_be_told_a_size(tmp_path):
    place = write_student(tmp_path / "whole", tile_px=None)
    with pytest.raises(ConfigError, match="trained on whole images"):
        judged(place)
    assert judged(AnswererConfig(model=place, tile_px=128)).sees == "128 px at 0.5 um/px"


class TestTheData:
    @pytest.fixture
    def config(self, tmp_path):
        return LabelledConfig(sets={"own": make_nuclei(tmp_path / "set", num_images=1)})

    def gather(self, config, *runs, accept_leakage=True):
        return gather(runs, config, "all", accept_leakage=accept_leakage)

    def test_types_are_judged_where_everybody_has_them(self, config, tmp_path, student, caplog):
        typed = judged(write_student(tmp_path / "typed", *NUCLEI, TYPES))
        assert typed.classes == ("dead", "epithelial")
        data = self.gather(config, typed, judged(student))
        assert data.info.classes == () and not caplog.text, "the labels have none"
        assert len(data.splits["test"]) == 1

    def test_an_image_that_states_no_resolution(self, tmp_path, student):
        config = LabelledConfig(sets={"own": {**make_nuclei(tmp_path / "set", num_images=1), "options": {}}})
        with pytest.raises(ConfigError, match=r"student sees 0.5 um/px and .*0.png does not state its resolution"):
            self.gather(config, judged(student))

    def test_an_image_that_is_too_coarse(self, config, tmp_path):
        with pytest.raises(ConfigError, match=r"sees 0.25 um/px and .*0.png has 0.5: enlarging it 2 times shows nothing new"):
            self.gather(config, judged(write_student(tmp_path / "fine", mpp=0.25)))

    def test_a_teacher_whose_weights_are_called_after_the_set(self, config, tmp_path):
        run = judged(AnswererConfig(teacher="stain"))
        run.evaluation["model"]["weights"] = f"{tmp_path}/net_on_pairs.pth"
        with pytest.raises(DatasetError, match="was trained on pairs, as its weights are called"):
            self.gather(config, run, accept_leakage=False)
        assert self.gather(config, run).info.name == "pairs"
