"""Settings name places from where the user is; the run's processes are elsewhere."""

import pytest

from csat.errors import ConfigError
from csat.settings import plain_settings, with_places
from workflows.finetuning.config import read_config
from workflows.pretraining.config import PretrainConfig
from workflows.shell import command_line
from workflows.shell.config import MethodConfig, TeacherConfig

SETTINGS = {
    "run_folder": "runs/student",
    "data": {"sets": {"here": "glas", "there": {"path": "more/glas", "mpp": 0.5}, "far": "s3://bucket/glas"}},
    "model": {"init": "run", "from_run": "runs/rckd"},
    "method": {"name": "coco", "options": {"paraphrasers": "kept"}},
    "teacher": {"name": "runs/fanet"},
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "fanet").mkdir(parents=True)
    return tmp_path


def test_every_place_is_absolute(here):
    config = with_places(read_config(SETTINGS))
    assert config.run_folder == str(here / "runs" / "student")
    assert config.data.sets["here"] == str(here / "glas")
    assert config.data.sets["there"] == {"path": str(here / "more" / "glas"), "mpp": 0.5}
    assert config.data.sets["far"] == "s3://bucket/glas"
    assert config.model.from_run == str(here / "runs" / "rckd")
    assert config.method.options == {"paraphrasers": str(here / "kept")}
    assert (config.teacher.name, config.teacher.weights) == ("run", str(here / "runs" / "fanet"))


def test_from_elsewhere_it_means_the_same(here, monkeypatch):
    found = with_places(read_config(SETTINGS))
    monkeypatch.chdir("/")
    assert with_places(found) == found == with_places(read_config(plain_settings(found)))


def test_the_command_line_gives_absolute_places(here):
    argv = ["--run_folder", "run", "--slides", "demo", "slides/*.svs", "s3://bucket/list.csv", "--teacher", "runs/fanet"]
    config = command_line.parse(PretrainConfig, "", [*argv, "--cache.uri", "cache"])
    assert config.run_folder == str(here / "run")
    assert config.slides == ["demo", str(here / "slides/*.svs"), "s3://bucket/list.csv"]
    assert (config.teacher.name, config.teacher.weights) == ("run", str(here / "runs/fanet"))
    assert config.cache.uri == str(here / "cache")


def test_weights_of_a_teacher_are_a_place(here):
    assert with_places(TeacherConfig(name="hovernet", weights="fast.pth")).weights == str(here / "fast.pth")


def test_weights_of_a_student_are_a_place(here):
    assert with_places(read_config({**SETTINGS, "model": {"init": "pretrained", "weights": "a.pt"}})).model.weights == str(
        here / "a.pt"
    )
    argv = ["--run_folder", "run", "--slides", "demo", "--teacher", "stain"]
    one = command_line.parse(PretrainConfig, "", [*argv, "--student.weights", "a.pt"])
    assert one.student.weights == str(here / "a.pt")
    several = command_line.parse(PretrainConfig, "", [*argv, "--students.x", "csat", "--students.y.weights", "a.pt"])
    assert [student.weights for student in several.each_student().values()] == [None, str(here / "a.pt")]


def test_options_that_are_paths_are_places(here):
    """Of a data set's layout, under its own name or another, and of a teacher."""
    sets = {
        "bach": {"path": "x", "options": {"patients": "patients.csv"}},
        "ours": {"path": "x", "layout": "manifest", "options": {"image_root": "images", "classes": ["a", "b"]}},
        "lc25000": {"path": "x", "options": {"groups": "s3://bucket/groups.csv", "organ": "lung"}},
        "unknown": {"path": "x", "options": {"patients": "patients.csv"}},
    }
    found = with_places(read_config({**SETTINGS, "data": {"sets": sets}})).data.sets
    assert found["bach"]["options"] == {"patients": str(here / "patients.csv")}
    assert found["ours"]["options"] == {"image_root": str(here / "images"), "classes": ["a", "b"]}
    assert found["lc25000"]["options"] == sets["lc25000"]["options"]
    assert found["unknown"]["options"] == {"patients": "patients.csv"}, "no layout: the check of the sets refuses it"
    scripted = with_places(TeacherConfig(name="torchscript", weights="a.pt", options={"spec": "b.json"}))
    assert scripted.options == {"spec": str(here / "b.json")}
    for model, place in (("local-dir:uni", f"local-dir:{here / 'uni'}"), ("hf-hub:owner/uni", "hf-hub:owner/uni")):
        assert with_places(TeacherConfig(name="timm", options={"model": model})).options == {"model": place}


def test_what_is_none_or_of_another_type_is_left_to_the_check_of_the_verb(here):
    assert with_places(read_config({**SETTINGS, "teacher": None})).teacher is None
    for options in ({}, {"paraphrasers": None}, {"paraphrasers": 3}, {"nonsense": "x"}):
        assert with_places(MethodConfig(name="coco", options=options)).options == options
    assert with_places(MethodConfig(name="unknown", options={"a": "b"})).options == {"a": "b"}


def test_a_teacher_that_is_nowhere(here):
    with pytest.raises(ConfigError, match="there is no teacher 'runs/gone'"):
        with_places(read_config({**SETTINGS, "teacher": {"name": "runs/gone"}}))
