"""What reaches the terminal: this project's own lines. Ray's go to a file that is named, unless the user says --verbose.

Ray prints what its processes write, each line behind `(Name pid=123)`, and so do its own loggers in this process. Lines of
its own processes, and lines in the formats of its loggers, are put aside; ours lose the prefix. What Ray's C++ part writes to
this process's standard error goes to the file directly. An error of Ray ends the verb with a sentence of its own in any case.
"""

import io
import os
import re
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

_COLOUR = r"(?:\x1b\[\d+m)?"
# What Ray prints before a line of another process: (MapWorker(MapBatches(PlannedReader)) pid=123, ip=10.0.0.1) …
_PREFIX = re.compile(rf"{_COLOUR}\((?:(?P<name>[^\n]*?) )?pid=\d+[^)]*\){_COLOUR} ?")
_OWN_PREFIX = re.compile(rf"{_COLOUR}\((?:raylet|autoscaler|gcs_server)[^)]*\)")
# Processes that are Ray's alone; all others run code of ours.
_OF_RAY = re.compile(
    r"SplitCoordinator|TrainController|StatsActor|Autoscaling|ActorLocationTracker|DatasetManager|PlacementGroupCleaner"
    r"|PreemptionWatcher|get_table_block_metadata"
)
_FORMATS = re.compile(
    r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+\s+[A-Z]+ \S+:\d+ -- "  # Ray's Python loggers
    r"|\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+ [A-Z] \d+"  # its C++ part
    r"|(?:DEBUG|INFO|WARNING|ERROR) ray\b"  # the former, as our workers' logging has them
    r"|\S*/site-packages/ray/\S+: \w*Warning: "
    # Ray Train and Ray Data, in no format
    r"|Setting up process group for: |Reporting training result |Exception raised in creation task: "
    r"|\[\w+\.cc ?: ?\d+\]|\*\*\* SIG|PC: @|\s+@ +0x"  # stacks of a process that died, which Ray reports by itself
)
_CONTINUES = re.compile(r"\s|Traceback|$")  # of a line that was put aside
_MAY_BE_RAYS = re.compile(rf"{_COLOUR}[(\[]|\d{{4}}-|\x1b")  # the start of a line that has to be seen whole


class OwnLines(io.TextIOBase):
    """A stream that passes our lines on to another one, and Ray's to a function.

    Args:
        stream: The terminal, or a file in its place.
        aside: Takes Ray's lines, without their ends.
        dressed: A line of ours as it is shown; None: not at all. Without it, lines are shown as they come, and their starts.
    """

    def __init__(
        self, stream: io.TextIOBase, aside: Callable[[str], None], dressed: Callable[[str], str | None] | None = None
    ):
        self.stream, self._aside, self._dressed = stream, aside, dressed
        self._held = ""  # the start of a line that may be Ray's
        self._is_aside: dict[str, bool] = {}  # by process: whether its last line was put aside
        self._lock = threading.RLock()

    def write(self, text: str) -> int:
        with self._bars_aside(text), self._lock:
            *lines, rest = (self._held + text).split("\n")
            self._held = ""
            for line in lines:
                ours = self._ours(line)
                if ours is not None and self._dressed is not None:
                    ours = self._dressed(ours)
                if ours is not None:
                    self.stream.write(ours + "\n")
            if _MAY_BE_RAYS.match(rest) or (self._dressed is not None and not rest.startswith("\r")):
                self._held = rest
            elif rest:
                self.stream.write(rest)
        return len(text)

    def flush(self) -> None:
        self.stream.flush()

    def isatty(self) -> bool:
        return self.stream.isatty()

    def fileno(self) -> int:
        return self.stream.fileno()

    @property
    def encoding(self) -> str:
        return self.stream.encoding

    def _bars_aside(self, text: str) -> AbstractContextManager:
        """While a line is written to a terminal, bars make room for it. Before this stream's lock, as tqdm takes the two."""
        tqdm = getattr(sys.modules.get("tqdm"), "tqdm", None)
        return tqdm.external_write_mode(file=sys.stderr) if tqdm and "\n" in text and self.isatty() else nullcontext()

    def _ours(self, line: str) -> str | None:
        """The line as it is shown; None: it is Ray's."""
        prefix = _PREFIX.match(line)
        name = prefix["name"] or "" if prefix else None
        said = line[prefix.end() :] if prefix else line
        is_rays = bool(_OWN_PREFIX.match(line) or _FORMATS.match(said))
        is_rays = is_rays or (prefix is not None and (not name or bool(_OF_RAY.search(name))))
        if prefix is not None:  # lines of this process are not told apart: only those of others are known to continue
            source = prefix[0]
            is_rays = is_rays or (self._is_aside.get(source, False) and bool(_CONTINUES.match(said)))
            self._is_aside[source] = is_rays
        if is_rays:
            self._aside(line)
            return None
        return said


class _Log:
    """Where Ray's lines go: kept until there is a file."""

    def __init__(self):
        self.path: Path | None = None
        self._lines: list[str] = []
        self._lock = threading.Lock()

    def add(self, line: str) -> None:
        with self._lock:
            if self.path is None:
                self._lines.append(line)
                return
            with self.path.open("a") as file:
                file.write(line + "\n")

    def keep_in(self, path: Path) -> None:
        with self._lock:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a") as file:
                file.writelines(line + "\n" for line in self._lines)
            self.path, self._lines = path, []

    def take(self) -> list[str]:
        """Lines that no file has."""
        with self._lock:
            lines, self._lines = self._lines, []
            return lines


_log: _Log | None = None


def quieten(dressed: Callable[[str], str | None] | None = None) -> None:
    """From here on this process's output is our own lines. For a verb's start, before anything holds its streams.

    Args:
        dressed: Of standard error: a line of ours as it is shown, see `OwnLines`.
    """
    global _log
    if _log is not None:
        return
    _log = _Log()
    # Standard error by another number: number 2 itself will be Ray's, see `put_aside`.
    error = os.fdopen(os.dup(sys.stderr.fileno()), "w", buffering=1, encoding=sys.stderr.encoding, errors="backslashreplace")
    sys.stdout, sys.stderr = OwnLines(sys.stdout, _log.add), OwnLines(error, _log.add, dressed)


def put_aside(folder: Path) -> Path | None:
    """Keep Ray's lines in a file of this folder from here on, those of its C++ part too.

    Returns:
        The file; None where nothing is put aside (--verbose, or a verb that is called as a function).
    """
    if _log is None:
        return None
    if _log.path is None:
        _log.keep_in(folder / "csat.log")
        descriptor = os.open(_log.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.dup2(descriptor, 2)
        os.close(descriptor)
    return _log.path


def show_what_no_file_has() -> None:
    """Ray did not start: what it said meanwhile is shown after all."""
    if _log is not None:
        for line in _log.take():
            sys.stderr.stream.write(line + "\n")
