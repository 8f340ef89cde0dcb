"""The methods by name, and how a recipe's settings become one."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

from csat.errors import ConfigError
from csat.methods.contract import Method
from csat.methods.rckd import RCKD, RCKDConfig
from csat.model.student import Student, StudentConfig
from csat.responses import ResponseSpec, TeacherSpec

METHODS: dict[str, tuple[type, type[Method]]] = {
    "rckd": (RCKDConfig, RCKD),
}


def read_options(name: str, options: Mapping[str, Any]) -> Any:
    """A method's config from the settings of a recipe.

    Args:
        name: Of the method.
        options: Field → value; the value of a nested config is itself such a mapping, or the config.

    Raises:
        ConfigError: an unknown method or setting (the valid ones are listed), or a value that cannot be.
    """
    if name not in METHODS:
        raise ConfigError(f"there is no method {name!r}; there is: {', '.join(METHODS)}")
    return _build_config(METHODS[name][0], options, path="method")


def wanted_responses(name: str, options: Mapping[str, Any], teacher: TeacherSpec) -> tuple[ResponseSpec, ...]:
    """What the teacher pool has to produce, known before any model is built.

    Raises:
        ConfigError: as `read_options`.
        TeacherError: the teacher does not give what the method needs.
    """
    config = read_options(name, options)
    return METHODS[name][1].needs(config, teacher)


def build_method(
    name: str, options: Mapping[str, Any], student_config: StudentConfig, teacher: TeacherSpec, *, tile_px: int
) -> Method:
    """A method with a fresh student, on the CPU.

    Args:
        name: Of the method.
        options: Its settings.
        student_config: Of the student to build.
        teacher: Whose responses it learns.
        tile_px: Edge of the tiles.

    Raises:
        ConfigError: settings that cannot work, alone or together.
        TeacherError: the teacher does not give what the method needs.
    """
    config = read_options(name, options)
    _, method_class = METHODS[name]
    responses = method_class.needs(config, teacher)
    student = Student(student_config, responses)
    student.check_tile(tile_px)
    return method_class(config, student, responses, tile_px=tile_px, downsample=student_config.downsample)


def _build_config(config_class: type, options: Any, path: str) -> Any:
    if isinstance(options, config_class):
        return options
    if not isinstance(options, Mapping):
        raise ConfigError(f"{path} must be a mapping of settings, not {options!r}")
    valid = [item.name for item in fields(config_class)]
    if unknown := [key for key in options if key not in valid]:
        raise ConfigError(f"{path} has no setting {', '.join(map(repr, unknown))}; it has: {', '.join(valid)}")
    hints = get_type_hints(config_class)
    values = {}
    for key, value in options.items():
        if is_dataclass(hints[key]):
            value = _build_config(hints[key], value, path=f"{path}.{key}")
        elif not _fits(value, hints[key]):
            raise ConfigError(f"{path}.{key} must be of type {hints[key].__name__}, not {value!r}")
        values[key] = tuple(value) if isinstance(value, list) else value  # YAML has lists only
    return config_class(**values)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a plain number, switch or name is of the field's type; other types are the config's own to check."""
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return hint not in (bool, int, str) or type(value) is hint
