"""This project beside LightlyTrain and a loop written by hand: the same images, teacher, student, batch and precision.

Called by benchmark.py (`--stages peers`). Each is a command as its user gives it, from the shell to the exported student. In
every round they take turns. Two figures: seconds of the whole command, and images/s while training. The latter is between a
fifth and nine tenths of the images, so that neither start nor end counts, nor what is answered ahead of the first step.

All of them flip the images and change their colours. `defaults` is what each does if nothing is said of precision, threads,
workers and augmentation; the batch is the same there, too. How many workers and processes suit the two others on this machine
is tried first, on some of the images; the fastest is taken. This project gets no such help: it runs with its defaults.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from csat.precision import BFLOAT16, FLOAT32
from workflows.rates.config import BenchmarkConfig
from workflows.rates.contenders import (
    BATCH,
    DEFAULTS,
    STUDENT,
    TEACHER,
    Contender,
    Lightly,
    Loop,
    Ours,
    Spread,
    Task,
)
from workflows.rates.images import gather_images, make_teacher, steady
from workflows.rates.spread import cell, ratio, summary, times
from workflows.shell import output
from workflows.shell.interruption import scratch_folder

logger = logging.getLogger("benchmark")

PRECISIONS = (FLOAT32, BFLOAT16, DEFAULTS)
TRIED_IMAGES = 160  # of each trial


@dataclass(frozen=True, kw_only=True)
class Run:
    """What came of a command."""

    whole_s: float
    images_per_s: float
    core_s: dict[str, float]  # role → core-seconds of an image


def measure_peers(config: BenchmarkConfig) -> dict[str, Any]:
    """Precision → who → seconds and rates of every round; and how many times faster this project is.

    Raises:
        ConfigError: too few images; a command failed.
    """
    everybody, versions = _contenders(config)
    with scratch_folder("csat-bench-") as scratch:
        contest = _Contest(config, scratch)
        num_images = contest.gather()
        chosen = {} if config.quick or config.device == "cuda" else {each.name: contest.choose(each) for each in everybody}
        runs = contest.rounds(everybody, chosen)
    title = f"{num_images:,} images, {TEACHER} → {STUDENT}, batch {BATCH}, one epoch, {config.rounds} rounds"
    figures = {"title": title, "versions": versions, "spread_over_the_cores": chosen}
    figures |= {precision: _figures(of) for precision, of in runs.items()}
    _print(title, runs, figures)
    return figures


def _contenders(config: BenchmarkConfig) -> tuple[list[Contender], dict[str, str]]:
    """Everybody, and which version they are."""
    if config.lightly_python is None:
        logger.warning("LightlyTrain is left out: lightly_python names no Python that has it, see docs/performance.md")
        return [Ours(more=config.ours), Loop()], {}
    lightly = Lightly(python=config.lightly_python)
    return [Ours(more=config.ours), lightly, Loop()], {lightly.name: lightly.version()}


class _Contest:
    """The images and the teacher of all, in a folder."""

    def __init__(self, config: BenchmarkConfig, folder: Path):
        self._config, self._folder, self._num_runs = config, folder, 0
        self._images, self._some_images = folder / "images", folder / "some-images"
        self._task = Task(weights=folder / "teacher.pt", device=config.device, seed=config.seed)

    def gather(self) -> int:
        """The images, and the teacher. Returns their number."""
        number = gather_images(self._config, self._folder)
        make_teacher(self._task.weights, self._config.seed)
        self._some_images.mkdir()
        for path in sorted(self._images.iterdir())[:TRIED_IMAGES]:
            (self._some_images / path.name).symlink_to(path.resolve())
        return number

    def choose(self, contender: Contender) -> dict[str, Spread]:
        """Precision → the way to use the cores that is the fastest, on some of the images."""
        chosen: dict[str, Spread] = {}
        for precision in (FLOAT32, BFLOAT16) if contender.tried else ():
            rates = []
            for spread in contender.tried:
                done = self._run(contender, self._some_images, precision, spread)
                rates.append(done.images_per_s)
                logger.info("%s, %s, %s: %.2f images/s", contender.name, precision, spread, done.images_per_s)
            chosen[precision] = contender.tried[rates.index(max(rates))]
        if isinstance(contender, Loop):
            chosen[DEFAULTS] = chosen[FLOAT32]  # who writes it chooses; LightlyTrain has a default of its own
        return chosen

    def rounds(self, everybody: Sequence[Contender], chosen: dict[str, dict[str, Spread]]) -> dict[str, dict[str, list[Run]]]:
        """Precision → who → a run of each round. They take turns, each round begins with another one."""
        runs: dict[str, dict[str, list[Run]]] = {each: {one.name: [] for one in everybody} for each in PRECISIONS}
        for round_index in range(self._config.rounds):
            first = round_index % len(everybody)
            for precision in PRECISIONS:
                for contender in [*everybody[first:], *everybody[:first]]:
                    mine = runs[precision][contender.name]
                    if precision == DEFAULTS and isinstance(contender, Loop):
                        mine.append(runs[FLOAT32][contender.name][-1])  # the very same command
                        continue
                    spread = chosen.get(contender.name, {}).get(precision, {})
                    mine.append(done := self._run(contender, self._images, precision, spread))
                    told = (round_index + 1, precision, contender.name, done.whole_s, done.images_per_s)
                    logger.info("round %d, %s, %s: %.1f s, %.2f images/s", *told)
        return runs

    def _run(self, contender: Contender, images: Path, precision: str, spread: Spread) -> Run:
        self._num_runs += 1
        out = self._folder / f"run-{self._num_runs}"
        watched, steps = contender.run(self._task, images, out, precision, spread)
        num_images = sum(number for number, _ in steps)
        core_s = {role: seconds / num_images for role, seconds in watched.core_s.items()}
        return Run(whole_s=watched.seconds, images_per_s=steady(steps), core_s=core_s)


def _figures(of: dict[str, list[Run]]) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    our_whole, our_rate = (_values(of[Ours.name], field) for field in ("whole_s", "images_per_s"))
    for name, runs in of.items():
        whole, rate = (_values(runs, field) for field in ("whole_s", "images_per_s"))
        figures[name] = {"whole_s": summary(whole), "images_per_s": summary(rate), "core_s_per_image": runs[-1].core_s}
        if name != Ours.name:
            figures[name]["ours_is_faster"] = {"whole": ratio(whole, our_whole), "steady": ratio(our_rate, rate)}
    return figures


def _values(runs: list[Run], field: str) -> list[float]:
    return [getattr(each, field) for each in runs]


def _print(title: str, runs: dict[str, dict[str, list[Run]]], figures: dict[str, Any]) -> None:
    lines = [f"\npeers: {title}", f"  {'':18}{'whole command, s':26}{'ours':8}{'training, images/s':24}{'ours':6}"]
    for precision, of in runs.items():
        lines.append(f"  {precision}")
        our_whole, our_rate = (_values(of[Ours.name], field) for field in ("whole_s", "images_per_s"))
        for name, each in of.items():
            whole, rate = (_values(each, field) for field in ("whole_s", "images_per_s"))
            faster = ("", "") if name == Ours.name else (times(whole, our_whole), times(our_rate, rate))
            lines.append(f"    {name:16}{cell(whole):26}{faster[0]:8}{cell(rate):24}{faster[1]:6}".rstrip())
    lines.append("  ours: how many times faster this project is, the median over the pairs of a round")
    lines += [f"  {name} {number}" for name, number in figures["versions"].items()]
    for name, chosen in figures["spread_over_the_cores"].items():
        for precision, spread in chosen.items():
            told = ", ".join(f"{setting} {value}" for setting, value in spread.items())
            lines.append(f"  {name}, {precision}: {told} (the fastest of those tried)")
    output.result("\n".join(lines), figures=figures)
