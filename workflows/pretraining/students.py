"""What several students of a run have to have in common: they learn from one stream, which has one view of each tile."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeVar

from csat.errors import ConfigError
from csat.methods.contract import Method
from csat.runs.folder import RunFolder
from csat.runs.students import folder_of
from workflows.pretraining.config import PretrainConfig

T = TypeVar("T")
Methods = dict[str | None, Method]  # by student; of the only one by None


@contextmanager
def of_student(name: str | None) -> Iterator[None]:
    """What is refused within is about this student: an error names its settings as those of `students`."""
    try:
        yield
    except ConfigError as error:
        if name is None:
            raise
        said = re.sub(r"(?<![\w.])student\.(?=\w)", f"students.{name}.", str(error))
        raise ConfigError(f"students.{name}: {said}") from error


def a_reader(methods: Methods) -> Method:
    """One that reads the stream as all of them do."""
    return next(iter(methods.values()))


def same_of_all(asked: Mapping[str | None, T], method: str) -> T:
    """The stream as every student asks for it.

    Args:
        asked: By student.
        method: The name of theirs.

    Raises:
        ConfigError: two ask for different things.
    """
    (first, stream), *others = asked.items()
    for name, other in others:
        if other != stream:
            raise ConfigError(
                f"students learn from one stream, and with method {method} {first} and {name} ask for different responses, "
                "views or colours: train them in runs of their own"
            )
    return stream


def student_factor(config: PretrainConfig) -> int | None:
    """How much smaller the students' own pixels are read; None: they shrink the tile.

    Raises:
        ConfigError: several that see different pixels.
    """
    if config.student_pixels != "pyramid":
        return None
    factors = {name: student.downsample for name, student in config.each_student().items()}
    if len(set(factors.values())) > 1:
        told = ", ".join(f"{name}: {factor}" for name, factor in factors.items())
        raise ConfigError(
            f"student_pixels pyramid reads one lower level for all students, and theirs differ (downsample of {told}): give "
            "all the same downsample, or leave student_pixels out, so that each shrinks the tile by itself"
        )
    return next(iter(factors.values()))


def begin_students(folder: RunFolder, config: PretrainConfig) -> None:
    """What each of several students' folders says before it has learned: settings as if it were alone, and its teacher."""
    if not config.students:
        return
    teacher = folder.read_json("teacher.json")
    for name, student in config.each_student().items():
        own = RunFolder(folder_of(folder.uri, name))
        own.write_config(replace(config, run_folder=own.uri, student=student, students={}))
        own.write_json("teacher.json", teacher)


def check_no_first_stage(methods: Methods, method: str) -> None:
    """Raises ConfigError for several students of a method that trains something before them, for each its own."""
    if len(methods) > 1 and (stage := a_reader(methods).first_stage()):
        raise ConfigError(
            f"method {method} trains {stage.name} before a student, for it alone, and there are {len(methods)} students: "
            "train each in a run of its own"
        )
