import os
from dataclasses import dataclass, field

import pytest

from csat.errors import ConfigError, StorageError
from csat.runs.folder import RunFolder, compare_configs

CONFIG = {"teacher": {"name": "stain", "options": {}}, "train": {"epochs": 2, "compile": False}, "workers": {"num_workers": 1}}


def changed(**train):
    return {**CONFIG, "train": {**CONFIG["train"], **train}}


def test_the_same_run_goes_on(tmp_path):
    folder = RunFolder(str(tmp_path / "run"))
    assert folder.open(CONFIG, overwrite=False) is False
    assert folder.open(CONFIG, overwrite=False) is True


def test_more_workers_are_still_the_same_run(tmp_path):
    folder = RunFolder(str(tmp_path / "run"))
    folder.open(CONFIG, overwrite=False)
    assert folder.open({**changed(compile=True), "workers": {"num_workers": 8}}, overwrite=False) is True


def test_another_configuration_is_refused_with_the_difference(tmp_path):
    folder = RunFolder(str(tmp_path / "run"))
    folder.open(CONFIG, overwrite=False)
    folder.set_status("running")
    with pytest.raises(ConfigError, match=r"train\.epochs: was 2, is 3"):
        folder.open(changed(epochs=3), overwrite=False)
    folder.set_status("finished")
    assert folder.open(changed(epochs=3), overwrite=True) is False
    assert not folder.is_finished(), "overwriting forgets the earlier run"


@dataclass(frozen=True, kw_only=True)
class LaterSettings:
    """As CONFIG, with a group of settings that CONFIG's version did not have."""

    teacher: dict
    train: dict
    workers: dict
    cache: dict = field(default_factory=lambda: {"gb": 0})


def test_a_run_of_an_earlier_version_goes_on_where_new_settings_are_at_their_defaults(tmp_path):
    folder = RunFolder(str(tmp_path / "run"))
    folder.open(CONFIG, overwrite=False)
    folder.set_status("running")
    with pytest.raises(ConfigError, match=r"cache\.gb: was not set, is 0"):
        folder.open({**CONFIG, "cache": {"gb": 0}}, overwrite=False)
    with pytest.raises(ConfigError, match=r"cache\.gb: was 0, is 5"):
        folder.open({**CONFIG, "cache": {"gb": 5}}, overwrite=False, config_class=LaterSettings)
    assert folder.open({**CONFIG, "cache": {"gb": 0}}, overwrite=False, config_class=LaterSettings) is True


def test_a_run_with_a_setting_that_has_gone_is_another_run(tmp_path):
    folder = RunFolder(str(tmp_path / "run"))
    folder.open({**CONFIG, "gone": 1}, overwrite=False)
    folder.set_status("running")
    with pytest.raises(ConfigError, match="gone: was 1, is not set"):
        folder.open(CONFIG, overwrite=False, config_class=LaterSettings)


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


def test_comparison_names_missing_settings():
    assert compare_configs({"a": {"b": 1}}, {"a": {"c": 1}}) == ["a.b: was 1, is not set", "a.c: was not set, is 1"]
