"""What a run will do on a cluster, from what one tile costs: plain arithmetic, rates in, a plan out.

Reading, teacher and student work at the same time, so the slowest stage sets the pace, or the cores that all of them share:

    tiles/s = min(readers x rate, teacher actors x rate, workers x rate, free cores / core-seconds of a tile)

Of several teachers each is a stage of its own, and each tile costs what all of them cost.

Where responses are kept, the first epoch asks the teacher and later ones read: two rates, and a run has what both come to.

A stage's rate is that of one actor with so many threads on cores of its own, as `Costs` has them measured. What the stages
hand to each other costs core-seconds as well. planner.py chooses the numbers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

READING, TEACHER, STUDENT, CORES = "reading", "the teacher", "the student", "CPU cores"
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
    taken_cpus: float = 0.0  # of all CPUs: what other processes than the run's keep busy

    def with_gpu(self) -> "Machines":
        """One GPU more."""
        return replace(self, gpus=self.gpus + 1)

    def with_node(self) -> "Machines":
        """One node more, such as the largest is, with its share of the rest."""
        share = self.node_cpus / self.cpus
        more = {name: getattr(self, name) * (1 + share) for name in ("gpus", "memory_bytes", "store_bytes", "taken_cpus")}
        return replace(self, cpus=self.cpus + self.node_cpus, **more)


@dataclass(frozen=True, kw_only=True)
class KeptCosts:
    """What it takes to keep a teacher's responses: core-seconds of a tile.

    Attributes:
        keep_s: To write what it said, once.
        read_s: To read that in every later epoch.
        is_complete: All are there before the run begins, so that it reads in every epoch.
    """

    keep_s: float
    read_s: float
    is_complete: bool = False


@dataclass(frozen=True, kw_only=True)
class TeacherCosts:
    """What one teacher costs: threads → tiles/s of one actor, as `Costs` has them, and memory of its process.

    `kept` is None where it answers in every epoch.
    """

    rates: Mapping[int, float]
    process_bytes: float = 0.0
    kept: KeptCosts | None = None


@dataclass(frozen=True, kw_only=True)
class TeacherShares:
    """What an actor of one teacher reserves; `actors` and `threads` are None where the plan may choose."""

    name: str
    cpus: float
    gpus: float
    actors: int | None = None
    threads: int | None = None


@dataclass(frozen=True, kw_only=True)
class TeacherPlan:
    """What is planned for one teacher."""

    actors: int
    threads: int


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What one tile costs, measured.

    Attributes:
        read_s: Core-seconds to read and decode it.
        teacher, student: Threads → tiles/s of one actor or worker; on a GPU of one that has the GPU to itself.
        travel_s: Core-seconds of all hands that it goes through.
        bytes_per_tile: Of pixels and responses, as they travel.
        teacher_bytes, student_bytes: Memory of one process.
        others: Of the teachers after the first, where there are several.
        kept: Of the first teacher's responses; None: it answers in every epoch.
        epochs: Of the run; of no matter where nothing is kept.
    """

    read_s: float
    teacher: Mapping[int, float]
    student: Mapping[int, float]
    travel_s: float = 0.0
    bytes_per_tile: float
    teacher_bytes: float = 0.0
    student_bytes: float = 0.0
    others: tuple[TeacherCosts, ...] = ()
    kept: KeptCosts | None = None
    epochs: int = 1

    @property
    def teachers(self) -> tuple[TeacherCosts, ...]:
        """All of them."""
        return (TeacherCosts(rates=self.teacher, process_bytes=self.teacher_bytes, kept=self.kept), *self.others)

    def with_kept(self, kept: Sequence[KeptCosts | None], *, epochs: int) -> "Costs":
        """The same, with what is kept of each teacher in a run of so many epochs."""
        first, *others = kept
        of_others = tuple(replace(cost, kept=each) for cost, each in zip(self.others, others, strict=True))
        return replace(self, kept=first, others=of_others, epochs=epochs)


@dataclass(frozen=True, kw_only=True)
class Shares:
    """What each actor or worker reserves, and what is settled: numbers that the plan must not change.

    Attributes:
        readers, actors, teacher_threads, student_threads: None where the plan may choose.
        workers: That train.
        chunk_tiles: Tiles that are read together.
        teacher_name: Of the first teacher, where there are several.
        others: Of the teachers after the first.
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
    teacher_name: str = ""
    others: tuple[TeacherShares, ...] = ()

    @property
    def teachers(self) -> tuple[TeacherShares, ...]:
        """All of them."""
        first = TeacherShares(
            name=self.teacher_name,
            cpus=self.teacher_cpus,
            gpus=self.teacher_gpus,
            actors=self.actors,
            threads=self.teacher_threads,
        )
        return (first, *self.others)

    def with_any_number(self) -> "Shares":
        """The same, with numbers of actors and readers for the plan to choose."""
        return replace(self, actors=None, readers=None, others=tuple(replace(each, actors=None) for each in self.others))


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """A plan and what comes of it. `actors` and `teacher_threads` are the first teacher's.

    Where responses are kept, `bottleneck` and `stages` are of the epochs in which the run spends most of its time.
    """

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
    others: tuple[TeacherPlan, ...] = ()  # of the teachers after the first
    by_epoch: tuple[float, ...] = ()  # tiles/s of the first epoch and of a later one, where they differ

    def over(self, positions: int, bytes_per_tile: float) -> dict[str, float]:
        """Of a run over so many tiles: hours, GB between its processes, and GPU-hours."""
        hours = positions / self.tiles_per_s / 3600
        return {"hours": hours, "gb_moved": positions * bytes_per_tile / 1e9, "gpu_hours": hours * self.gpus}


def forecast(
    machines: Machines,
    costs: Costs,
    shares: Shares,
    *,
    readers: int,
    actors: int,
    teacher_threads: int,
    student_threads: int,
    others: tuple[TeacherPlan, ...] = (),
) -> Forecast:
    """What comes of these numbers."""
    plans = (TeacherPlan(actors=actors, threads=teacher_threads), *others)
    arguments = {"readers": readers, "student_threads": student_threads}
    epochs = [_stages(machines, costs, shares, plans, is_later=is_later, **arguments) for is_later in (False, True)]
    rates = [min(each.values()) for each in epochs]
    spent = [1 / costs.epochs / rates[0], (1 - 1 / costs.epochs) / rates[1]]  # seconds of a visit, on average
    stages = epochs[spent.index(max(spent))]
    bottleneck = min(stages, key=stages.__getitem__)
    num_actors = sum(plan.actors for plan in plans)
    teachers = list(zip(plans, shares.teachers, strict=True))
    return Forecast(
        readers=readers,
        actors=actors,
        teacher_threads=teacher_threads,
        workers=shares.workers,
        student_threads=student_threads,
        cpus=readers * shares.reader_cpus
        + sum(plan.actors * share.cpus for plan, share in teachers)
        + shares.workers * shares.worker_cpus,
        gpus=sum(plan.actors * share.gpus for plan, share in teachers) + shares.workers * shares.worker_gpus,
        tiles_per_s=rates[0] if rates[0] == rates[1] else 1 / sum(spent),
        bottleneck=bottleneck,
        stages=stages,
        stream_bytes=min(
            STORE_SHARE * machines.store_bytes,
            (STREAM_BLOCKS + 2 * len(others) + 2 * (readers + num_actors)) * shares.chunk_tiles * costs.bytes_per_tile,
        ),
        others=others,
        by_epoch=tuple(rates) if costs.epochs > 1 and rates[0] != rates[1] else (),
    )


def _stages(
    machines: Machines,
    costs: Costs,
    shares: Shares,
    plans: Sequence[TeacherPlan],
    *,
    readers: int,
    student_threads: int,
    is_later: bool,
) -> dict[str, float]:
    """What each could do by itself, tiles/s.

    Args:
        is_later: What is kept has been written, in an earlier epoch.
    """
    stages, core_s = {READING: readers / costs.read_s}, costs.read_s + costs.travel_s
    for plan, share, cost in zip(plans, shares.teachers, costs.teachers, strict=True):
        rate, kept = share_of_gpu(share) * rate_with(plan.threads, cost.rates), cost.kept
        if kept and (is_later or kept.is_complete):
            rate = 1 / kept.read_s
            core_s += kept.read_s
        else:
            core_s += 0.0 if share.gpus else 1 / cost.rates[1]
            if kept:
                rate = 1 / (1 / rate + kept.keep_s)
                core_s += kept.keep_s
        stages[f"{TEACHER} {share.name}" if len(plans) > 1 else TEACHER] = plan.actors * rate
    stages[STUDENT] = shares.workers * rate_with(student_threads, costs.student)
    core_s += 0.0 if shares.worker_gpus else 1 / costs.student[1]
    stages[CORES] = (machines.cpus - machines.taken_cpus) / core_s
    return stages


def share_of_gpu(share: TeacherShares) -> float:
    """Of the rate that an actor has with a GPU to itself."""
    return min(1.0, share.gpus) if share.gpus else 1.0


def rate_with(threads: int, rates: Mapping[int, float]) -> float:
    """Of so many threads; where these were not measured, of the next smaller number that was."""
    return rates[max(number for number in rates if number <= threads)]


def as_record(plan: Forecast) -> dict[str, Any]:
    """JSON-ready."""
    return {name: getattr(plan, name) for name in Forecast.__dataclass_fields__ if name != "others"} | (
        {"others": [asdict(each) for each in plan.others]} if plan.others else {}
    )
