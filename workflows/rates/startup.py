"""How long a user waits before anything happens, and how large the processes are: a whole demonstration, from its command.

Called by benchmark.py (`--stages '["startup"]'`). Everything is a command of its own, as a user gives it. With several
checkouts they take turns, so that a version is measured against another one under the same load.
"""

import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import psutil

from csat.errors import ConfigError
from workflows.rates.config import BenchmarkConfig
from workflows.shell import output

ROOT = Path(__file__).resolve().parents[2]
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
DEMO = ["workflows/pretrain.py", "--config", "demo", "--train.log_every_steps", "1"]


def measure_startup(config: BenchmarkConfig) -> dict[str, dict[str, float]]:
    """Checkout → figure → median over the rounds: seconds of answers and imports, to the first step, to the end; MB resident.

    Raises:
        ConfigError: a folder is no checkout, or a command failed in it.
    """
    checkouts = [Path(each) for each in config.checkouts] or [ROOT]
    for checkout in checkouts:
        if not (checkout / "workflows" / "pretrain.py").is_file():
            raise ConfigError(f"checkouts: {checkout} is no checkout of this project")
    figures: dict[str, dict[str, list[float]]] = {str(checkout): {} for checkout in checkouts}
    for round_index in range(config.rounds + 1):
        for checkout in checkouts:
            for name, value in _measure_once(checkout).items():
                if round_index:
                    figures[str(checkout)].setdefault(name, []).append(value)
    _print(figures, config.rounds)
    return {where: {name: median(values) for name, values in each.items()} for where, each in figures.items()}


def _measure_once(checkout: Path) -> dict[str, float]:
    figures = {}
    for page in sorted(path.stem for path in (checkout / "workflows").glob("*.py") if not path.stem.startswith("_")):
        figures[f"{page} --help, s"] = _run([f"workflows/{page}.py", "--help"], checkout)
        figures[f"import {page}, s"] = _run(["-c", f"import workflows.{page}"], checkout)
    with tempfile.TemporaryDirectory(prefix="csat-bench-") as scratch:
        folder = Path(scratch, "run")
        watch = _Watch(folder)
        figures["demonstration, s"] = _run([*DEMO, "--run_folder", str(folder)], checkout, watch=watch)
        return figures | watch.figures()


def _run(arguments: list[str], checkout: Path, *, watch: "_Watch | None" = None) -> float:
    """Seconds that a Python command takes."""
    # A run of its own, whatever cluster the shell knows, with the checkout's own code.
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {"PYTHONPATH": str(checkout)}
    with tempfile.TemporaryFile() as said:
        options = {"cwd": checkout, "env": environment, "stdout": said, "stderr": subprocess.STDOUT}
        started = time.monotonic()
        process = subprocess.Popen([sys.executable, *arguments], **options)
        if watch is not None:
            watch.start(process.pid, started)
        code = process.wait(TIMEOUT_S)
        seconds = time.monotonic() - started
        if watch is not None:
            watch.stop()
        if code:
            said.seek(0)
            raise ConfigError(f"{' '.join(arguments)} failed in {checkout}:\n{said.read().decode(errors='replace')[-2000:]}")
    return seconds


class _Watch:
    """Looks for a run's first step, and at the memory of its processes, while its command works."""

    def __init__(self, folder: Path):
        self._metrics = folder / "metrics.jsonl"
        self._first_step_s: float | None = None
        self._resident: dict[str, int] = {}
        self._is_over = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self, pid: int, started: float) -> None:
        looks: list[Callable[[], None]] = [lambda: self._look_for_step(started), lambda: self._sample(psutil.Process(pid))]
        self._threads = [threading.Thread(target=look, daemon=True) for look in looks]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def figures(self) -> dict[str, float]:
        resident = {f"{role}, MB": size / 2**20 for role, size in sorted(self._resident.items())}
        return {"command to first step, s": self._first_step_s or float("nan"), **resident}

    def _look_for_step(self, started: float) -> None:
        while not self._is_over.wait(LOOK_EVERY_S):
            if self._metrics.exists() and self._metrics.stat().st_size:
                self._first_step_s = time.monotonic() - started
                return

    def _sample(self, root: psutil.Process) -> None:
        """The most that a process of each kind has resident, with what it maps of the object store."""
        while not self._is_over.wait(SAMPLE_EVERY_S):
            try:
                processes = [root, *root.children(recursive=True)]
            except psutil.Error:
                return  # it has ended
            for process in processes:
                try:
                    title, size = " ".join(process.cmdline()), process.memory_info().rss
                except psutil.Error:
                    continue
                for role, pattern in ROLES.items():
                    if pattern.search(title):
                        self._resident[role] = max(self._resident.get(role, 0), size)


def _print(figures: dict[str, dict[str, list[float]]], rounds: int) -> None:
    lines = [f"\nstart-up, median of {rounds} [least, most]"]
    for name in dict.fromkeys(name for each in figures.values() for name in each):
        cells = []
        for each in figures.values():
            values = each.get(name)
            cells.append(f"{median(values):8.2f} [{min(values):.2f}, {max(values):.2f}]" if values else "-")
        lines.append(f"  {name:28}" + "".join(f"{cell:>28}" for cell in cells))
    output.result("\n".join(lines), title="start-up", figures=figures)
