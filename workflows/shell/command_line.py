"""The command line of a verb: a YAML recipe, dotted overrides, `--print_config`, and errors that say what would be valid."""

import json
import logging
import signal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import jsonargparse
import yaml

from csat.errors import ConfigError, DatasetError, NonFiniteLossError, StorageError, TeacherError
from csat.settings import (
    UnknownSettingError,
    add_settings,
    no_such_key,
    settings_of,
    unknown_keys,
    with_places,
)
from csat.words import printable
from workflows.shell import interruption, output
from workflows.shell.flags import with_flags
from workflows.shell.help import SHORT_FORMS, HelpFormatter, HelpParser, as_called, epilog, takes_list

logger = logging.getLogger(__name__)

Config = TypeVar("Config")

RECIPES = Path(__file__).parents[1] / "recipes"
EXIT_CODE = 2  # of a setting that cannot work, as argparse has it

# What a mapping of settings becomes when dotted paths below it are set: (mapping, path → value) → mapping.
Merge = Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, Any]]


def run(
    work: Callable[[Config], int],
    config_class: type[Config],
    description: str,
    argv: Sequence[str] | None = None,
    *,
    nested: Mapping[str, Merge] | None = None,
    holds: Mapping[str, type] | None = None,
    kept: Callable[[Config], str] = lambda config: "nothing: it starts from the beginning",
) -> int:
    """A verb from its command line to its exit code: what a user can mend ends in one sentence, never in a traceback.

    Args:
        work: The verb: configuration → exit code.
        config_class, description, argv, nested: As `parse` takes them.
        holds: Settings that hold those of another page, as `with_flags` takes them.
        kept: What is kept of a run of this configuration when it is interrupted, in words.

    Returns:
        That of `work`; 1 where training or Ray failed, 2 for a setting or an input that cannot work. A signal ends the process
        with a code of its own: see `interruption`.
    """

    def say(said: BaseException | str) -> str:
        return as_called(with_flags(str(said), config_class, holds))

    output.begin(sys.argv[1:] if argv is None else argv, owns_streams=argv is None, spelled=say)
    read = partial(parse, config_class, description, argv, nested=nested)
    code = _run(work, read=read, say=say, kept=kept)
    interruption.end()  # where a signal came, whatever it made of the run
    if argv is None:
        interruption.leave(code)
    return code


def _run(
    work: Callable[[Config], int],
    *,
    read: Callable[[], Config],
    say: Callable[[BaseException | str], str],
    kept: Callable[[Config], str],
) -> int:
    try:
        config = read()
        interruption.keeps(lambda: kept(config))
        return work(config)
    except UnknownSettingError as error:
        output.error(f"error: {as_called(str(error))}", exit_code=EXIT_CODE)  # it lists settings by their names
        return EXIT_CODE
    except (ConfigError, DatasetError, StorageError, TeacherError) as error:
        output.error(f"error: {say(error)}", exit_code=EXIT_CODE)
        return EXIT_CODE
    except NonFiniteLossError as error:
        output.error(f"stopped: {say(error)}", exit_code=1)
        return 1
    except _errors_of_ray() as error:
        from workflows.shell.failures import reason  # which loads Ray's parts

        interruption.end()
        logger.debug("traceback", exc_info=True)
        is_training = any(base.__name__ == "TrainingFailedError" for base in type(error).__mro__)
        is_ours = "UserCodeException" in type(error).__name__  # raised by a stage of a stream
        what = "training failed" if is_training else "stopped" if is_ours else "Ray stopped"
        safe = "What was committed is safe: run the same command to resume"
        output.error(f"{what}: {say(reason(error))}\n{safe}", exit_code=1)
        return 1
    except KeyboardInterrupt:
        interruption.end()
        code = interruption.EXIT_CODES[signal.SIGINT]
        output.error("interrupted: run the same command to resume", exit_code=code)
        return code


def _errors_of_ray() -> tuple[type[BaseException], ...]:
    """Looked up when something was raised: a page that only shows its help never loads Ray."""
    if "ray" not in sys.modules:
        return ()
    from ray.exceptions import RayError
    from ray.train import TrainingFailedError

    return (RayError, TrainingFailedError)


def parse(
    config_class: type[Config],
    description: str,
    argv: Sequence[str] | None = None,
    *,
    nested: Mapping[str, Merge] | None = None,
) -> Config:
    """The configuration of a command line, with every place absolute.

    Args:
        config_class: Frozen dataclass of the verb.
        description: What `--help` says first.
        argv: Arguments; those of this process where None.
        nested: Settings that are mappings of free depth, for which `--NAME.a.b value` changes one value (jsonargparse would
            put it in the place of everything that a recipe says below that name).

    Raises:
        ConfigError: anything about the arguments or the recipe that cannot be understood.
    """
    parser = HelpParser(
        prog=Path(sys.argv[0]).name,
        description=description,
        epilog=epilog(),
        exit_on_error=False,
        formatter_class=HelpFormatter,
        add_help=False,
    )
    parser.config_class = config_class
    parser.add_help_option()
    parser.add_argument("--config", action="config", help=f"a recipe (YAML); by name, one of: {', '.join(recipe_names())}")
    output.add_options(parser)
    add_settings(parser, config_class)
    given = output.without_options(sys.argv[1:] if argv is None else argv)
    given = map(printable, given)  # a shell's pattern also matches names that are not UTF-8
    arguments = _join_lists(given, config_class)
    neighbours = zip(_with_previous(arguments), [*arguments[1:], ""], strict=False)
    settings = {f"--{setting.name}" for setting in settings_of(config_class)}
    short = {form: long for form, long in SHORT_FORMS.items() if long in settings}  # a page may have a setting of that name
    arguments = [_expand(argument, previous, following, short) for (argument, previous), following in neighbours]
    _check_recipes(arguments, config_class)
    try:
        arguments = _set_nested(parser, arguments, nested or {})
        parsed = parser.parse_args(arguments)
    except (jsonargparse.ArgumentError, TypeError, ValueError) as error:
        raise _explained(str(error), config_class) from error
    parsed.pop("config", None)
    return with_places(config_class(**vars(parser.instantiate(parsed))))


def recipe_names() -> list[str]:
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def _join_lists(arguments: Iterable[str], config_class: type) -> list[str]:
    """`--slides a b` and `--slides a` as the one list that they mean: `--slides=["a", "b"]`."""
    hints = get_type_hints(config_class)
    flags = {f"--{name}" for name, hint in hints.items() if takes_list(hint)}
    joined: list[str] = []
    rest = list(arguments)
    while rest:
        flag, equals, value = rest.pop(0).partition("=")
        if flag not in flags:
            joined.append(flag + equals + value)
            continue
        values = [value] if equals else []
        while not equals and rest and not rest[0].startswith("--"):
            values.append(rest.pop(0))
        is_written_out = len(values) == 1 and values[0].lstrip().startswith(("[", "{"))
        joined.append(f"{flag}={values[0] if is_written_out else json.dumps(values)}")
    return joined


def _set_nested(parser: jsonargparse.ArgumentParser, arguments: list[str], nested: Mapping[str, Merge]) -> list[str]:
    """Arguments in which each `--NAME.a.b value` is part of one `--NAME={…}` that holds what the recipe says, too."""
    changes: dict[str, dict[str, Any]] = {}
    others, rest = [], list(arguments)
    while rest:
        argument = rest.pop(0)
        flag, equals, value = argument.partition("=")
        name, dot, path = flag.removeprefix("--").partition(".")
        if not (flag.startswith("--") and name in nested and dot):
            others.append(argument)
            continue
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise ConfigError(f"{flag} needs a value")
            value = rest.pop(0)
        try:
            changes.setdefault(name, {})[path] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"{flag}: {value!r} is not YAML: {error}") from error
    if not changes:
        return others
    # First, so that what a recipe says takes its place: a setting may be on the command line alone.
    others = [*(f"--{name}={{}}" for name in changes), *others]
    said = parser.parse_args([argument for argument in others if not argument.startswith("--print_config")])
    merged = {name: nested[name](said[name], change) for name, change in changes.items()}
    for key in unknown_keys(parser.config_class, merged):
        raise UnknownSettingError(no_such_key(parser.config_class, key))
    return [*others, *(f"--{name}={json.dumps(value)}" for name, value in merged.items())]


def _with_previous(arguments: Sequence[str]) -> list[tuple[str, str]]:
    return list(zip(arguments, ["", *arguments], strict=False))


def _expand(argument: str, previous: str, following: str, short: Mapping[str, str]) -> str:
    """Short forms of flags, and recipes by name. `--teacher null` is no name: it switches off what a recipe says."""
    if previous == "--config" and argument in recipe_names():
        return str(RECIPES / f"{argument}.yaml")
    name, equals, value = argument.partition("=")
    if name == "--config" and value in recipe_names():
        return f"--config={RECIPES / value}.yaml"
    is_off = (value if equals else following) == "null"
    return (name if is_off else short.get(name, name)) + equals + value


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
        for key in unknown_keys(config_class, recipe):
            raise UnknownSettingError(f"recipe {path}: {no_such_key(config_class, key)}")


def _explained(message: str, config_class: type) -> ConfigError:
    for argument in message.replace("'", " ").replace('"', " ").split():
        if argument.startswith("--") and "nrecognized" in message:
            return UnknownSettingError(no_such_key(config_class, argument.lstrip("-").partition("=")[0]))
    return ConfigError(message)
