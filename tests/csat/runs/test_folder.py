import os
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import yaml

from csat.errors import ConfigError, StorageError
from csat.runs.folder import RunFolder, compare_configs
from csat.settings import Free, Place


@dataclass(frozen=True, kw_only=True)
class Train:
    epochs: int = 2
    compile: Free[bool] = False


@dataclass(frozen=True, kw_only=True)
class Config:
    """As of a verb."""

    slides: Place = "/slides"
    train: Train = field(default_factory=Train)
    workers: Free[dict[str, Any]] = field(default_factory=lambda: {"num_workers": 1})


@dataclass(frozen=True, kw_only=True)
class LaterConfig(Config):
    """Of a version that has a setting more."""

    cache: dict[str, Any] = field(default_factory=lambda: {"gb": 0})


@dataclass(frozen=True, kw_only=True)
class EarlierConfig(Config):
    """Of a version that has a setting that has gone since."""

    gone: int = 1


CONFIG = Config()


def changed(**train):
    return replace(CONFIG, train=Train(**train))


def test_the_same_run_is_resumed(tmp_path):
    folder = RunFolder(str(tmp_path / "run"))
    assert folder.open(CONFIG, overwrite=False) is False
    assert folder.open(CONFIG, overwrite=False) is True
    recorded = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert recorded == {"slides": "/slides", "train": {"epochs": 2, "compile": False}, "workers": {"num_workers": 1}}


def test_more_workers_are_still_the_same_run(tmp_path):
    folder = RunFolder(str(tmp_path / "run"))
    folder.open(CONFIG, overwrite=False)
    assert folder.open(replace(changed(compile=True), workers={"num_workers": 8}), overwrite=False) is True


def test_another_configuration_is_refused_with_the_difference(tmp_path):
    folder = RunFolder(str(tmp_path / "run"))
    folder.open(CONFIG, overwrite=False)
    folder.set_status("running")
    with pytest.raises(ConfigError, match=r"train\.epochs: was 2, is 3"):
        folder.open(changed(epochs=3), overwrite=False)
    folder.set_status("finished")
    assert folder.open(changed(epochs=3), overwrite=True) is False
    assert not folder.is_finished(), "overwriting forgets the earlier run"


def test_a_run_of_an_earlier_version_is_resumed_where_new_settings_are_at_their_defaults(tmp_path):
    folder = RunFolder(str(tmp_path / "run"))
    folder.open(CONFIG, overwrite=False)
    folder.set_status("running")
    with pytest.raises(ConfigError, match=r"cache\.gb: was 0, is 5"):
        folder.open(LaterConfig(cache={"gb": 5}), overwrite=False)
    assert folder.open(LaterConfig(), overwrite=False) is True


def test_a_default_that_has_changed_since_is_that_of_the_earlier_run(tmp_path):
    folder = RunFolder(str(tmp_path / "run"))
    folder.open(CONFIG, overwrite=False)
    folder.set_status("running")
    as_before = {"overwrite": False, "as_before": lambda earlier: {**earlier, "cache": {"gb": 9}}}
    with pytest.raises(ConfigError, match=r"cache\.gb: was 9, is 0"):
        folder.open(LaterConfig(), **as_before)
    assert folder.open(LaterConfig(cache={"gb": 9}), **as_before) is True


def test_an_earlier_version_recorded_places_as_they_were_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = RunFolder("run")
    folder.open(replace(CONFIG, slides="slides"), overwrite=False)
    folder.set_status("running")
    assert folder.open(replace(CONFIG, slides=str(tmp_path / "slides")), overwrite=False) is True
    with pytest.raises(ConfigError, match="slides: was .*slides, is /elsewhere"):
        folder.open(replace(CONFIG, slides="/elsewhere"), overwrite=False)


def test_a_run_with_a_setting_that_has_gone_is_another_run(tmp_path):
    folder = RunFolder(str(tmp_path / "run"))
    folder.open(EarlierConfig(), overwrite=False)
    folder.set_status("running")
    with pytest.raises(ConfigError, match="gone: was 1, is not set"):
        folder.open(CONFIG, overwrite=False)


def test_a_run_that_never_began_may_be_corrected(tmp_path):
    folder = RunFolder(str(tmp_path / "run"))
    folder.open(CONFIG, overwrite=False)
    folder.write_json("teacher.json", {"name": "left over"})
    assert folder.open(changed(epochs=3), overwrite=False) is False
    assert folder.read_json("teacher.json") is None


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path):
    (tmp_path / "thesis.docx").write_text("precious")
    with pytest.raises(ConfigError, match="not empty and is no run folder.*thesis.docx"):
        RunFolder(str(tmp_path)).open(CONFIG, overwrite=True)
    assert (tmp_path / "thesis.docx").exists()


def test_an_unwritable_folder_is_an_error_before_anything_starts(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError):
        RunFolder(str(tmp_path / "file" / "run")).open(CONFIG, overwrite=False)


@pytest.mark.skipif(os.geteuid() != 0, reason="/proc refuses root; others get as far as their own permissions")
def test_a_file_system_that_refuses_writes_is_an_error():
    with pytest.raises(StorageError):
        RunFolder("/proc/run").open(CONFIG, overwrite=False)


def test_comparison_names_missing_settings_and_leaves_free_ones_out():
    assert compare_configs({"a": {"b": 1}}, {"a": {"c": 1}}) == ["a.b: was 1, is not set", "a.c: was not set, is 1"]
    assert compare_configs({"a": {"b": 1}, "ab": 1}, {"a": {"b": 2}, "ab": 2}, free={"a"}) == ["ab: was 1, is 2"]
