"""A trained student as files that others can use: safetensors, config.json and, with timm's keys, the backbone alone."""

import tempfile
from pathlib import Path
from typing import Any

from torch import Tensor

from csat.data import storage
from csat.methods.contract import Method
from csat.model.student import Student, load_student, save_student

PREFIX = "student."  # of the student's tensors in a method's state


def export_student(method: Method, state: dict[str, Tensor], folder: str, metadata: dict[str, Any]) -> None:
    """Write the student of a method.

    Args:
        method: Built as for training; its student takes the weights.
        state: Of the method, as in a checkpoint (averaged weights where there are any).
        folder: URI; holds `student.safetensors` (everything), `backbone.safetensors` (timm's keys) and `config.json` after.
        metadata: JSON-ready; goes into config.json: what it saw and whom it learned from.
    """
    method.load_state_dict(state)
    student = method.part("student").eval()
    with tempfile.TemporaryDirectory(prefix="csat-export-") as scratch:
        save_student(student, Path(scratch), metadata)
        storage.make_dir(folder)
        for path in sorted(Path(scratch).iterdir()):
            storage.write_bytes(storage.join(folder, path.name), path.read_bytes())


def load_exported(folder: str) -> Student:
    """The student in an exported folder, local or remote, on the CPU.

    Raises:
        ConfigError: the folder holds no exported student.
    """
    if storage.is_local(folder):
        return load_student(storage.local_path(folder))
    with tempfile.TemporaryDirectory(prefix="csat-export-") as scratch:
        for uri in storage.list_dir(folder):
            (Path(scratch) / storage.base_name(uri)).write_bytes(storage.read_bytes(uri))
        return load_student(Path(scratch))
