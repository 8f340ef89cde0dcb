"""Groups from file names: an option of the layouts for one's own images, whose names often hold a patient or a slide."""

import re

from csat.errors import ConfigError, DatasetError
from csat.storage import files


def check_pattern(pattern: str | None) -> None:
    """Refuse what is no regular expression. Raises ConfigError."""
    try:
        re.compile(pattern or "")
    except re.error as error:
        raise ConfigError(f"group_pattern {pattern!r} is no regular expression: {error}") from error


def group_of(key: str, pattern: str | None, dataset: str) -> str:
    """The group that a sample's file name holds.

    Args:
        key: Of the sample; its last part is the file name.
        pattern: Searched in the name. The group is what its first (…) matches, or all of the match; None: each sample its own.
        dataset: Named in the error.

    Raises:
        DatasetError: a name in which the pattern finds nothing.
    """
    if pattern is None:
        return key
    match = re.search(pattern, files.base_name(key))
    if match is None:
        raise DatasetError(
            f"data set {dataset!r}: group_pattern {pattern!r} finds nothing in {files.base_name(key)!r} ({key}); correct it "
            "so that every file name has a group"
        )
    return match[1] if match.re.groups and match[1] is not None else match[0]


def describe(pattern: str | None) -> str:
    """What a group is, for `DatasetInfo.group`."""
    return "image (no grouping known)" if pattern is None else f"file name by {pattern}"


def warn(pattern: str | None) -> str:
    """The trap of a set without groups, for `DatasetInfo.note`."""
    return "" if pattern else "images of one patient may fall into several parts: set group_pattern"
