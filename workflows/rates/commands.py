"""Commands of a user, timed from outside: seconds, and what their processes take of memory and cores, by role.

Each command sees no cluster that the shell knows, and has ended when its function returns, whatever happens.
"""

import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from csat.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S, END_WITHIN_S = 3600.0, 30.0  # of one command; for one that took too long to commit and end
SAMPLE_EVERY_S = 0.25
# Role → what the command line of its processes has. The first that fits counts; `ray` is what Ray itself needs.
ROLES = {
    "reader": re.compile(r"PlannedReader"),
    "teacher": re.compile(r"TeacherStage"),
    "worker": re.compile(r"RayTrainWorker"),
    "coordinator": re.compile(r"SplitCoordinator"),  # of Ray Data's streams
    "driver": re.compile(r"pretrain\.py|tune\.py"),
    "ray": re.compile(r"ray::|raylet|gcs_server|/ray/|default_worker\.py"),
}
OTHERS = "others"


@dataclass(frozen=True)
class Sample:
    """What was seen at one moment.

    Attributes:
        time: By time.time().
        lines: Of the file that tells how far the command is.
        core_s: Role → core-seconds until then, of all its processes.
    """

    time: float
    lines: int
    core_s: dict[str, float]


@dataclass
class Watched:
    """Of a command that has ended.

    Attributes:
        seconds: By the wall clock.
        said: All that it wrote.
        started: When it began, by time.time().
        resident_bytes: Role → most that one process had in memory (what it maps of the object store not counted).
        all_bytes: Most that all its processes had together, without the files that they map: libraries are there once.
        then_bytes: Role → what its processes had of that, at that moment.
        processes: Role → most of its processes at once.
        samples: In order of time.
    """

    seconds: float = 0.0
    said: str = ""
    started: float = 0.0
    resident_bytes: dict[str, int] = field(default_factory=dict)
    all_bytes: int = 0
    then_bytes: dict[str, int] = field(default_factory=dict)
    processes: dict[str, int] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)

    @property
    def core_s(self) -> dict[str, float]:
        """Role → core-seconds of all processes."""
        return self.samples[-1].core_s if self.samples else {}

    def seconds_to(self, lines: int) -> float:
        """Until the file that tells how far it is had so many lines. NaN: it never had."""
        return next((sample.time - self.started for sample in self.samples if sample.lines >= lines), float("nan"))

    def between(self, first: int, last: int) -> tuple[float, dict[str, float]]:
        """Seconds, and core-seconds by role, between two lines of that file. Raises ConfigError: it was never seen there."""
        inside = [sample for sample in self.samples if first <= sample.lines <= last]
        if len(inside) < 2:
            raise ConfigError(f"the run was too short to be watched between its lines {first} and {last}: give it more tiles")
        begin, end = inside[0], inside[-1]
        return end.time - begin.time, {role: end.core_s[role] - begin.core_s.get(role, 0.0) for role in end.core_s}


def run(
    arguments: Sequence[str],
    *,
    python: str = sys.executable,
    cwd: Path = ROOT,
    expected: int = 0,
    watch: bool = False,
    progress: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Watched:
    """A Python command, from its start to its end.

    Args:
        arguments: After `python`.
        cwd: Where it runs, and whose code it takes.
        expected: Its exit code.
        watch: Look at its processes; costs some hundredths of a core.
        progress: A file that grows by a line for each step: when is it where.
        environment: More variables.

    Raises:
        ConfigError: another exit code; with the end of what it said. It took longer than an hour.
    """
    inherited = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    variables = inherited | {"PYTHONPATH": str(cwd)} | dict(environment or {})
    watched = Watched()
    with tempfile.TemporaryFile() as said:
        watched.started, started = time.time(), time.monotonic()
        process = subprocess.Popen([python, *arguments], cwd=cwd, env=variables, stdout=said, stderr=subprocess.STDOUT)
        watcher = _Watcher(process.pid, watched, progress) if watch or progress else None
        try:
            code = process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            raise ConfigError(f"{shown(arguments)} did not end within {TIMEOUT_S:.0f} s") from error
        finally:
            if process.poll() is None:  # it took too long
                _end(process)
            watched.seconds = time.monotonic() - started
            if watcher:
                watcher.stop()
        said.seek(0)
        watched.said = said.read().decode(errors="replace")
    if code != expected:
        raise ConfigError(f"{shown(arguments)} failed in {cwd} (exit code {code}):\n{watched.said[-3000:]}")
    return watched


def _end(process: subprocess.Popen) -> None:
    """As a verb wants to be ended; at once where it does not hear."""
    process.terminate()
    try:
        process.wait(END_WITHIN_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def shown(arguments: Sequence[str]) -> str:
    """As a line, for messages."""
    return " ".join(arguments)[:400]


class _Watcher:
    """Looks at a command's processes, from time to time, until it is stopped."""

    def __init__(self, pid: int, watched: Watched, progress: Path | None):
        self._root, self._watched, self._progress = psutil.Process(pid), watched, progress
        self._core_s: dict[tuple[int, float], tuple[str, float]] = {}  # (pid, when it began) → role, core-seconds
        self._known: set[tuple[int, float]] = set()  # those that were seen
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._is_over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._is_over.wait(SAMPLE_EVERY_S):
            try:
                processes = [self._root, *self._root.children(recursive=True)]
            except psutil.Error:
                return  # it has ended
            own, seen, lines = Counter[str](), Counter[str](), {}
            for process in processes:
                try:
                    with process.oneshot():
                        lines[process.pid], used = process.cmdline(), process.cpu_times()
                        key, parent = (process.pid, process.create_time()), process.ppid()
                    anonymous, mapped = _resident(process.pid)
                except (psutil.Error, OSError):
                    continue  # it has ended
                if key not in self._known and lines[process.pid] == lines.get(parent):
                    self._known.add(key)
                    continue  # just forked, to become another program: what it seems to have is its parent's memory
                role = role_of(" ".join(lines[process.pid]))
                own[role] += anonymous
                seen[role] += 1
                self._known.add(key)
                self._core_s[key] = (role, used.user + used.system)
                self._watched.resident_bytes[role] = max(self._watched.resident_bytes.get(role, 0), anonymous + mapped)
            if own.total() > self._watched.all_bytes:
                self._watched.all_bytes, self._watched.then_bytes = own.total(), dict(own)
            for role, number in seen.items():
                self._watched.processes[role] = max(self._watched.processes.get(role, 0), number)
            self._watched.samples.append(Sample(time.time(), self._lines(), self._by_role()))

    def _lines(self) -> int:
        if self._progress is None or not self._progress.exists():
            return 0
        return self._progress.read_bytes().count(b"\n")

    def _by_role(self) -> dict[str, float]:
        sums: dict[str, float] = {}
        for role, seconds in self._core_s.values():
            sums[role] = sums.get(role, 0.0) + seconds
        return sums


def role_of(command_line: str) -> str:
    """Which of `ROLES` a process has; `OTHERS` for none."""
    return next((role for role, pattern in ROLES.items() if pattern.search(command_line)), OTHERS)


def _resident(pid: int) -> tuple[int, int]:
    """Bytes of a process's own, and of the files that it maps; shared memory, which is there once, is in neither."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    sizes = {line.split()[0]: 1024 * int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "RssFile"))}
    return sizes.get("RssAnon:", 0), sizes.get("RssFile:", 0)
