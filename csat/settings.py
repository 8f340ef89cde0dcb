"""Settings: what a field of a config says about itself, and plain values, as from a YAML recipe, as that config.

A field of a config says with its type what it is beside its value:

    run_folder: Free[Place]  # may be another one when the run is resumed, and is a path or URI
    epochs: Often[int] = 10  # shown first where settings are listed
    from_run: Place | None = None
    report_tiles: Free[int] = 8
    sets: dict[str, Place | SettingsOf[SetConfig]]

A message names a setting as it stands in a recipe (`data.tile_px`); which flag that is, the page knows that shows it.
"""

import difflib
import importlib
import json
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import MISSING, Field, asdict, dataclass, fields, is_dataclass, replace
from functools import cache
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from csat.errors import ConfigError
from csat.shipped import is_shipped
from csat.storage import uris

if TYPE_CHECKING:
    import jsonargparse

Config = TypeVar("Config")
T = TypeVar("T")


@dataclass(frozen=True)
class Mark:
    """Stands in a type, and changes nothing about the value."""

    name: str


PLACE, MODEL, FREE, OFTEN = Mark("place"), Mark("model"), Mark("free"), Mark("often")
NAME = "NAME"  # stands in a setting's name for what the user calls something, as in teachers.NAME.weights
Place = Annotated[str, PLACE]  # a path or URI: absolute from the command line on, see `with_places`
ModelPlace = Annotated[Place, MODEL]  # the place of a model, or the name of one that comes with the package
Free = Annotated[T, FREE]  # may differ when a run is resumed: how the work is spread and reported, never what is learned
Often = Annotated[T, OFTEN]  # often said: shown first where settings are listed


@dataclass(frozen=True)
class PlaceAfter:
    """`Annotated[str, PlaceAfter("local-dir:")]`: what stands behind this prefix is a place; without it the value is none."""

    prefix: str


class SettingsOf:
    """`SettingsOf[SetConfig]`: a mapping of some of that config's settings, which is read into one later."""

    def __init__(self, config_class: type):
        self.config_class = config_class

    def __class_getitem__(cls, config_class: type) -> Any:
        return Annotated[dict[str, Any], cls(config_class)]


class UnknownSettingError(ConfigError):
    """There is no setting of that name. The message lists those that there are."""


@dataclass(frozen=True)
class Setting:
    """One field of a config, or of a config in it.

    Attributes:
        name: Dotted.
        hint: Its type, without marks.
        is_free: It, or what it is part of, may differ when a run is resumed.
        is_often: It is often said.
        is_required: It has to be said, whatever else is.
        default: Its value where it is not said; None also where there is no such value.
        section: The config that it is, or may be; None: it is a value.
    """

    name: str
    hint: Any
    is_free: bool
    is_often: bool
    is_required: bool
    default: Any
    section: type | None


def settings_of(config_class: type, prefix: str = "", *, is_free: bool = False, is_required: bool = True) -> Iterator[Setting]:
    """All settings of a config: each field, and after a config those in it; after a mapping of names to configs those of one
    of them, as `teachers.NAME.weights`.

    Args:
        is_free, is_required: Of the config itself, where it is part of another one.
    """
    hints, marked = get_type_hints(config_class), get_type_hints(config_class, include_extras=True)
    for item in fields(config_class):
        hint, marks = hints[item.name], getattr(marked[item.name], "__metadata__", ())
        entry = entry_of(hint)
        choices = () if entry else (hint, *get_args(hint))
        section = next((each for each in choices if isinstance(each, type) and is_dataclass(each)), None)
        default, has_default = _default(item)
        setting = Setting(
            name=prefix + item.name,
            hint=hint,
            is_free=is_free or FREE in marks,
            is_often=OFTEN in marks,
            is_required=is_required and not has_default,
            default=default,
            section=section,
        )
        yield setting
        if section is not None:
            inner = {"is_free": setting.is_free, "is_required": setting.is_required}
            yield from settings_of(section, f"{prefix}{item.name}.", **inner)
        elif entry is not None:
            inner = settings_of(entry, f"{prefix}{item.name}.{NAME}.", is_free=setting.is_free, is_required=False)
            yield from (replace(each, is_often=False) for each in inner)


def entry_of(hint: Any) -> type | None:
    """The config that a mapping of names to configs holds; None: the type is none such."""
    inner = get_args(hint)
    is_mapping = get_origin(hint) is dict and isinstance(inner[1], type) and is_dataclass(inner[1])
    return inner[1] if is_mapping else None


def valid_keys(config_class: type) -> list[str]:
    """All settings that have a value, dotted."""
    return [setting.name for setting in settings_of(config_class) if setting.section is None]


def free_keys(config_class: type) -> set[str]:
    """Settings that may differ when a run is resumed, dotted; of a config in it, all that are below it too."""
    return {setting.name for setting in settings_of(config_class) if setting.is_free}


def add_settings(parser: "jsonargparse.ArgumentParser", config_class: type) -> None:
    """All settings of a config as arguments of a parser, whose help and errors show types without marks."""
    parser.add_class_arguments(config_class)
    hints = {setting.name: setting.hint for setting in settings_of(config_class)}
    for action in parser._actions:  # jsonargparse 4.53 shows the marks; no public way to give it other types
        if hasattr(action, "_typehint") and action.dest in hints:
            action._typehint = hints[action.dest]


def read_settings(config_class: type[Config], settings: Mapping[str, Any] | None, *, what: str) -> Config:
    """The config that the settings describe; fields that are not named keep their defaults.

    Args:
        config_class: A dataclass; fields may be dataclasses themselves, given as mappings.
        settings: Field → value.
        what: Whose settings they are, for the message, such as "teacher 'stain'".

    Raises:
        ConfigError: an unknown key (the valid ones are listed), a value of the wrong type, or values that cannot work.
    """
    if not isinstance(settings or {}, Mapping):
        raise ConfigError(f"{what}: settings are a mapping of names to values, not {settings!r}")
    import jsonargparse

    settings = deepcopy(dict(settings or {}))  # the parser puts its own objects in the place of mappings
    for key in unknown_keys(config_class, settings):
        raise UnknownSettingError(f"{what}: {no_such_key(config_class, key)}")
    parser = _parser_of(config_class)
    try:
        return config_class(**vars(parser.instantiate(parser.parse_object(settings))))
    except ConfigError:
        raise
    except (jsonargparse.ArgumentError, TypeError, ValueError) as error:
        raise ConfigError(f"{what} ({', '.join(valid_keys(config_class))}): {error}") from error


@cache
def _parser_of(config_class: type) -> "jsonargparse.ArgumentParser":
    """Kept: for a large config it takes as long to make as to use."""
    import jsonargparse  # here alone: readers know the marks, and read no settings

    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    add_settings(parser, config_class)
    return parser


def resolve(reference: str | Any) -> Any:
    """What "module:attribute" names, imported when it is asked for; anything but a string is itself."""
    if not isinstance(reference, str):
        return reference
    module, _, attribute = reference.partition(":")
    return getattr(importlib.import_module(module), attribute)


def plain_settings(config: Any) -> dict[str, Any]:
    """A config as plain values: what config.yaml holds, and what `read_settings` makes the same config of."""
    return json.loads(json.dumps(asdict(config)))


def completed(config_class: type, plain: Mapping[str, Any]) -> dict[str, Any]:
    """A resolved configuration of an earlier version as this version would have recorded it: with the defaults of the
    settings that have come since, and absolute places. Settings that may differ have this version's defaults: one that has
    changed is no reason not to read the others.

    Where this version cannot read it (a setting has gone), it comes back as it is.
    """
    replaced = {each.name for each in fields(config_class) if _default(each)[1]} & free_keys(config_class)
    kept = {name: value for name, value in plain.items() if name not in replaced}
    try:
        return plain_settings(with_places(read_settings(config_class, kept, what="the earlier run")))
    except ConfigError:
        return dict(plain)


def with_places(config: Config) -> Config:
    """The config with every `Place` absolute: workers, trials and other nodes start in other folders than the verb did.

    A config whose places its types do not tell has a method `with_own_places`, which is asked after that.

    Raises:
        ConfigError, StorageError: a place that cannot be.
    """
    hints = get_type_hints(type(config), include_extras=True)
    changes = {item.name: _placed(hints[item.name], getattr(config, item.name)) for item in fields(config)}
    found = replace(config, **changes)
    return found.with_own_places() if hasattr(found, "with_own_places") else found


def places_in(config_class: type, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Some settings of a config, with every `Place` absolute. What is not of its type stays as it is, for the check of it."""
    hints = get_type_hints(config_class, include_extras=True)
    return {name: _placed(hints[name], value) if name in hints else value for name, value in settings.items()}


def unknown_keys(config_class: type, settings: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys of `settings` that the config does not have."""
    here = [setting for setting in settings_of(config_class) if "." not in setting.name]
    sections, entries = {each.name: each.section for each in here}, {each.name: entry_of(each.hint) for each in here}
    unknown = []
    for key, value in settings.items():
        if key not in sections:
            unknown.append(f"{prefix}{key}")
        elif entries[key] is not None and isinstance(value, Mapping):
            for name, entry in value.items():
                unknown += unknown_keys(entries[key], entry, f"{prefix}{key}.{name}.") if isinstance(entry, Mapping) else []
        elif sections[key] is not None and isinstance(value, Mapping):
            unknown += unknown_keys(sections[key], value, f"{prefix}{key}.")
    return unknown


def no_such_key(config_class: type, key: str) -> str:
    """A sentence for a key that is not there: the nearest ones, then all."""
    keys = valid_keys(config_class)
    near = difflib.get_close_matches(key, keys, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    return f"there is no setting {key!r}.{hint} Settings are: {', '.join(keys) or 'none'}"


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings, later layers over earlier ones."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            is_nested = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
            merged[key] = merge(merged[key], value) if is_nested else value
    return merged


def unfold(settings: Mapping[str, Any]) -> dict[str, Any]:
    """`{"train.epochs": 3}` as `{"train": {"epochs": 3}}`, at any depth."""
    unfolded: dict[str, Any] = {}
    for key, value in settings.items():
        value = unfold(value) if isinstance(value, Mapping) else value
        for part in reversed(str(key).split(".")):
            value = {part: value}
        unfolded = merge(unfolded, value)
    return unfolded


def _default(item: Field) -> tuple[Any, bool]:
    """The value of a field that is not given, and whether there is one."""
    if item.default is not MISSING:
        return item.default, True
    return (item.default_factory(), True) if item.default_factory is not MISSING else (None, False)


def _placed(hint: Any, value: Any) -> Any:
    """A value with its places absolute, as far as it is of that type."""
    if marks := getattr(hint, "__metadata__", ()):
        if PLACE in marks and isinstance(value, str):
            return value if MODEL in marks and is_shipped(value) else uris.normalise(value)
        for mark in marks:
            if isinstance(mark, PlaceAfter) and isinstance(value, str) and value.startswith(mark.prefix):
                return mark.prefix + uris.normalise(value.removeprefix(mark.prefix))
        of = next((mark.config_class for mark in marks if isinstance(mark, SettingsOf)), None)
        if of is not None and isinstance(value, Mapping):
            return places_in(of, value)
        hint = hint.__origin__
    origin, inner = get_origin(hint), get_args(hint)
    if isinstance(hint, type) and is_dataclass(hint) and isinstance(value, hint):
        return with_places(value)
    if origin in (Union, UnionType):
        for each in inner:
            value = _placed(each, value)
    elif origin is list and isinstance(value, list):
        return [_placed(inner[0], each) for each in value]
    elif origin is dict and isinstance(value, Mapping):
        return {key: _placed(inner[1], each) for key, each in value.items()}
    return value
