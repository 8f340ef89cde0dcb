"""The model of a run: found in its folder, read from there, and what is said where there is none."""

import pytest

from csat.errors import ConfigError
from csat.model.files import exported_folder, load_exported, save_model
from csat.tasks import Task
from tests.csat.model.test_registry import build


def test_a_run_folder_and_its_exported_folder(tmp_path):
    save_model(build("unet", Task.NUCLEI), str(tmp_path / "exported"), {})
    (tmp_path / "config.yaml").write_text("")
    assert exported_folder(str(tmp_path)) == exported_folder(str(tmp_path / "exported")) == str(tmp_path / "exported")
    assert load_exported(str(tmp_path)).kind == load_exported(str(tmp_path / "exported")).kind == "unet"


def test_an_unfinished_run(tmp_path):
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(ConfigError, match="has not exported its model yet"):
        exported_folder(str(tmp_path))


def test_what_is_there_is_said(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ConfigError, match="neither a run folder nor an exported model.*it holds notes.txt"):
        exported_folder(str(tmp_path))
    with pytest.raises(ConfigError, match="there is no such folder"):
        exported_folder(str(tmp_path / "gone"))
