"""What status.json says while a verb works, and how it ended."""

import pytest

from csat.errors import ConfigError, StorageError
from csat.runs.folder import RunFolder
from workflows.shell import interruption
from workflows.shell.status import under_way


@pytest.fixture
def folder(tmp_path):
    return RunFolder(str(tmp_path))


def status(folder):
    return folder.read_json("status.json")


def test_it_is_running_and_then_finished(folder):
    with under_way(folder):
        assert status(folder) == {"state": "running"}
    assert status(folder) == {"state": "finished"}


def test_an_error_is_written_down_and_goes_on(folder):
    with pytest.raises(ConfigError), under_way(folder):
        raise ConfigError("no room")
    assert status(folder) == {"state": "failed", "error": "no room", "kind": "ConfigError"}


def test_what_an_interruption_breaks_is_no_failure(folder, monkeypatch):
    monkeypatch.setattr(interruption, "is_interrupted", lambda: True)
    with pytest.raises(ConnectionError), under_way(folder):
        raise ConnectionError("Ray has ended")
    assert status(folder) == {"state": "running"}, "until `kept` says that it was interrupted"


def test_where_the_status_cannot_be_written_the_error_itself_is_told(folder, monkeypatch, caplog):
    def refuse(state, **details):
        if state == "failed":
            raise StorageError("the disk is full")
        folder.write_json("status.json", {"state": state})

    monkeypatch.setattr(folder, "set_status", refuse)
    with pytest.raises(StorageError, match="part 7"), under_way(folder):
        raise StorageError("part 7 cannot be written")
    assert status(folder) == {"state": "running"} and "still says that it is running: the disk is full" in caplog.text
