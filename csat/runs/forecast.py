"""What a run will do on a cluster, from what one tile costs: plain arithmetic, rates in, a plan out.

Reading, teacher and student work at the same time, so the slowest stage sets the pace, or the cores that all of them share:

    tiles/s = min(readers x rate, teacher actors x rate, workers x rate, cores / core-seconds of a tile)

A stage's rate is that of one actor with so many threads on cores of its own, as `Costs` has them measured. What the stages
hand to each other costs core-seconds as well. Of all plans that the cluster can hold, `make_plan` takes the fastest, and of
equally fast ones the smallest: so a larger cluster is never slower.

Processes of one thread may be more than there are cores, they take turns. Several threads of one process wait for each other
at every layer: where there are more threads than cores, all of them wait (a teacher with two threads on two busy cores was ten
times slower than with one). So plans with several threads have a core for each.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from csat.errors import ConfigError

READING, TEACHER, STUDENT, CORES = "reading", "the teacher", "the student", "CPU cores"
SAME = 1.01  # a plan that is faster by less is not worth more actors
MAX_ACTORS = 512  # of one stage that a plan considers
STREAM_BLOCKS = 8  # chunks on their way: each stage has one in work and one waiting
STORE_SHARE = 0.5  # of the object store that a stream may take: workers hold copies beside it


@dataclass(frozen=True, kw_only=True)
class Machines:
    """What a cluster has. All nodes together, but for what one node has at most."""

    cpus: float
    gpus: float = 0.0
    node_cpus: float  # of the largest node: threads of one process
    memory_bytes: float  # for the processes
    store_bytes: float  # of object store

    def with_gpu(self) -> "Machines":
        """One GPU more."""
        return replace(self, gpus=self.gpus + 1)

    def with_node(self) -> "Machines":
        """One node more, such as the largest is, with its share of the rest."""
        share = self.node_cpus / self.cpus
        more = {name: getattr(self, name) * (1 + share) for name in ("gpus", "memory_bytes", "store_bytes")}
        return replace(self, cpus=self.cpus + self.node_cpus, **more)


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What one tile costs, measured.

    Attributes:
        read_s: Core-seconds to read and decode it.
        teacher, student: Threads → tiles/s of one actor or worker; on a GPU of one that has the GPU to itself.
        travel_s: Core-seconds of all hands that it goes through.
        bytes_per_tile: Of pixels and responses, as they travel.
        teacher_bytes, student_bytes: Memory of one process.
    """

    read_s: float
    teacher: Mapping[int, float]
    student: Mapping[int, float]
    travel_s: float = 0.0
    bytes_per_tile: float
    teacher_bytes: float = 0.0
    student_bytes: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Shares:
    """What each actor or worker reserves, and what is settled: numbers that the plan must not change.

    Attributes:
        readers, actors, teacher_threads, student_threads: None where the plan may choose.
        workers: That train.
        chunk_tiles: Tiles that are read together.
    """

    reader_cpus: float
    teacher_cpus: float
    teacher_gpus: float
    worker_cpus: float
    worker_gpus: float
    workers: int
    chunk_tiles: int
    readers: int | None = None
    actors: int | None = None
    teacher_threads: int | None = None
    student_threads: int | None = None


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """A plan and what comes of it."""

    readers: int
    actors: int
    teacher_threads: int
    workers: int
    student_threads: int
    cpus: float  # reserved
    gpus: float
    tiles_per_s: float
    bottleneck: str
    stages: dict[str, float]  # what each could do by itself, tiles/s
    stream_bytes: float

    def over(self, positions: int, bytes_per_tile: float) -> dict[str, float]:
        """Of a run over so many tiles: hours, GB between its processes, and GPU-hours."""
        hours = positions / self.tiles_per_s / 3600
        return {"hours": hours, "gb_moved": positions * bytes_per_tile / 1e9, "gpu_hours": hours * self.gpus}


def make_plan(machines: Machines, costs: Costs, shares: Shares) -> Forecast:
    """The fastest plan that the machines can hold.

    Raises:
        ConfigError: they can hold none; says what is missing.
    """
    best: Forecast | None = None
    for candidate in sorted(_candidates(machines, costs, shares), key=_size):
        if best is None or candidate.tiles_per_s > best.tiles_per_s * SAME:
            best = candidate
    if best is None:
        raise ConfigError(_does_not_fit(machines, costs, shares))
    return best


def forecast(
    machines: Machines, costs: Costs, shares: Shares, *, readers: int, actors: int, teacher_threads: int, student_threads: int
) -> Forecast:
    """What comes of these numbers."""
    gpu_share = min(1.0, shares.teacher_gpus) if shares.teacher_gpus else 1.0
    stages = {
        READING: readers / costs.read_s,
        TEACHER: actors * gpu_share * rate_with(teacher_threads, costs.teacher),
        STUDENT: shares.workers * rate_with(student_threads, costs.student),
    }
    core_s = costs.read_s + costs.travel_s
    core_s += 0.0 if shares.teacher_gpus else 1 / costs.teacher[1]
    core_s += 0.0 if shares.worker_gpus else 1 / costs.student[1]
    stages[CORES] = machines.cpus / core_s
    bottleneck = min(stages, key=stages.__getitem__)
    return Forecast(
        readers=readers,
        actors=actors,
        teacher_threads=teacher_threads,
        workers=shares.workers,
        student_threads=student_threads,
        cpus=readers * shares.reader_cpus + actors * shares.teacher_cpus + shares.workers * shares.worker_cpus,
        gpus=actors * shares.teacher_gpus + shares.workers * shares.worker_gpus,
        tiles_per_s=stages[bottleneck],
        bottleneck=bottleneck,
        stages=stages,
        stream_bytes=min(
            STORE_SHARE * machines.store_bytes,
            (STREAM_BLOCKS + 2 * (readers + actors)) * shares.chunk_tiles * costs.bytes_per_tile,
        ),
    )


def rate_with(threads: int, rates: Mapping[int, float]) -> float:
    """Of so many threads; where these were not measured, of the next smaller number that was."""
    return rates[max(number for number in rates if number <= threads)]


def as_record(plan: Forecast) -> dict[str, Any]:
    """JSON-ready."""
    return {name: getattr(plan, name) for name in Forecast.__dataclass_fields__}


def _candidates(machines: Machines, costs: Costs, shares: Shares) -> Iterator[Forecast]:
    """All plans that fit: as many readers and actors as there is room for, each with any number of threads that a node has."""
    free_cpus = machines.cpus - shares.workers * shares.worker_cpus
    free_gpus = machines.gpus - shares.workers * shares.worker_gpus
    if min(free_cpus, free_gpus) < -1e-9:
        return
    for actors in _numbers(shares.actors, free_cpus, shares.teacher_cpus, free_gpus, shares.teacher_gpus):
        needed = actors * costs.teacher_bytes + shares.workers * costs.student_bytes
        if needed > machines.memory_bytes:
            return
        left = free_cpus - actors * shares.teacher_cpus
        for teacher_threads in _threads(shares.teacher_threads, costs.teacher, machines, shares.teacher_gpus):
            for student_threads in _threads(shares.student_threads, costs.student, machines, shares.worker_gpus):
                if not _has_cores(machines, shares, actors, teacher_threads, student_threads):
                    continue
                chosen = {"actors": actors, "teacher_threads": teacher_threads, "student_threads": student_threads}
                without = forecast(machines, costs, shares, readers=MAX_ACTORS, **chosen)
                wanted = max(1, _enough(without.tiles_per_s * costs.read_s))
                for readers in _numbers(shares.readers, left, shares.reader_cpus):
                    if shares.readers is None and readers not in (1, wanted, _most(left, shares.reader_cpus)):
                        continue
                    yield forecast(machines, costs, shares, readers=readers, **chosen)


def _numbers(settled: int | None, cpus: float, each: float, gpus: float = 0.0, gpus_each: float = 0.0) -> Iterator[int]:
    most = min(_most(cpus, each), _most(gpus, gpus_each))
    if settled is None:
        yield from range(1, most + 1)
    elif settled <= most:
        yield settled


def _most(have: float, each: float) -> int:
    return MAX_ACTORS if not each else min(MAX_ACTORS, int(have / each + 1e-9))


def _enough(readers: float) -> int:
    return int(readers) + (readers > int(readers) + 1e-9)


def _threads(settled: int | None, rates: Mapping[int, float], machines: Machines, gpus: float) -> list[int]:
    """That were measured, and that a node has cores for. On a GPU they are of no matter."""
    if settled is not None:
        return [settled]
    return [1] if gpus else [number for number in sorted(rates) if number == 1 or number <= machines.node_cpus]


def _has_cores(machines: Machines, shares: Shares, actors: int, teacher_threads: int, student_threads: int) -> bool:
    """Whether each thread has a core, or no process has several that the plan chose."""
    is_chosen = (teacher_threads > 1 and shares.teacher_threads is None) or (
        student_threads > 1 and shares.student_threads is None
    )
    threads = 0 if shares.teacher_gpus else actors * teacher_threads
    threads += 0 if shares.worker_gpus else shares.workers * student_threads
    return not is_chosen or threads <= machines.cpus


def _size(plan: Forecast) -> tuple[float, ...]:
    """Smaller plans first."""
    return (plan.gpus, plan.actors, plan.teacher_threads + plan.student_threads, plan.cpus)


def _does_not_fit(machines: Machines, costs: Costs, shares: Shares) -> str:
    actors, readers = shares.actors or 1, shares.readers or 1
    cpus = shares.workers * shares.worker_cpus + actors * shares.teacher_cpus + readers * shares.reader_cpus
    gpus = shares.workers * shares.worker_gpus + actors * shares.teacher_gpus
    needed = actors * costs.teacher_bytes + shares.workers * costs.student_bytes
    return (
        f"the cluster cannot hold this run: {shares.workers} workers, {actors} teacher actors and {readers} readers take "
        f"{cpus:g} CPUs, {gpus:g} GPUs and {needed / 1e9:.1f} GB of memory at least, and it has {machines.cpus:g}, "
        f"{machines.gpus:g} and {machines.memory_bytes / 1e9:.1f}: lower workers.num_workers, workers.cpus_per_worker, "
        "pool.min_actors or pool.cpus_per_actor, or use a larger cluster"
    )
