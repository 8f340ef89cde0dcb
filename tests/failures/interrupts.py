"""Ctrl-C and SIGTERM again and again: a run is interrupted ten times, each time gone on with by the same command, and counted.

    python -m tests.failures.interrupts --folder /tmp/interrupts --results interrupts.jsonl

A chain is one run of one verb under one signal: interrupted just after the command, while Ray starts, before the first step,
while it trains, validates, writes a checkpoint and makes its results; then it is let to its end. Chains and interruptions that
the results hold already are not made again, so the command may itself be interrupted.
"""

import argparse
import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import yaml

from csat.runs.checkpoints import Checkpoints
from csat.runs.recorder import read_metrics
from csat.slides.synthetic import make_slides
from tests.cluster.nodes import BIN, environment, start
from tests.failures.cluster import kill_tree
from tests.support.labelled_folders import data_settings, make_folder, sweep_settings
from tests.support.verbs import arguments

EXIT_CODES = {"SIGINT": 130, "SIGTERM": 143}
MOMENTS = (
    "command",  # just given
    "ray",  # its Ray starts
    "preparing",  # tiles, or decodes
    "workers",  # those that train start
    "first step",
    "training",
    "validation",  # just ended: pretrain.py has none, and trains
    "checkpoint",  # is being written
    "training",
    "results",
)
WAIT_LIMIT_S = 600.0  # for a moment, or for the end of a run
END_LIMIT_S = 30.0  # from the signal to the end of the process: what is promised
WORKERS = ("RayTrainWorker", "ImplicitFunc", "run_trial")  # titles of the processes that train


@dataclass(frozen=True, kw_only=True)
class Stop:
    """One interruption of a chain; the last line of a chain is its end, with `moment` "end"."""

    verb: str
    signal: str
    number: int
    moment: str
    to_group: bool = False  # the signal went to the whole process group, as a terminal sends it
    done: int = 0  # tiles (images) committed, of all runs of a sweep together
    end_s: float = 0.0  # from the signal to the end
    code: int = 0
    kept: str = ""  # as it was said
    tiles: int = 0  # to train, once the chain is at its end
    lost: int = 0
    doubled: int = 0


class Chain:
    """One run, its command, and what it leaves on the disk."""

    def __init__(self, verb: str, signum: str, folder: Path, *, size: int = 10):
        """
        Args:
            folder: For the run and its inputs; a chain resumes where an earlier one left it.
            size: Interruptions that the run should be long enough for.
        """
        self.verb, self.signal, self.folder = verb, signum, folder / f"{verb}-{signum}"
        self.run, self.log = self.folder / "run", self.folder / "log"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.log.touch()
        self.command = [str(BIN / "python"), f"workflows/{verb}.py", *self._arguments(size)]
        self.process: subprocess.Popen | None = None

    def _arguments(self, size: int) -> list[str]:
        if self.verb == "pretrain":
            slides = self.folder / "slides"
            made = sorted(slides.glob("*.svs")) if slides.exists() else make_slides(slides, num_slides=2, size_px=512, seed=5)
            return arguments(
                made, self.run, train__epochs=15 * size, train__log_every_steps=1, train__checkpoint_every_steps=40
            )
        if not (self.folder / "data").exists():
            make_folder(self.folder / "data", num_groups=8, per_group=3)
        train = {"epochs": 15 * size, "batch_size": 8, "log_every_steps": 1, "checkpoint_every_steps": 40}
        if self.verb == "finetune":
            settings = data_settings(str(self.folder / "data"), tile_px=32, memory_gb=0.05)
            settings |= {"model": {"name": "csat_nano", "decoder_channels": 8}, "train": train, "num_bootstraps": 100}
            settings |= {"workers": {"cpus_per_worker": 0.25}, "report_samples": 2}
        else:
            settings = sweep_settings(data_sets={"a": data_settings(str(self.folder / "data"))})
            settings["base"]["train"] = train | {"epochs": 6 * size}
            settings |= {"num_trials": 2, "final_seeds": 1, "scheduler": "none"}
        settings["run_folder"] = str(self.run)
        (self.folder / "recipe.yaml").write_text(yaml.safe_dump(settings))
        return ["--config", str(self.folder / "recipe.yaml")]

    # ------------------------------------------------------------------------------------------------- what it has written

    def runs(self) -> list[Path]:
        """Run folders with checkpoints: the run itself, or those of a sweep."""
        return [path.parents[1] for path in sorted(self.run.rglob("checkpoints/latest.json"))]

    def done(self) -> int:
        return sum(len(Checkpoints(str(run / "checkpoints")).latest_cursor().done) for run in self.runs())

    def lines(self, file: str) -> int:
        """Of all metrics or validations together."""
        return sum(path.read_bytes().count(b"\n") for path in self.run.rglob(f"{file}.jsonl"))

    def trained(self) -> int:
        """Tiles that the logs speak of."""
        logs = [read_metrics(str(path.parent)) for path in self.run.rglob("metrics.jsonl")]
        return sum(lines[-1]["tiles"] for lines in logs if lines)

    def count(self) -> tuple[int, int, int]:
        """(tiles to train, lost, doubled) of the runs that have ended, from two counts that each run keeps apart."""
        tiles = lost = doubled = 0
        for path in self.run.rglob("accounting.json"):
            rows = json.loads(path.read_text())["epochs"]
            counted = sum(row["trained"] + row["quarantined"] + row["filtered"] for row in rows)
            total = sum(row["manifest"] for row in rows)
            steps = [line["step"] for line in read_metrics(str(path.parent))]
            tiles, lost, doubled = tiles + total, lost + max(0, total - counted), doubled + max(0, counted - total)
            doubled += len(steps) - len(set(steps))
            if (path.parent / "checkpoints").exists():  # the trials that were not the best keep none
                pairs = Checkpoints(str(path.parent / "checkpoints")).latest_cursor().done.pairs()
                lost += total - sum(stop - start for start, stop in pairs)
        return tiles, lost, doubled

    # ------------------------------------------------------------------------------------------------------ interrupting it

    def interrupt(self, number: int, moment: str) -> Stop:
        """Give the command, wait for the moment, send the signal, and look at what is left.

        Raises:
            AssertionError: it did not come to that, took longer than promised, left a process, or said what is not so.
        """
        rng = random.Random(f"{self.verb}-{self.signal}-{number}")
        before = self.done()
        self._start()
        try:
            self._wait_for(moment, rng)
            children = psutil.Process(self.process.pid).children(recursive=True)
            to_group, sent_at = rng.random() < 0.5, time.monotonic()
            signum = getattr(signal, self.signal)
            os.killpg(self.process.pid, signum) if to_group else self.process.send_signal(signum)
            code = self.process.wait(timeout=WAIT_LIMIT_S)
            end_s = round(time.monotonic() - sent_at, 1)
            _, alive = psutil.wait_procs([child for child in children if _runs(child)], timeout=3)
            assert not [child for child in alive if _runs(child)], f"left behind: {alive}"
        finally:
            kill_tree(self.process)
        said, done = self._said(), self.done()
        kept = re.search(r"interrupted \(SIG\w+\); kept: (.*)", said)
        assert kept and "resume with: " in said, said[-3000:]
        assert code == EXIT_CODES[self.signal] and end_s <= END_LIMIT_S, (code, end_s, said[-3000:])
        assert done >= max(before, self.trained()), f"{self.trained()} trained, {before} then {done} committed\n{said[-3000:]}"
        if self.verb != "tune" and (number_kept := re.match(r"([\d,]+)", kept[1])):
            assert int(number_kept[1].replace(",", "")) == done, (kept[1], done)
        about = dict(verb=self.verb, signal=self.signal, number=number, moment=moment, to_group=to_group)
        return Stop(**about, done=done, end_s=end_s, code=code, kept=kept[1])

    def finish(self, number: int) -> Stop:
        """Let it to its end, and count."""
        self._start()
        try:
            code = self.process.wait(timeout=WAIT_LIMIT_S)
        finally:
            kill_tree(self.process)
        assert code == 0, self._said()[-3000:]
        tiles, lost, doubled = self.count()
        about = dict(verb=self.verb, signal=self.signal, number=number, moment="end", done=self.done(), code=code)
        return Stop(**about, tiles=tiles, lost=lost, doubled=doubled)

    def _start(self) -> None:
        self._before = {name: self.lines(name) for name in ("metrics", "validation")}
        self.process = start(self.command, self.log, environment(RAY_AUTH_MODE="disabled"))

    def _said(self) -> str:
        return self.log.read_text(errors="replace")

    def _wait_for(self, moment: str, rng: random.Random) -> None:
        if moment == "command":
            time.sleep(rng.uniform(0.5, 4))
        elif moment in ("ray", "preparing", "workers"):
            titles = WORKERS if moment == "workers" else ("raylet",)
            self._until(lambda: any(title in _title(each) for each in self._children() for title in titles))
            time.sleep(rng.uniform(0, {"ray": 1, "preparing": 8, "workers": 4}[moment]))
        elif moment == "checkpoint":
            known = set(self.run.rglob("checkpoints/step-*"))
            self._until(lambda: set(self.run.rglob("checkpoints/step-*")) - known, every_s=0.005)
        elif moment == "results":
            self._until(self._is_at_results)
            time.sleep(rng.uniform(0, 1))
        else:
            file = "validation" if moment == "validation" and self.verb != "pretrain" else "metrics"
            self._until(lambda: self.lines(file) > self._before[file])
            time.sleep(rng.uniform(0.5, 3) if moment == "training" else rng.uniform(0, 0.3))

    def _is_at_results(self) -> bool:
        if self.verb == "pretrain":
            return (self.run / "accounting.json").exists()
        folders = self.run.rglob("seeds/*/metrics.jsonl") if self.verb == "tune" else self.run.glob("metrics.jsonl")
        lines = [line for path in folders for line in read_metrics(str(path.parent))[-1:]]
        return any(line["tiles"] == line["tiles_total"] for line in lines)

    def _until(self, is_so: Callable[[], Any], *, every_s: float = 0.05) -> None:
        deadline = time.monotonic() + WAIT_LIMIT_S
        while True:
            with contextlib.suppress(OSError, ValueError, psutil.Error):  # files and processes come and go
                if is_so():
                    return
            assert self.process.poll() is None, f"it had ended\n{self._said()[-3000:]}"
            assert time.monotonic() < deadline, f"it did not come to that\n{self._said()[-3000:]}"
            time.sleep(every_s)

    def _children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)


def _title(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join([process.name(), *process.cmdline()])
    return ""


def _runs(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


def run_chain(verb: str, signum: str, folder: Path, results: Path, *, until: float = float("inf")) -> None:
    """What is left of a chain; each interruption is a line of the results as soon as it is made.

    Args:
        until: Time (monotonic) from which nothing more is begun.
    """
    chain = Chain(verb, signum, folder, size=len(MOMENTS))
    made = [row for row in read_rows(results) if (row["verb"], row["signal"]) == (verb, signum)]
    for number in range(len(made), len(MOMENTS) + 1):
        if time.monotonic() > until:
            return
        stop = chain.interrupt(number, MOMENTS[number]) if number < len(MOMENTS) else chain.finish(number)
        with results.open("a") as file:
            file.write(json.dumps(asdict(stop)) + "\n")
        print(stop, flush=True)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The lines of a results file; none where there is no such file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def as_markdown(rows: list[dict[str, Any]]) -> str:
    """A row per chain. Seconds are median and most."""
    lines = [
        "| verb | signal | interrupted | exit code | seconds to its end | tiles | lost | doubled |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for verb, signum in dict.fromkeys((row["verb"], row["signal"]) for row in rows):
        chain = [row for row in rows if (row["verb"], row["signal"]) == (verb, signum)]
        stops = [row for row in chain if row["moment"] != "end"]
        seconds, codes = [row["end_s"] for row in stops], ", ".join(sorted({str(row["code"]) for row in stops}))
        end = [row for row in chain if row["moment"] == "end"]
        counts = [f"{end[0][name]:,}" for name in ("tiles", "lost", "doubled")] if end else ["not at its end", "", ""]
        spread = f"{median(seconds):.1f}, {max(seconds):.1f}" if seconds else ""
        lines.append(f"| {verb} | {signum} | {len(stops)} | {codes} | {spread} | {' | '.join(counts)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="for the runs")
    parser.add_argument("--results", type=Path, required=True, help="a .jsonl file: a line per interruption")
    parser.add_argument("--verbs", nargs="+", default=["pretrain", "finetune", "tune"])
    parser.add_argument("--signals", nargs="+", choices=EXIT_CODES, default=list(EXIT_CODES))
    parser.add_argument("--limit_s", type=float, default=float("inf"), help="begin nothing more after so many seconds")
    options = parser.parse_args()
    until = time.monotonic() + options.limit_s
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(143))  # the verb that runs is ended, too
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a shell has its background commands ignore it: the verbs must not
    for verb in options.verbs:
        for signum in options.signals:
            run_chain(verb, signum, options.folder, options.results, until=until)
    print(as_markdown(read_rows(options.results)))


if __name__ == "__main__":
    main()
