"""Plain settings, as from a YAML recipe, into a frozen config dataclass: types checked, unknown keys refused."""

import difflib
import importlib
import json
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from typing import Any, TypeVar, get_type_hints

import jsonargparse

from csat.errors import ConfigError

Config = TypeVar("Config")


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
    settings = dict(settings or {})
    for key in unknown_keys(config_class, settings):
        raise ConfigError(f"{what}: {no_such_key(config_class, key)}")
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(config_class)
    try:
        return config_class(**vars(parser.instantiate(parser.parse_object(settings))))
    except ConfigError:
        raise
    except (jsonargparse.ArgumentError, TypeError, ValueError) as error:
        raise ConfigError(f"{what} ({', '.join(valid_keys(config_class))}): {error}") from error


def resolve(reference: str | Any) -> Any:
    """What "module:attribute" names, imported when it is asked for; anything but a string is itself."""
    if not isinstance(reference, str):
        return reference
    module, _, attribute = reference.partition(":")
    return getattr(importlib.import_module(module), attribute)


def completed(config_class: type, plain: Mapping[str, Any]) -> dict[str, Any]:
    """A resolved configuration of an earlier version, with the defaults of the settings that have come since.

    Where this version cannot read it (a setting has gone), it comes back as it is.
    """
    try:
        return json.loads(json.dumps(asdict(read_settings(config_class, plain, what="the earlier run"))))
    except ConfigError:
        return dict(plain)


def valid_keys(config_class: type, prefix: str = "") -> list[str]:
    """All settings of a config, dotted."""
    hints = get_type_hints(config_class)
    keys = []
    for item in fields(config_class):
        if is_dataclass(hints[item.name]):
            keys += valid_keys(hints[item.name], f"{prefix}{item.name}.")
        else:
            keys.append(prefix + item.name)
    return keys


def unknown_keys(config_class: type, settings: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys of `settings` that the config does not have."""
    hints = get_type_hints(config_class)
    names = {item.name for item in fields(config_class)}
    unknown = []
    for key, value in settings.items():
        if key not in names:
            unknown.append(f"{prefix}{key}")
        elif is_dataclass(hints[key]) and isinstance(value, Mapping):
            unknown += unknown_keys(hints[key], value, f"{prefix}{key}.")
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
