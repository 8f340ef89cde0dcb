"""The folder that an export is written to, local or in a bucket: made aside, checked against what is there, then put in place.

export.json lists what was made. By that list a second export knows what it may replace, and takes away what it no longer
makes; every other file stays as it is. config.json comes last: without it a folder is no model.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from csat.errors import ConfigError
from csat.model.files import CONFIG
from csat.storage import files
from csat.words import some

MADE = "export.json"
# What an export can write, whatever it was asked for.
NAMES = (
    "README.md",
    CONFIG,
    MADE,
    "model.safetensors",
    "student.safetensors",
    "hovernet.safetensors",
    "csat_timm.py",
    "resnet10_timm.py",
    "model.onnx",
    "model.int8.onnx",
    "model.fp16.onnx",
    "model.openvino.xml",
    "model.openvino.bin",
    "torchscript_model.pt",
)


def check_output(uri: str, *, overwrite: bool) -> None:
    """Refuse a folder whose files an export would replace without having made them.

    Args:
        overwrite: The user says so.

    Raises:
        StorageError: it cannot be written.
        ConfigError: it holds such files.
    """
    files.check_writable(uri)
    if overwrite:
        return
    made, there = _made(uri), [files.base_name(name) for name in files.list_dir(uri)] if files.is_dir(uri) else []
    if foreign := [name for name in there if name in NAMES and name not in made]:
        raise ConfigError(
            f"{uri} holds {some(foreign)}, which no export has made: choose another output, or say overwrite=true to replace "
            "them"
        )


def commit(made: Path, uri: str, about: dict[str, Any]) -> None:
    """Put a local folder's files in place.

    Args:
        made: The folder, without export.json.
        about: What export.json says beside the list.
    """
    names = sorted(path.name for path in made.iterdir())
    assert set(names) <= set(NAMES), names
    before = _made(uri)
    files.make_dir(uri)
    files.delete(files.join(uri, CONFIG))
    for name in sorted(before - set(names) - {MADE}):
        files.delete(files.join(uri, name))
    listed = {name: {"bytes": (made / name).stat().st_size, "sha256": _sha256(made / name)} for name in names}
    text = json.dumps({"files": listed, **about}, indent=2) + "\n"
    files.write_bytes(files.join(uri, MADE), text.encode())
    for name in sorted(names, key=lambda name: name == CONFIG):
        files.write_bytes(files.join(uri, name), (made / name).read_bytes())


def _made(uri: str) -> set[str]:
    """Names of the files that an earlier export has made here."""
    place = files.join(uri, MADE)
    if not files.exists(place):
        return set()
    try:
        return {*json.loads(files.read_bytes(place))["files"], MADE}
    except (ValueError, KeyError, TypeError):
        return set()


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
