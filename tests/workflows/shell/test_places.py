"""Settings name places from where the user is; the run's processes are elsewhere."""

from dataclasses import replace

import pytest

from csat.errors import ConfigError
from workflows.finetuning.config import read_config
from workflows.shell.places import absolute, with_places_found

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


def test_every_place_is_absolute_in_the_configuration_and_in_the_record(here):
    config, plain = with_places_found(*read_config(SETTINGS))
    assert (config, plain) == read_config(plain)
    assert config.run_folder == str(here / "runs" / "student")
    assert config.data.sets["here"] == str(here / "glas")
    assert config.data.sets["there"] == {"path": str(here / "more" / "glas"), "mpp": 0.5}
    assert config.data.sets["far"] == "s3://bucket/glas"
    assert config.model.from_run == str(here / "runs" / "rckd")
    assert config.method.options == {"paraphrasers": str(here / "kept")}
    assert (config.teacher.name, config.teacher.weights) == ("run", str(here / "runs" / "fanet"))


def test_from_elsewhere_it_means_the_same(here, monkeypatch):
    found = absolute(SETTINGS)
    monkeypatch.chdir("/")
    assert absolute(found) == found


def test_the_given_settings_are_left_alone(here):
    before = str(SETTINGS)
    absolute(SETTINGS)
    assert str(SETTINGS) == before


def test_data_below_a_root(here):
    sets = absolute(SETTINGS, data_root="data")["data"]["sets"]
    assert sets["here"] == str(here / "data" / "glas") and sets["far"] == "s3://bucket/glas"


def test_what_is_not_there_or_of_another_type_is_left_to_the_check_of_the_verb(here):
    assert absolute({"teacher": None, "model": 3, "data": {"sets": None}, "method": {"options": {}}, "run_folder": 5}) == {
        "teacher": None,
        "model": 3,
        "data": {"sets": None},
        "method": {"options": {}},
        "run_folder": 5,
    }
    without, plain = read_config({**SETTINGS, "teacher": None})
    assert with_places_found(without, plain)[0].teacher is None


def test_a_teacher_that_is_nowhere(here):
    config, plain = read_config(SETTINGS)
    config = replace(config, teacher=replace(config.teacher, name="runs/gone"))
    plain["teacher"]["name"] = "runs/gone"
    with pytest.raises(ConfigError, match="there is no teacher 'runs/gone'"):
        with_places_found(config, plain)
