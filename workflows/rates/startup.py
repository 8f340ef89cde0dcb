"""How long a user waits before anything happens, and how large the processes are: a whole demonstration, from its command.

Called by benchmark.py (`--stages startup`). Everything is a command of its own, as a user gives it. With several
checkouts they take turns, so that a version is measured against another one under the same load; round n of the one and of the
other are a pair. When things happened in a demonstration is read off its run folder.
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from csat.errors import ConfigError
from workflows.rates.commands import ROOT, Watched, run
from workflows.rates.config import BenchmarkConfig
from workflows.rates.spread import cell, summary, times
from workflows.shell import output
from workflows.shell.interruption import scratch_folder

logger = logging.getLogger("benchmark")

PAGES = ("pretrain", "finetune", "tune", "evaluate", "benchmark")
SHOWN_ROLES = ("driver", "reader", "teacher", "worker")  # of the demonstration's processes
DEMO = ["workflows/pretrain.py", "--config", "demo"]  # what `make demo` runs
REFUSED = 2  # exit code of a setting that cannot work
FIRST_STEP, WHOLE = "until the first step, s", "make demo, s"
# What has happened → the file of the run folder that was written last, then.
MILESTONES = {
    "until tiles are cut, s": "manifest/index.json",
    "until the last step, s": "checkpoints/latest.json",
    "until the student is judged, s": "evaluation.json",
    "until the report, s": "report.html",
}


def measure_startup(config: BenchmarkConfig) -> dict[str, dict[str, Any]]:
    """Checkout → figure → its rounds: seconds of answers and imports, to the first step, to the end; MB resident.

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
            measured = _measure_once(checkout, pages)
            told = (f"round {round_index}" if round_index else "to warm up", checkout.name)
            logger.info("%s, %s: %.1f s to the first step, %.1f s in all", *told, measured[FIRST_STEP], measured[WHOLE])
            for name, value in measured.items():
                if round_index:
                    figures[str(checkout)].setdefault(name, []).append(value)
    _print(figures, config.rounds)
    return {where: {name: summary(values) for name, values in each.items()} for where, each in figures.items()}


def _measure_once(checkout: Path, pages: Sequence[str]) -> dict[str, float]:
    def seconds(*arguments: str, expected: int = 0) -> float:
        return run(arguments, cwd=checkout, expected=expected).seconds

    figures = {f"{page} --help, s": seconds(f"workflows/{page}.py", "--help") for page in pages}
    figures |= {f"import {page}, s": seconds("-c", f"import workflows.{page}") for page in pages}
    with scratch_folder("csat-bench-") as scratch:
        nowhere = [*DEMO, "--slides", str(scratch / "nowhere"), "--run_folder", str(scratch / "refused")]
        figures["missing slides are refused, s"] = seconds(*nowhere, expected=REFUSED)
        folder = scratch / "run"
        demo = [*DEMO, "--train.log_every_steps", "1", "--run_folder", str(folder)]
        watched = run(demo, cwd=checkout, progress=folder / "metrics.jsonl")
        figures |= _milestones(folder, watched) | {WHOLE: watched.seconds}
        throughput = json.loads((folder / "throughput.json").read_text())
        figures["the trainer waits, %"] = 100 * throughput["trainer_waiting_share"]
        resident = watched.resident_bytes
        return figures | {f"{role}, MB": resident[role] / 1e6 for role in SHOWN_ROLES if role in resident}


def _milestones(folder: Path, watched: Watched) -> dict[str, float]:
    """Seconds from the command to the first step and to each milestone, in their order."""
    written = {name: folder / file for name, file in MILESTONES.items()}
    seconds = {name: path.stat().st_mtime - watched.started for name, path in written.items() if path.exists()}
    seconds[FIRST_STEP] = watched.seconds_to(1)
    return {name: seconds[name] for name in sorted(seconds, key=seconds.get)}


def _print(figures: dict[str, dict[str, list[float]]], rounds: int) -> None:
    """The table: a column for each checkout, and against the first the median over the pairs."""
    first, *others = figures
    width = max(len(name) for each in figures.values() for name in each) + 2
    head = "".join(f"{Path(other).name[-16:]:24}{'pairs':8}" for other in others)
    lines = [
        f"\nstart-up: median of {rounds} rounds [least, most]",
        f"  {'':{width}}{Path(first).name[-16:]:24}{head}".rstrip(),
    ]
    for name in dict.fromkeys(name for each in figures.values() for name in each):
        mine = figures[first].get(name, [])
        beside = [figures[other].get(name, []) for other in others]
        cells = "".join(f"{cell(each):24}{times(each, mine) if each and mine else '-':8}" for each in beside)
        lines.append(f"  {name:{width}}{cell(mine):24}{cells}".rstrip())
    output.result("\n".join(lines), title="start-up", figures=figures)
