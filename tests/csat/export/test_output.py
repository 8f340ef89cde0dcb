"""A second export replaces what the first has made, and nothing else; local and in a bucket."""

import json

import pytest

from csat.errors import ConfigError
from csat.export.output import MADE, check_output, commit
from csat.storage import files


def make(folder, **names):
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    for name, text in names.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


@pytest.fixture(params=["local", "bucket"])
def output(request, tmp_path):
    return str(tmp_path / "out") if request.param == "local" else f"{request.getfixturevalue('s3')}/models/out"


def names(output):
    return {files.base_name(name) for name in files.list_dir(output)}


def test_a_second_export_replaces_what_the_first_made(tmp_path, output):
    check_output(output, overwrite=False)
    commit(make(tmp_path / "a", config__json="{}", model__onnx="1", README__md="one"), output, {"model": "runs/a"})
    files.write_bytes(files.join(output, "notes.txt"), b"mine")
    assert names(output) == {"config.json", "model.onnx", "README.md", MADE, "notes.txt"}
    about = json.loads(files.read_bytes(files.join(output, MADE)))
    assert about["model"] == "runs/a" and about["files"]["model.onnx"]["bytes"] == 1
    check_output(output, overwrite=False)
    commit(make(tmp_path / "a", config__json="{}", README__md="two"), output, {"model": "runs/a"})
    assert names(output) == {"config.json", "README.md", MADE, "notes.txt"}
    assert files.read_bytes(files.join(output, "README.md")) == b"two"
    assert files.read_bytes(files.join(output, "notes.txt")) == b"mine"


def test_files_of_others_are_not_replaced_without_a_word(tmp_path, output):
    files.make_dir(output)
    files.write_bytes(files.join(output, "README.md"), b"written by hand")
    files.write_bytes(files.join(output, "data.csv"), b"1")
    with pytest.raises(ConfigError, match="holds README.md, which no export has made"):
        check_output(output, overwrite=False)
    check_output(output, overwrite=True)
