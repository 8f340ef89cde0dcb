"""How long a user waits before anything happens, and how large the processes are: a whole demonstration, from its command.

Called by benchmark.py (`--stages '["startup"]'`). Everything is a command of its own, as a user gives it. With several
checkouts they take turns, so that a version is measured against another one under the same load; round n of the one and of the
other are a pair. When things happened in a demonstration is read off its run folder.
"""

import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import psutil

from csat.errors import ConfigError
from workflows.rates.config import BenchmarkConfig
from workflows.shell import output

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("pretrain", "finetune", "tune", "evaluate", "benchmark")
LOOK_EVERY_S = 0.05
SAMPLE_EVERY_S = 0.25
TIMEOUT_S = 900.0  # of one command
# What a process of the demonstration is → what its command line has.
ROLES = {
    "driver": re.compile(r"pretrain\.py"),
    "reader": re.compile(r"PlannedReader"),
    "teacher": re.compile(r"TeacherStage"),
    "worker": re.compile(r"RayTrainWorker"),
}
DEMO = ["workflows/pretrain.py", "--config", "demo"]  # what `make demo` runs
REFUSED = 2  # exit code of a setting that cannot work
# What has happened → the file of the run folder that was written last, then.
MILESTONES = {
    "until tiles are cut, s": "manifest/index.json",
    "until the last step, s": "checkpoints/latest.json",
    "until the student is judged, s": "evaluation.json",
    "until the report, s": "report.html",
}


def measure_startup(config: BenchmarkConfig) -> dict[str, dict[str, float]]:
    """Checkout → figure → median over the rounds: seconds of answers and imports, to the first step, to the end; MB resident.

    A round before them is not counted: it fills the cache of files.

    Raises:
        ConfigError: a folder is no checkout, or a command failed in it.
    """
    checkouts = [Path(each) for each in config.checkouts] or [ROOT]
    for checkout in checkouts:
        if not (checkout / "workflows" / "pretrain.py").is_file():
            raise ConfigError(f"checkouts: {checkout} is no checkout of this project")
    pages = [page for page in PAGES if all((checkout / "workflows" / f"{page}.py").is_file() for checkout in checkouts)]
    figures: dict[str, dict[str, list[float]]] = {str(checkout): {} for checkout in checkouts}
    for round_index in range(config.rounds + 1):
        for checkout in checkouts:
            for name, value in _measure_once(checkout, pages).items():
                if round_index:
                    figures[str(checkout)].setdefault(name, []).append(value)
    _print(figures, config.rounds)
    return {where: {name: median(values) for name, values in each.items()} for where, each in figures.items()}


def _measure_once(checkout: Path, pages: Sequence[str]) -> dict[str, float]:
    figures = {f"{page} --help, s": _run([f"workflows/{page}.py", "--help"], checkout) for page in pages}
    figures |= {f"import {page}, s": _run(["-c", f"import workflows.{page}"], checkout) for page in pages}
    with tempfile.TemporaryDirectory(prefix="csat-bench-") as scratch:
        nowhere = [*DEMO, "--slides", str(Path(scratch, "nowhere")), "--run_folder", str(Path(scratch, "refused"))]
        figures["missing slides are refused, s"] = _run(nowhere, checkout, expected=REFUSED)
        folder = Path(scratch, "run")
        watch = _Watch(folder)
        seconds = _run([*DEMO, "--train.log_every_steps", "1", "--run_folder", str(folder)], checkout, watch=watch)
        return figures | watch.figures() | {"make demo, s": seconds} | watch.resident()


def _run(arguments: list[str], checkout: Path, *, watch: "_Watch | None" = None, expected: int = 0) -> float:
    """Seconds that a Python command takes. Raises ConfigError where its exit code is not the expected one."""
    # A run of its own, whatever cluster the shell knows, with the checkout's own code.
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {"PYTHONPATH": str(checkout)}
    with tempfile.TemporaryFile() as said:
        options = {"cwd": checkout, "env": environment, "stdout": said, "stderr": subprocess.STDOUT}
        started = time.monotonic()
        process = subprocess.Popen([sys.executable, *arguments], **options)
        if watch is not None:
            watch.start(process.pid)
        code = process.wait(TIMEOUT_S)
        seconds = time.monotonic() - started
        if watch is not None:
            watch.stop()
        if code != expected:
            said.seek(0)
            raise ConfigError(f"{' '.join(arguments)} failed in {checkout}:\n{said.read().decode(errors='replace')[-2000:]}")
    return seconds


class _Watch:
    """Looks for a run's first step, and at the memory of its processes, while its command works."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._started = self._first_step = float("nan")
        self._resident: dict[str, int] = {}
        self._is_over = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self, pid: int) -> None:
        self._started = time.time()
        looks: list[Callable[[], None]] = [self._look_for_step, lambda: self._sample(psutil.Process(pid))]
        self._threads = [threading.Thread(target=look, daemon=True) for look in looks]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def figures(self) -> dict[str, float]:
        """Seconds from the command to the first step and to each milestone, in their order."""
        written = {name: self._folder / file for name, file in MILESTONES.items()}
        times = {name: path.stat().st_mtime for name, path in written.items() if path.exists()}
        times["until the first step, s"] = self._first_step
        return {name: times[name] - self._started for name in sorted(times, key=times.get)}

    def resident(self) -> dict[str, float]:
        """MB of each kind of process."""
        return {f"{role}, MB": self._resident[role] / 1e6 for role in ROLES if role in self._resident}

    def _look_for_step(self) -> None:
        metrics = self._folder / "metrics.jsonl"
        while not self._is_over.wait(LOOK_EVERY_S):
            if metrics.exists() and metrics.stat().st_size:
                self._first_step = time.time()
                return

    def _sample(self, root: psutil.Process) -> None:
        """The most that a process of each kind has resident, less what it maps of the object store, which is there once."""
        while not self._is_over.wait(SAMPLE_EVERY_S):
            try:
                processes = [root, *root.children(recursive=True)]
            except psutil.Error:
                return  # it has ended
            for process in processes:
                try:
                    title, size = " ".join(process.cmdline()), _own_bytes(process.pid)
                except (psutil.Error, OSError):
                    continue  # it has ended
                for role, pattern in ROLES.items():
                    if pattern.search(title):
                        self._resident[role] = max(self._resident.get(role, 0), size)


def _own_bytes(pid: int) -> int:
    """Resident memory of a process and of the files that it maps."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "RssFile")))


def _print(figures: dict[str, dict[str, list[float]]], rounds: int) -> None:
    """The table, in Markdown: a column for each checkout, and against the first the median over the pairs."""
    first, *others = figures
    lines = [
        f"\nstart-up, median of {rounds} [least, most]",
        f"| | {' | '.join([first, *(f'{each} | pairs' for each in others)])} |",
        "|" + "---|" * (2 + 2 * len(others)),
    ]
    for name in dict.fromkeys(name for each in figures.values() for name in each):
        values = {where: each.get(name, []) for where, each in figures.items()}
        cells = [_cell(values[first])]
        for other in others:
            ratios = [after / before for before, after in zip(values[first], values[other], strict=False) if before]
            cells += [_cell(values[other]), f"x{median(ratios):.2f}" if ratios else "-"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    output.result("\n".join(lines), title="start-up", figures=figures)


def _cell(values: list[float]) -> str:
    if not values:
        return "-"
    digits = 0 if min(values) >= 100 else 1
    return f"{median(values):.{digits}f} [{min(values):.{digits}f}, {max(values):.{digits}f}]"
