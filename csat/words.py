"""Text that can be written anywhere, whatever it came as: ids in tables, names of files, messages of libraries, lists."""

import math
import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
from numbers import Real
from typing import Any

MOST_COUNTED = 20  # kinds that one line lists
# Control characters (but tab and line end), and surrogates, which no encoding knows.
_UNWRITABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")


def printable(value: Any) -> str:
    r"""Anything as text that every file, log and table takes: bytes and characters that none takes become `\xe4`, `\ud800`.

    The bytes of a file name that is not UTF-8 look as `csat.storage.uris` spells them.
    """
    if isinstance(value, bytes | bytearray | memoryview):
        value = bytes(value).decode("utf-8", "backslashreplace")
    return _UNWRITABLE.sub(lambda match: _escaped(ord(match[0])), str(value))


def last_line(error: BaseException) -> str:
    """What went wrong, from an error that may carry the traceback of another process, or no message at all."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return next((line for line in reversed(lines) if re.match(r"[\w.]*(Error|Exception|Timeout)\w*\b", line)), lines[-1])


def is_empty(cell: Any) -> bool:
    """Whether a cell says nothing: None, NaN or blank text."""
    return not cell.strip() if isinstance(cell, str | bytes) else cell is None or cell != cell


def text(cell: Any) -> str:
    """An id, a class or a name as text, however its table stores it, without the space around it.

    Whole numbers lose the point that a spreadsheet or a column with gaps gives them (11.0 is "11"); text stays as it is
    ("007", and "11.0" too).
    """
    is_number = isinstance(cell, Real | Decimal) and not isinstance(cell, bool)
    if is_number and math.isfinite(cell) and cell == int(cell):
        return str(int(cell))
    return printable(cell).strip()


def number(cell: Any) -> float:
    """A cell as a number; a decimal comma counts as a point. Raises ValueError for what is none."""
    return float(text(cell).replace(",", "."))


def some(names: Iterable[Any], most: int = 5, *, between: str = ", ") -> str:
    """The first few of what may be many: "a.png, b.png and 3 more"; "nothing" where there is none.

    Args:
        between: What stands between two of them; more than a comma where each has a line of its own.
    """
    names = [printable(name) for name in names]
    if len(names) <= most:
        return between.join(names) or "nothing"
    rest = f"and {len(names) - most:,} more"
    return between.join(names[:most]) + (between if "\n" in between else " ") + rest


def counted(counts: Mapping[str, int]) -> str:
    """The most frequent first: "12 x .xml, 3 x .db"."""
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    rest = sum(count for _, count in ranked[MOST_COUNTED:])
    listed = ", ".join(f"{count:,} x {printable(name)}" for name, count in ranked[:MOST_COUNTED])
    return f"{listed} and {rest:,} of other kinds" if rest else listed


def _escaped(code: int) -> str:
    if 0xDC80 <= code <= 0xDCFF:  # how Python keeps a byte of a name that is not UTF-8
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def without_folders(said: str) -> str:
    """Of a path of this machine the last part, since whoever reads it elsewhere has other folders; other words as they are."""
    return said.rstrip("/").rpartition("/")[2] if said.startswith(("/", "~")) else said
