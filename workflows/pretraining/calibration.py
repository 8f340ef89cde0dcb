"""What a tile costs on this cluster: reading, teacher and student, one after the other, each where it will be in the run.

The teacher stage and the trainer are the run's own, over a few tiles: what the run does, and nothing else, is timed. Each runs
in a process of its own with the share that an actor or a worker has; only there threads are set.
"""

import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import median
from typing import Any

import numpy as np
import psutil

from csat.columns import OK, POSITION, READ_S, STATUS, TILE
from csat.errors import ConfigError
from csat.runs.forecast import Costs, TeacherCosts
from csat.runs.plan import Plan
from csat.runs.recorder import read_metrics
from csat.tiles.sample import Rows
from workflows.pretraining.job import PretrainJob
from workflows.pretraining.rehearsal import in_a_process, on_actor
from workflows.pretraining.stream import StreamConfig, make_reader, teacher_arguments

SIZES = (1, 4, 8, 16, 32)  # micro-batches of the teacher that are tried beside its own
STEP_SIZES = (8, 32)  # tiles of a step that are tried, if the run's steps are no smaller
ENOUGH_S = 4.0  # of one measurement; a slow network is called once or twice
TIMED_STEPS = 3  # of the student, after one that is not counted
# Core-seconds of what a tile passes between processes: measured, see docs/planning.md.
TRAVEL_S, TRAVEL_S_PER_BYTE = 0.002, 6e-9


@dataclass(frozen=True, kw_only=True)
class Measured:
    """By one process.

    Attributes:
        rates: (threads, tiles at once) → tiles/s.
        size: Tiles at once of the run, or as near to it as was tried. The others are advice.
        peak_bytes: Of the process.
        read_s: Core-seconds to read a tile.
    """

    rates: dict[tuple[int, int], float]
    size: int
    peak_bytes: float
    read_s: float = 0.0

    def by_threads(self) -> dict[int, float]:
        """Threads → tiles/s, of the run's size."""
        return {threads: rate for (threads, size), rate in self.rates.items() if size == self.size}


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """All of it."""

    costs: Costs
    teacher: Measured
    student: Measured
    seconds: float = field(default=0.0)  # that it took
    others: dict[str, Measured] = field(default_factory=dict)  # name → of the teachers after the first

    def as_record(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "seconds": round(self.seconds, 1),
            "costs": asdict(self.costs),
            "teacher_tiles_per_s": _listed(self.teacher),
            "student_tiles_per_s": _listed(self.student),
            **({"others_tiles_per_s": {name: _listed(each) for name, each in self.others.items()}} if self.others else {}),
        }


def calibrate(job: PretrainJob, rows: Rows, *, node_cpus: int, is_brief: bool = False) -> Calibration:
    """Measure on the cluster; about a minute, or a few seconds.

    Args:
        rows: Some tiles of the run, without pixels.
        node_cpus: Most threads that a process may have.
        is_brief: One size each (the teacher's own, and a small step), and few threads.

    Raises:
        ConfigError: the teacher did not answer, or the student did not make a step.
    """
    started = time.monotonic()
    workers, asked = job.workers, job.stream.teachers
    sizes = () if is_brief else SIZES
    measured, answered = [], rows
    for number, each in enumerate(asked):
        pool = each.pool
        threads = _tried(node_cpus, pool.gpus_per_actor, workers.gpus_per_worker, pool.threads, is_brief=is_brief)
        said = on_actor(each, measure_teacher, job.stream, answered, threads, sizes, number)
        if isinstance(said, str):
            raise ConfigError(f"the teacher{f' {each.name}' if each.name else ''} could not be measured: {said}")
        measured.append(said[0])
        answered = said[1]
    teacher, *others = measured
    gpus = max(each.pool.gpus_per_actor for each in asked)
    threads = _tried(node_cpus, workers.gpus_per_worker, gpus, workers.threads, is_brief=is_brief)
    steps = STEP_SIZES[:1] if is_brief else STEP_SIZES
    shares = {"cpus": workers.cpus_per_worker, "gpus": workers.gpus_per_worker}
    student = in_a_process(measure_student, job, answered, threads, steps, **shares)
    if isinstance(student, str):
        raise ConfigError(f"the student could not be measured: {student}")
    num_bytes = job.stream.bytes_per_tile()
    costs = Costs(
        read_s=teacher.read_s,
        teacher=teacher.by_threads(),
        student=student.by_threads(),
        travel_s=TRAVEL_S + TRAVEL_S_PER_BYTE * num_bytes,
        bytes_per_tile=num_bytes,
        teacher_bytes=teacher.peak_bytes,
        student_bytes=student.peak_bytes,
        others=tuple(TeacherCosts(rates=each.by_threads(), process_bytes=each.peak_bytes) for each in others),
    )
    named = {each.name: one for each, one in zip(asked[1:], others, strict=True)}
    seconds = time.monotonic() - started
    return Calibration(costs=costs, teacher=teacher, student=student, seconds=seconds, others=named)


def measure_teacher(
    stream: StreamConfig, rows: Rows, threads: Sequence[int], sizes: Sequence[int], number: int = 0
) -> tuple[Measured, Rows] | str:
    """Reading and a teacher, in this process. Returns the figures, and the rows with their answers; or why there are none.

    Args:
        rows: Without pixels; for a teacher after the first, with pixels and what those before it have answered.
        sizes: Micro-batches that are tried beside the teacher's own.
        number: Of the teacher in the stream.
    """
    import torch

    from teachers.stage import TeacherStage

    read = make_reader(stream)(rows) if number == 0 else rows
    good = np.flatnonzero(read[STATUS] == OK)
    if not len(good):
        return "none of the tiles that were tried could be read"
    columns = {name: column[good] for name, column in read.items()} | {POSITION: np.arange(len(good))}
    stage = TeacherStage(**teacher_arguments(stream, number))
    rates: dict[tuple[int, int], float] = {}
    one = {name: column[:1] for name, column in columns.items()}
    stage(one)  # warm
    most = max(1, min(len(good), int(ENOUGH_S / min(_timed(lambda: stage(one))[1] for _ in range(2)))))
    taken = {name: column[:most] for name, column in columns.items()}
    suits = getattr(stage.teacher, "micro_batch", None)  # None: no torch module, which takes what comes
    own = min(suits or most, most)
    for number in threads:
        torch.set_num_threads(number)
        tried = {own, *(size for size in sizes if size <= most)} if suits and number == 1 else {own}
        for size in sorted(tried):
            if suits:
                stage.teacher.micro_batch = size
            rates[number, size] = _rate(lambda: stage(taken), most, enough_s=ENOUGH_S / 2)
    if suits:
        stage.teacher.micro_batch = suits
    return Measured(rates=rates, size=own, peak_bytes=_peak_bytes(), read_s=_read_s(read)), stage(taken)


def measure_student(job: PretrainJob, rows: Rows, threads: Sequence[int], sizes: Sequence[int]) -> Measured:
    """The trainer over answered rows, again and again, in this process: the steps of all students."""
    import torch

    rates: dict[tuple[int, int], float] = {}
    own = job.config.train.rows_per_worker(job.workers.num_workers)
    for number in threads:
        torch.set_num_threads(number)
        for size in sorted({min(size, own) for size in sizes}):
            if rates and number == 1 and size * TIMED_STEPS / max(rates.values()) > 3 * ENOUGH_S:
                continue  # too slow to try
            if number > 1 and size != max(each for _, each in rates):
                continue
            rates[number, size] = _step_rate(job, rows, size)
    return Measured(rates=rates, size=max(size for _, size in rates), peak_bytes=_peak_bytes())


def _step_rate(job: PretrainJob, rows: Rows, size: int) -> float:
    """Tiles/s of the trainer's steps over so many tiles, without what it waits for them."""
    import torch

    from csat.training.context import TrainContext
    from csat.training.loop import Trainer

    device = torch.device("cuda" if job.workers.gpus_per_worker else "cpu")
    methods = {name: method.to(device) for name, method in job.build_methods().items()}
    number = size * (1 + TIMED_STEPS)
    taken = np.resize(np.arange(len(rows[TILE])), number)
    steps = [taken[start : start + size] for start in range(0, number, size)]
    batches = [
        {name: column[step] for name, column in rows.items()} | {POSITION: np.arange(size) + index * size}
        for index, step in enumerate(steps)
    ]
    config = replace(
        job.config.train,
        epochs=1,
        batch_size=size,
        accumulate=1,
        log_every_steps=1,
        checkpoint_every_s=None,
        checkpoint_every_steps=None,
        compile=False,
    )
    with tempfile.TemporaryDirectory(prefix="csat-calibration-") as folder:
        context = TrainContext(batches=lambda _: iter(batches), device=device)
        plan = Plan([number], [0], num_epochs=1, seed=0)
        Trainer(methods, plan, context, config, run_folder=folder, tile_px=job.stream.tile_px).run()
        timed = read_metrics(folder)[1:]
    return median(line["tiles_per_s"] / (1 - line["wait_share"]) for line in timed)


def _tried(node_cpus: int, gpus: float, others_gpus: float, settled: int | None, *, is_brief: bool) -> list[int]:
    """Numbers of threads: no more than a node has cores for, beside the process that works at the same time."""
    most = max(1, node_cpus - (0 if others_gpus else 1))
    numbers = {1, most} if is_brief else {1, min(2, most), min(4, most), most}
    return [1] if gpus else sorted(numbers | {settled or 1})


def _rate(run: Callable[[], object], num_tiles: int, *, enough_s: float) -> float:
    """Tiles/s of the fastest call: others only were disturbed more. Two calls at least, where one does not take too long."""
    seconds: list[float] = []
    while not seconds or (sum(seconds) < enough_s and len(seconds) < 5):
        seconds.append(_timed(run)[1])
    return num_tiles / min(seconds)


def _timed(run: Callable[[], Any]) -> tuple[Any, float]:
    started = time.perf_counter()
    result = run()
    return result, time.perf_counter() - started


def _read_s(read: Rows) -> float:
    """Of a tile once its slide is open: the first of each slide is left out, where there are others."""
    _, first = np.unique(read["slide"], return_index=True)
    others = np.delete(np.arange(len(read["slide"])), first)
    chosen = others if len(others) >= len(first) else np.arange(len(read["slide"]))
    return max(1e-6, float(np.mean(read[READ_S][chosen])))


def _peak_bytes() -> float:
    """Of this process, less what all processes share: the libraries that it maps."""
    shared = psutil.Process().memory_info().shared
    return float(max(0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - shared))


def _listed(measured: Measured) -> list[dict[str, float]]:
    return [{"threads": number, "tiles": size, "tiles_per_s": rate} for (number, size), rate in measured.rates.items()]
