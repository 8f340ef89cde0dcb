"""The students of a run that has several: where each has its folder, and under which names the run keeps their figures.

`RUN/students/NAME` is laid out as the folder of a run with that student alone, but for what the students share: manifest/ and
checkpoints/ are the run's.
"""

import re
from collections.abc import Iterable

from csat.errors import ConfigError
from csat.storage import files

STUDENTS = "students"  # the folder in a run's, and the key of a checkpoint's state
NAME = re.compile(r"[A-Za-z0-9][\w-]*")
MOST_LETTERS = 64


def folder_of(run_folder: str, name: str | None) -> str:
    """URI of a student's folder; of the only student of a run (None) it is the run's."""
    return run_folder if name is None else files.join(run_folder, STUDENTS, name)


def run_of(folder: str) -> str:
    """The run in which a folder is a student's, by its place; any other folder itself."""
    above = files.parent(folder)
    return files.parent(above) if files.base_name(above) == STUDENTS else folder


def manifest_of(folder: str) -> str:
    """URI of the manifest of a run; of a student's folder, of the run that it is in."""
    own = files.join(folder, "manifest")
    return own if files.exists(files.join(own, "index.json")) else files.join(run_of(folder), "manifest")


def check_names(names: Iterable[str]) -> None:
    """Whether folders can be called by these. Raises ConfigError naming the one that is none."""
    for name in names:
        if not NAME.fullmatch(name) or len(name) > MOST_LETTERS:
            raise ConfigError(
                f"students: {name!r} is no name for a student: letters, digits, - and _ make one, at most {MOST_LETTERS}"
            )


def seconds_meter(name: str) -> str:
    """Of the cursor: seconds of forward, backward and update of a student, over all ranks."""
    return f"student_s/{name}"


def tiles_meter(name: str) -> str:
    """Of the cursor: tiles that a student learned from."""
    return f"student_tiles/{name}"
