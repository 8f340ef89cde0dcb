"""Which numbers of actors and threads a run should have on a cluster: of all plans that it can hold the fastest.

Of equally fast ones it is the smallest: so a larger cluster is never slower. forecast.py says what comes of each.

Processes of one thread may be more than there are cores, they take turns. Several threads of one process wait for each other
at every layer: where there are more threads than cores, all of them wait (a teacher with two threads on two busy cores was ten
times slower than with one). So plans with several threads have a core for each.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product

from csat.errors import ConfigError
from csat.runs.forecast import (
    Costs,
    Forecast,
    Machines,
    Shares,
    TeacherCosts,
    TeacherPlan,
    TeacherShares,
    forecast,
    rate_with,
    share_of_gpu,
)

SAME = 1.01  # a plan that is faster by less is not worth more actors
MAX_ACTORS = 512  # of one stage that a plan considers
# What all readers could read, over what is needed. One that has just enough to do is idle for a third of the time, between one
# chunk and the next, while teachers wait for it (docs/performance.md).
READING_OVER_NEED = 1.5


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


def _candidates(machines: Machines, costs: Costs, shares: Shares) -> Iterator[Forecast]:
    """All plans that fit: as many actors as there is room for, each with any number of threads that a node has.

    Readers are as many as these want, or as there is room left for.
    """
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
                wanted = max(1, _enough(READING_OVER_NEED * without.tiles_per_s * costs.read_s))
                most = _most(left, shares.reader_cpus)
                readers = min(wanted, most) if shares.readers is None else shares.readers
                if 1 <= readers <= most:
                    yield forecast(machines, costs, shares, readers=readers, **chosen)


def _actor_counts(
    pairs: Sequence[tuple[TeacherShares, TeacherCosts]], threads: Sequence[int], free_cpus: float, free_gpus: float
) -> Iterator[tuple[int, ...]]:
    """Numbers of actors that there is room for, of each teacher: of one any, of several those that keep pace with each other.

    Whatever rate the actors of one teacher come to, the others have just enough for it.
    """
    rates = [share_of_gpu(share) * rate_with(k, cost.rates) for k, (share, cost) in zip(threads, pairs, strict=True)]
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
