"""The command line of a verb: a YAML recipe, dotted overrides, `--print_config`, and errors that say what would be valid."""

import difflib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import jsonargparse
import yaml

from csat.errors import ConfigError

Config = TypeVar("Config")

RECIPES = Path(__file__).parent / "recipes"
# Short for the most frequent choices.
SHORT_FORMS = {"--teacher": "--teacher.name", "--method": "--method.name"}
EXIT_CODE = 2  # of a setting that cannot work, as argparse has it


def parse(config_class: type[Config], description: str, argv: Sequence[str] | None = None) -> tuple[Config, dict[str, Any]]:
    """The configuration of a command line.

    Args:
        config_class: Frozen dataclass of the verb.
        description: What `--help` says first.
        argv: Arguments; those of this process where None.

    Returns:
        The configuration, and the same as plain values for the run folder.

    Raises:
        ConfigError: anything about the arguments or the recipe that cannot be understood.
    """
    parser = jsonargparse.ArgumentParser(
        prog=Path(sys.argv[0]).name,
        description=description,
        exit_on_error=False,
        formatter_class=jsonargparse.DefaultHelpFormatter,
    )
    parser.add_argument("--config", action="config", help=f"a recipe (YAML); by name, one of: {', '.join(recipe_names())}")
    parser.add_class_arguments(config_class)
    arguments = [_expand(argument, previous) for argument, previous in _with_previous(sys.argv[1:] if argv is None else argv)]
    _check_recipes(arguments, config_class)
    try:
        parsed = parser.parse_args(arguments)
    except (jsonargparse.ArgumentError, TypeError, ValueError) as error:
        raise ConfigError(_explain(str(error), config_class)) from error
    parsed.pop("config", None)
    config = config_class(**vars(parser.instantiate(parsed)))
    return config, json.loads(json.dumps(asdict(config)))


def recipe_names() -> list[str]:
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def valid_keys(config_class: type, prefix: str = "") -> list[str]:
    """All settings of a configuration, dotted."""
    hints = get_type_hints(config_class)
    keys = []
    for item in fields(config_class):
        if is_dataclass(hints[item.name]):
            keys += valid_keys(hints[item.name], f"{prefix}{item.name}.")
        else:
            keys.append(prefix + item.name)
    return keys


def _with_previous(arguments: Sequence[str]) -> list[tuple[str, str]]:
    return list(zip(arguments, ["", *arguments], strict=False))


def _expand(argument: str, previous: str) -> str:
    """Short forms of flags, and recipes by name."""
    if previous == "--config" and argument in recipe_names():
        return str(RECIPES / f"{argument}.yaml")
    name, equals, value = argument.partition("=")
    if name == "--config" and value in recipe_names():
        return f"--config={RECIPES / value}.yaml"
    return SHORT_FORMS.get(name, name) + equals + value


def _check_recipes(arguments: Sequence[str], config_class: type) -> None:
    """Keys of a recipe that no setting has: said with the nearest and all valid ones."""
    for argument, previous in _with_previous(arguments):
        path = argument if previous == "--config" else argument.partition("=")[2] if argument.startswith("--config=") else None
        if path is None:
            continue
        if not Path(path).is_file():
            raise ConfigError(f"there is no recipe {path!r}: give a YAML file, or one of: {', '.join(recipe_names())}")
        try:
            recipe = yaml.safe_load(Path(path).read_text())
        except yaml.YAMLError as error:
            raise ConfigError(f"recipe {path} is not YAML: {error}") from error
        if not isinstance(recipe, dict):
            raise ConfigError(f"recipe {path} must be a mapping of settings, not {type(recipe).__name__}")
        for key in _unknown_keys(recipe, config_class):
            raise ConfigError(f"recipe {path}: {_no_such_key(key, config_class)}")


def _unknown_keys(recipe: dict[str, Any], config_class: type, prefix: str = "") -> list[str]:
    hints = get_type_hints(config_class)
    names = {item.name for item in fields(config_class)}
    unknown = []
    for key, value in recipe.items():
        if key not in names:
            unknown.append(prefix + str(key))
        elif is_dataclass(hints[key]) and isinstance(value, dict):
            unknown += _unknown_keys(value, hints[key], f"{prefix}{key}.")
    return unknown


def _explain(message: str, config_class: type) -> str:
    for argument in message.replace("'", " ").replace('"', " ").split():
        if argument.startswith("--") and "nrecognized" in message:
            return _no_such_key(argument.lstrip("-").partition("=")[0], config_class)
    return message


def _no_such_key(key: str, config_class: type) -> str:
    keys = valid_keys(config_class)
    near = difflib.get_close_matches(key, keys, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    return f"there is no setting {key!r}.{hint} Settings are: {', '.join(keys)}"
