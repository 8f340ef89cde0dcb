"""A run's first tiles, before anything is started for all of them: read, and answered by the teacher where its actors will be.

A process of its own does it: a slide that crashes whoever opens it, or a teacher that takes all memory, ends no run here.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import ray

from csat.columns import OK, STATUS, TILE, rows_by_size, take_rows
from csat.precision import BFLOAT16, FLOAT32
from csat.tiles.sample import Rows
from workflows.pretraining.stream import StreamConfig, StreamTeacher, make_reader, teacher_arguments

T = TypeVar("T")
TIMEOUT_S = 300.0  # of loading a teacher and asking it about a few tiles
ENOUGH_S = 20.0  # after which a slow teacher is asked no more
TILES_AT_ONCE = 8  # between two looks at the clock
OF_LOADING = ("name", "weights", "options", "device", "wanted")  # arguments of a stage that its teacher is loaded with


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """What was seen.

    Attributes:
        tiles: That the teacher answered both ways.
        deviations: As `teachers.precision.as_record` has them.
        tiles_per_s: Precision → of one actor.
    """

    tiles: int
    deviations: list[dict[str, Any]]
    tiles_per_s: dict[str, float]


def on_actor(asked: StreamTeacher, run: Callable[..., T], *arguments: Any) -> T | str:
    """What a function returns where an actor of the teacher's pool will be; why not, where nothing came of it."""
    pool = asked.pool
    return in_a_process(run, *arguments, cpus=pool.cpus_per_actor, gpus=pool.gpus_per_actor)


def in_a_process(run: Callable[..., T], *arguments: Any, cpus: float, gpus: float) -> T | str:
    """What a function returns in a process with these shares; why not, in words, where it ended without."""
    task = ray.remote(run).options(num_cpus=cpus, num_gpus=gpus or None, max_retries=0)
    waiting = task.remote(*arguments)
    try:
        return ray.get(waiting, timeout=TIMEOUT_S)
    except ray.exceptions.GetTimeoutError:
        ray.cancel(waiting, force=True)
        return f"no answer within {TIMEOUT_S:.0f} s"
    except ray.exceptions.RayError as error:
        return (str(error).strip() or type(error).__name__).splitlines()[-1]


def rehearse(stream: StreamConfig, rows: Rows, number: int = 0) -> Rehearsal | str:
    """Both answers of a teacher of the stream to some tiles; runs in the process that it is called in.

    Args:
        rows: Of the manifest, without pixels.
    """
    from teachers.contract import PRECISION
    from teachers.precision import as_record, deviations
    from teachers.registry import load_teacher
    from teachers.rows import shrunk

    arguments = teacher_arguments(stream, number)
    arguments["options"] = {**arguments["options"], PRECISION: FLOAT32}
    teacher = load_teacher(**{name: arguments[name] for name in OF_LOADING})
    both = {FLOAT32: teacher, BFLOAT16: teacher.in_bfloat16()}
    columns = make_reader(stream)(rows)
    batches, timed, seconds = [], 0, dict.fromkeys(both, 0.0)
    started = time.monotonic()
    for group in rows_by_size(columns[TILE], np.flatnonzero(columns[STATUS] == OK)):
        for start in range(0, len(group), TILES_AT_ONCE):
            if batches and time.monotonic() - started > ENOUGH_S:
                break
            tiles = take_rows(columns[TILE], group[start : start + TILES_AT_ONCE])
            tiles = np.ascontiguousarray(shrunk(tiles, arguments["shrink"]))
            answers = []
            for precision, each in both.items():
                begun = time.perf_counter()
                answers.append(each.respond(tiles))
                seconds[precision] += time.perf_counter() - begun if batches else 0.0  # the first one is for warming up
            timed += len(tiles) if batches else 0
            batches.append(tuple(answers))
    if not batches:
        return "none of the tiles that were tried could be read"
    return Rehearsal(
        tiles=sum(len(next(iter(exact.values()))) for exact, _ in batches),
        deviations=as_record(deviations(batches, teacher.spec.responses)),
        tiles_per_s={name: timed / spent for name, spent in seconds.items() if spent},
    )
