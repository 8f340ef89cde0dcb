"""The teacher of a run, for every verb that has one: found from wherever a process starts, and the same to the end."""

from dataclasses import replace
from typing import Any, TypeVar

from csat.errors import ConfigError
from csat.responses import TeacherSpec
from csat.training.run_folder import RunFolder
from teachers.contract import teacher_manifest
from teachers.registry import find_teacher

Config = TypeVar("Config")


def with_teacher_found(config: Config, plain: dict[str, Any]) -> tuple[Config, dict[str, Any]]:
    """`--teacher FOLDER` as the teacher that it means, in the run's record too: other processes start in other folders.

    Args:
        config: Of a verb, with `teacher`.
        plain: The same as plain values.

    Raises:
        ConfigError: as `find_teacher`.
    """
    if config.teacher is None:
        return config, plain
    name, weights = find_teacher(config.teacher.name, config.teacher.weights)
    plain = {**plain, "teacher": {**plain["teacher"], "name": name, "weights": weights}}
    return replace(config, teacher=replace(config.teacher, name=name, weights=weights)), plain


def check_same_teacher(folder: RunFolder, spec: TeacherSpec) -> None:
    """A run goes on with the teacher that it began with; teacher.json says which.

    Raises:
        ConfigError: it was another one; lists the difference.
    """
    now, earlier = teacher_manifest(spec), folder.read_json("teacher.json")
    if earlier is not None and earlier != now and folder.has_begun():
        differences = [f"{key}: was {earlier.get(key)}, is {now.get(key)}" for key in now if earlier.get(key) != now.get(key)]
        raise ConfigError(
            f"{folder.uri} was begun with another teacher:\n  "
            + "\n  ".join(differences)
            + "\nGive the earlier weights back, or choose another --run_folder"
        )
    folder.write_json("teacher.json", now)
