"""The places that settings name, absolute: workers, trials and other nodes start in other folders than the verb did."""

import copy
from collections.abc import Mapping
from typing import Any, TypeVar

from csat.settings import read_settings
from csat.storage import files
from teachers.registry import find_teacher

Config = TypeVar("Config")

PLACES = (("run_folder",), ("model", "from_run"), ("method", "options", "paraphrasers"))


def with_places_found(config: Config, plain: dict[str, Any]) -> tuple[Config, dict[str, Any]]:
    """A verb's configuration with absolute places, in the run's record too.

    Args:
        plain: `config` as plain values.

    Raises:
        ConfigError: as `absolute`.
    """
    plain = absolute(plain)
    return read_settings(type(config), plain, what="settings"), plain


def absolute(settings: Mapping[str, Any], *, data_root: str | None = None) -> dict[str, Any]:
    """Nested settings of a verb with every place absolute, and `--teacher FOLDER` as the teacher that it means.

    What is not there, or not of the type that it should be, stays as it is: the verb's own check says what is wrong with it.

    Args:
        data_root: What relative folders of `data.sets` are below; None: the current folder.

    Raises:
        ConfigError: as `find_teacher`.
    """
    settings = copy.deepcopy(dict(settings))
    for *path, name in PLACES:
        section = _section(settings, *path)
        if isinstance(section.get(name), str):
            section[name] = files.normalise(section[name])
    sets = _section(settings, "data", "sets")
    sets.update({name: _placed(value, data_root) for name, value in sets.items()})
    teacher = _section(settings, "teacher")
    if isinstance(teacher.get("name"), str):
        teacher["name"], teacher["weights"] = find_teacher(teacher["name"], teacher.get("weights"))
    return settings


def _section(settings: dict[str, Any], *path: str) -> dict[str, Any]:
    """The mapping at `path`; an empty one, of no effect, where there is none."""
    for name in path:
        settings = settings.get(name)
        if not isinstance(settings, dict):
            return {}
    return settings


def _placed(value: Any, data_root: str | None) -> Any:
    if isinstance(value, Mapping) and isinstance(value.get("path"), str):
        return {**value, "path": _placed(value["path"], data_root)}
    if not isinstance(value, str):
        return value
    return files.normalise(files.join(data_root, value) if data_root is not None else value)
