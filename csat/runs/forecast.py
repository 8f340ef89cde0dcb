"""What a run will do on a cluster, from what one tile costs: plain arithmetic, rates in, a plan out.

Reading, teacher and student work at the same time, so the slowest stage sets the pace, or the cores that all of them share:

    tiles/s = min(readers x rate, teacher actors x rate, workers x rate, cores / core-seconds of a tile)

Of several teachers each is a stage of its own, and each tile costs what all of them cost.

Where responses are kept, the first epoch asks the teacher and later ones read: two rates, and a run has what both come to.

A stage's rate is that of one actor with so many threads on cores of its own, as `Costs` has them measured. What the stages
hand to each other costs core-seconds as well. Of all plans that the cluster can hold, `make_plan` takes the fastest, and of
equally fast ones the smallest: so a larger cluster is never slower.

Processes of one thread may be more than there are cores, they take turns. Several threads of one process wait for each other
at every layer: where there are more threads than cores, all of them wait (a teacher with two threads on two busy cores was ten
times slower than with one). So plans with several threads have a core for each.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
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
        rate, kept = _share_of_gpu(share) * rate_with(plan.threads, cost.rates), cost.kept
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
    stages[CORES] = machines.cpus / core_s
    return stages


def _share_of_gpu(share: TeacherShares) -> float:
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


def _candidates(machines: Machines, costs: Costs, shares: Shares) -> Iterator[Forecast]:
    """All plans that fit: as many readers and actors as there is room for, each with any number of threads that a node has."""
    free_cpus = machines.cpus - shares.workers * shares.worker_cpus
    free_gpus = machines.gpus - shares.workers * shares.worker_gpus
    if min(free_cpus, free_gpus) < -1e-9:
        return
    pairs = list(zip(shares.teachers, costs.teachers, strict=True))
    choices = [_threads(share.threads, cost.rates, machines, share.gpus) for share, cost in pairs]
    for teacher_threads in product(*choices):
        for student_threads in _threads(shares.student_threads, costs.student, machines, shares.worker_gpus):
            for actors in _actor_counts(pairs, teacher_threads, free_cpus, free_gpus):
                plans = tuple(TeacherPlan(actors=n, threads=k) for n, k in zip(actors, teacher_threads, strict=True))
                needed = sum(n * cost.process_bytes for n, (_, cost) in zip(actors, pairs, strict=True))
                if needed + shares.workers * costs.student_bytes > machines.memory_bytes:
                    continue
                if not _has_cores(machines, shares, plans, student_threads):
                    continue
                chosen = {"actors": plans[0].actors, "teacher_threads": plans[0].threads, "others": plans[1:]}
                chosen["student_threads"] = student_threads
                left = free_cpus - sum(n * share.cpus for n, (share, _) in zip(actors, pairs, strict=True))
                without = forecast(machines, costs, shares, readers=MAX_ACTORS, **chosen)
                wanted = max(1, _enough(without.tiles_per_s * costs.read_s))
                for readers in _numbers(shares.readers, left, shares.reader_cpus):
                    if shares.readers is None and readers not in (1, wanted, _most(left, shares.reader_cpus)):
                        continue
                    yield forecast(machines, costs, shares, readers=readers, **chosen)


def _actor_counts(
    pairs: Sequence[tuple[TeacherShares, TeacherCosts]], threads: Sequence[int], free_cpus: float, free_gpus: float
) -> Iterator[tuple[int, ...]]:
    """Numbers of actors that there is room for, of each teacher: of one any, of several those that keep pace with each other.

    Whatever rate the actors of one teacher come to, the others have just enough for it.
    """
    rates = [_share_of_gpu(share) * rate_with(k, cost.rates) for k, (share, cost) in zip(threads, pairs, strict=True)]
    choices = [list(_numbers(share.actors, free_cpus, share.cpus, free_gpus, share.gpus)) for share, _ in pairs]
    seen = set()
    for wanted in sorted({n * rate for rate, numbers in zip(rates, choices, strict=True) for n in numbers}):
        counts = tuple(
            max(1, _enough(wanted / rate)) if share.actors is None else share.actors
            for rate, (share, _) in zip(rates, pairs, strict=True)
        )
        cpus, gpus = (sum(n * getattr(s, what) for n, (s, _) in zip(counts, pairs, strict=True)) for what in ("cpus", "gpus"))
        if counts not in seen and cpus <= free_cpus + 1e-9 and gpus <= free_gpus + 1e-9 and max(counts) <= MAX_ACTORS:
            seen.add(counts)
            yield counts


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


def _has_cores(machines: Machines, shares: Shares, plans: Sequence[TeacherPlan], student_threads: int) -> bool:
    """Whether each thread has a core, or no process has several that the plan chose."""
    pairs = list(zip(plans, shares.teachers, strict=True))
    is_chosen = student_threads > 1 and shares.student_threads is None
    is_chosen = is_chosen or any(plan.threads > 1 and share.threads is None for plan, share in pairs)
    threads = sum(0 if share.gpus else plan.actors * plan.threads for plan, share in pairs)
    threads += 0 if shares.worker_gpus else shares.workers * student_threads
    return not is_chosen or threads <= machines.cpus


def _size(plan: Forecast) -> tuple[float, ...]:
    """Smaller plans first."""
    actors = plan.actors + sum(each.actors for each in plan.others)
    threads = plan.teacher_threads + plan.student_threads + sum(each.threads for each in plan.others)
    return (plan.gpus, actors, threads, plan.cpus)


def _does_not_fit(machines: Machines, costs: Costs, shares: Shares) -> str:
    readers = shares.readers or 1
    counts = [share.actors or 1 for share in shares.teachers]
    pairs = list(zip(counts, shares.teachers, costs.teachers, strict=True))
    actors = sum(counts)
    cpus = shares.workers * shares.worker_cpus + sum(n * share.cpus for n, share, _ in pairs) + readers * shares.reader_cpus
    gpus = shares.workers * shares.worker_gpus + sum(n * share.gpus for n, share, _ in pairs)
    needed = sum(n * cost.process_bytes for n, _, cost in pairs) + shares.workers * costs.student_bytes
    return (
        f"the cluster cannot hold this run: {shares.workers} workers, {actors} teacher actors and {readers} readers take "
        f"{cpus:g} CPUs, {gpus:g} GPUs and {needed / 1e9:.1f} GB of memory at least, and it has {machines.cpus:g}, "
        f"{machines.gpus:g} and {machines.memory_bytes / 1e9:.1f}: lower workers.num_workers, workers.cpus_per_worker, "
        "pool.min_actors or pool.cpus_per_actor, or use a larger cluster"
    )
