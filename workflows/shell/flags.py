"""Settings that a message names, as flags of the page that shows it: what lies below the pages knows no flag."""

import re
from collections.abc import Mapping
from typing import NamedTuple, get_origin

from csat.settings import settings_of

# A name as it stands in a sentence, not in a path or between quotation marks; and whether it is given a value.
NAME = re.compile(r"""(?<![\w.\-/'"`])(?P<name>[a-z]\w*(?:\.\w+)*)(?P<equals>=?)""")


class Flag(NamedTuple):
    """How a page spells a setting."""

    text: str
    is_mapping: bool  # whatever stands below its name is a setting too: `teacher.options.mode`


def with_flags(message: str, config_class: type, holds: Mapping[str, type] | None = None) -> str:
    """The message, with each setting that it names as the page's flag: `data.tile_px` as `--data.tile_px`.

    A name is a setting where it has a dot or an underscore, or where `=` follows it (`overwrite=true`). One that the page does
    not have stays as it is: it is of another page, or a word.

    Args:
        config_class: The page's settings.
        holds: Setting that holds settings of another page → those: with `{"base": FinetuneConfig}` a sweep spells
            `data.tile_px` as `--base.data.tile_px`.
    """
    flags = _flags(config_class)
    for name, inner in (holds or {}).items():
        flags = _flags(inner, f"{name}.") | flags

    def spelled(found: re.Match) -> str:
        name, equals = found["name"], found["equals"]
        parts = name.split(".")
        if len(parts) == 1 and "_" not in name and not equals:
            return name
        for length in range(len(parts), 0, -1):
            flag, below = flags.get(".".join(parts[:length])), parts[length:]
            if flag is not None and (flag.is_mapping or not below):
                return ".".join([flag.text, *below]) + equals
        return found[0]

    return NAME.sub(spelled, message)


def _flags(config_class: type, prefix: str = "") -> dict[str, Flag]:
    """Setting → flag, which may be one of another page: then `prefix` goes before its name."""
    return {
        setting.name: Flag(f"--{prefix}{setting.name}", get_origin(setting.hint) is dict)
        for setting in settings_of(config_class)
    }
