"""How a verb speaks: lines for a person, or JSON objects for a program, and as many as were asked for.

What happens on the way is logged; what the verb was called for is its result.

    (nothing)    the log and the progress on standard error, the result on standard output
    --quiet      on standard error only warnings and errors; the result on standard output
    --log json   everything on standard error, one JSON object a line: `event` is log, progress, result or error
    --verbose    what Ray says by itself, too, as it says it
"""

import argparse
import json
import logging
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import jsonargparse

from csat.errors import ConfigError
from workflows.shell import terminal

QUIET, VERBOSE, LOG = "--quiet", "--verbose", "--log"
FLAGS = (QUIET, VERBOSE, LOG)
TEXT, JSON = "text", "json"
# A line of a worker's own logging, see `workflows.shell.group`.
_OF_WORKER = re.compile(r"(?P<level>DEBUG|INFO|WARNING|ERROR|CRITICAL) (?P<logger>[\w.]+): (?P<message>.*)")
_ON_THE_WAY = ("DEBUG", "INFO")


@dataclass(frozen=True)
class Manner:
    """What was asked for."""

    is_quiet: bool = False
    is_json: bool = False

    @property
    def shows_progress(self) -> bool:
        """Whether anybody wants to know how far it is."""
        return not self.is_quiet


_manner = Manner()


def add_options(parser: jsonargparse.ArgumentParser) -> None:
    """The flags of this module."""
    no_setting = {"default": argparse.SUPPRESS, "dest": argparse.SUPPRESS}
    parser.add_argument(QUIET, action="store_true", help="only warnings, errors and the result", **no_setting)
    parser.add_argument(VERBOSE, action="store_true", help="show what Ray says by itself, too", **no_setting)
    about = "json: one object a line on standard error, the result too"
    parser.add_argument(LOG, choices=[TEXT, JSON], help=about, **no_setting)


def begin(arguments: Sequence[str], *, owns_streams: bool, spelled: Callable[[str], str] = str) -> None:
    """Speak as these arguments say, from here on.

    Args:
        arguments: Of the command line, not yet parsed: streams are taken before anything else holds them.
        owns_streams: This process is the verb; else it is called as a function, and the streams stay as they are.
        spelled: A line of the log, which names settings as an error does, as the verb spells them.
    """
    global _manner
    given = _given(arguments)
    _manner = Manner(is_quiet=QUIET in given, is_json=given.get(LOG) == JSON)
    if owns_streams and VERBOSE not in given:
        terminal.quieten(_dressed if _manner.is_quiet or _manner.is_json else None)
    handler = logging.StreamHandler(_raw_stderr() if _manner.is_json else None)
    handler.setFormatter((_JsonLines if _manner.is_json else _Lines)(spelled))
    logging.basicConfig(level=logging.WARNING if _manner.is_quiet else logging.INFO, handlers=[handler])


def without_options(arguments: Sequence[str]) -> list[str]:
    """Arguments without the flags of this module, which are no settings of a verb.

    Raises:
        ConfigError: flags that contradict each other, or a value that there is not.
    """
    given = _given(arguments)
    if QUIET in given and VERBOSE in given:
        raise ConfigError(f"{QUIET} shows less and {VERBOSE} more: give one of the two")
    if given.get(LOG, TEXT) not in (TEXT, JSON):
        raise ConfigError(f"{LOG} is {TEXT} or {JSON}, not {given[LOG]!r}")
    return [each for index, each in enumerate(arguments) if index not in _places(arguments)]


def manner() -> Manner:
    """What was asked for."""
    return _manner


def result(text: str, **facts: Any) -> None:
    """What the verb was called for, or a part of it.

    Args:
        text: For a person.
        facts: The same for a program: JSON-ready.
    """
    if _manner.is_json:
        _write("result", "info", message=text, **facts)
    else:
        print(text, flush=True)


def error(text: str, *, exit_code: int) -> None:
    """Why the verb ends."""
    if _manner.is_json:
        _write("error", "error", message=text, exit_code=exit_code)
    else:
        print(text, file=sys.stderr)


def progress(text: str, **facts: Any) -> None:
    """How far it is, as a line: for a stream that shows no bars."""
    if _manner.is_json:
        _write("progress", "info", message=text, **facts)
    else:
        print(text, file=sys.stderr, flush=True)


class _Lines(logging.Formatter):
    """Log records as lines for a person."""

    def __init__(self, spelled: Callable[[str], str]):
        super().__init__("%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
        self._spelled = spelled

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = self._spelled(record.message)
        return super().formatMessage(record)


class _JsonLines(_Lines):
    """Log records as JSON objects, with the trace of an exception."""

    def format(self, record: logging.LogRecord) -> str:
        trace = {"trace": self.formatException(record.exc_info)} if record.exc_info else {}
        message = self._spelled(record.getMessage())
        return _line("log", record.levelname.lower(), logger=record.name, message=message, **trace)


def _dressed(line: str) -> str | None:
    """A line that another process or another library has written, as it is shown; None: not at all."""
    worker = _OF_WORKER.fullmatch(line)
    if _manner.is_quiet and worker and worker["level"] in _ON_THE_WAY:
        return None
    if not _manner.is_json:
        return line
    if worker:
        return _line("log", worker["level"].lower(), logger=worker["logger"], message=worker["message"])
    return _line("log", "info", message=line) if line.strip() else None


def _write(event: str, level: str, **facts: Any) -> None:
    print(_line(event, level, **facts), file=_raw_stderr(), flush=True)


def _line(event: str, level: str, **facts: Any) -> str:
    time = datetime.now(UTC).isoformat(timespec="milliseconds")
    return json.dumps({"time": time, "event": event, "level": level, **facts}, default=str)


def _raw_stderr() -> Any:
    """Standard error, past what looks for lines of others."""
    return sys.stderr.stream if isinstance(sys.stderr, terminal.OwnLines) else sys.stderr


def _given(arguments: Sequence[str]) -> dict[str, str]:
    """Flags of this module → value."""
    given = {}
    for index, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        if flag in FLAGS:
            given[flag] = value if equals or flag != LOG else "".join(arguments[index + 1 : index + 2])
    return given


def _places(arguments: Sequence[str]) -> set[int]:
    """Which arguments are flags of this module or their values."""
    places = {index for index, argument in enumerate(arguments) if argument.partition("=")[0] in FLAGS}
    return places | {index + 1 for index in places if arguments[index] == LOG}
