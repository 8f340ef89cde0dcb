"""What a run reserves against what the cluster has, or can grow to: refused before anything is started on it."""

import os
from collections.abc import Mapping
from typing import Protocol

import ray

from csat.errors import ConfigError
from workflows.shell.config import PoolConfig, RayConfig, ReaderConfig, WorkerConfig

LEAST_BLOCKS_IN_FLIGHT = 4  # of one slot each: one being read, one queued, one at the teacher, one at a worker


class Stage(Protocol):
    """Actors of one stage of a stream: ReaderConfig, PoolConfig and their like."""

    min_actors: int
    cpus_per_actor: float


def can_have() -> dict[str, float]:
    """What the cluster has, or can grow to, by resource."""
    have, limits = ray.cluster_resources(), _autoscaling_limits()
    return {name: max(0.0, have.get(name, 0.0), limits.get(name, 0.0)) for name in have | limits}


def check_resources(
    *,
    readers: ReaderConfig,
    pools: Mapping[str, PoolConfig],
    workers: WorkerConfig,
    ray_config: RayConfig,
    slot_bytes: int,
) -> None:
    """Arithmetic of what is asked for against what the cluster has (or, autoscaling, can grow to).

    Ray Train reserves its workers' share first and Ray Data takes what is left: with nothing left the run would wait for
    ever without a word.

    Args:
        pools: Setting → the actors of a teacher.
        slot_bytes: Of one slot's tiles and responses on their way.

    Raises:
        ConfigError: with the sums, and what to change.
    """
    growable = _autoscaling_limits()
    _check_sums(workers, pools, readers)
    largest = max((node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]), default=0.0)
    shares = [workers.cpus_per_worker, *(each.cpus_per_actor for each in (readers, *pools.values()))]
    if not growable and max(shares) > largest:
        raise ConfigError(f"one worker or actor asks for more CPUs than the largest node has ({largest:g})")
    num_blocks = LEAST_BLOCKS_IN_FLIGHT + len(pools) - 1
    needed_bytes = num_blocks * slot_bytes
    if ray_config.stream_gb * 1e9 < needed_bytes:
        raise ConfigError(
            f"ray.stream_gb {ray_config.stream_gb:g} is too little to keep the stream moving: {num_blocks} "
            f"blocks of {slot_bytes / 1e6:.0f} MB are on their way at least. Set ray.stream_gb "
            f"{needed_bytes / 1e9 + 0.05:.1f}, or a smaller manifest.chunk_tiles"
        )
    _check_store(ray_config, needed_bytes)


def check_stages(
    stages: Mapping[str, Stage], *, beside: Mapping[str, tuple[int, float]], ray_config: RayConfig, needed_bytes: int
) -> None:
    """Actors of a stream without a training behind it, against what the cluster has or can grow to.

    Args:
        stages: Setting → actors; the least of all of them run at once.
        beside: Setting → how many tasks run beside the stream, and CPUs of each.
        needed_bytes: Of object store, so that the stream moves.

    Raises:
        ConfigError: with the sums, and what to change.
    """
    can, growable = can_have(), _autoscaling_limits()
    largest = max((node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]), default=0.0)
    for resource, flag in (("CPU", "cpus"), ("GPU", "gpus")):
        each = {name: float(getattr(stage, f"{flag}_per_actor", 0.0)) for name, stage in stages.items()}
        parts = {
            f"{stages[name].min_actors} {name} x {amount:g}": stages[name].min_actors * amount for name, amount in each.items()
        }
        if resource == "CPU":
            parts |= {f"{name} {count} x {amount:g}": count * amount for name, (count, amount) in beside.items()}
        total, limit = sum(parts.values()), can.get(resource, 0.0)
        levers = [f"{name}.{flag}_per_actor" for name, amount in each.items() if amount]
        if total > limit + 1e-9:
            sums = " + ".join(name for name, amount in parts.items() if amount)
            raise ConfigError(
                f"the run needs {total:g} {resource}s ({sums}) and the cluster has {limit:g}: lower {' or '.join(levers)}, or "
                "use a larger cluster"
            )
        if resource == "CPU" and not growable and max(each.values()) > largest:
            raise ConfigError(
                f"one actor asks for more CPUs than the largest node has ({largest:g}): lower {' or '.join(levers)}"
            )
    _check_store(ray_config, needed_bytes)


def check_workers(workers: WorkerConfig, *, pool: PoolConfig | None = None, readers: ReaderConfig | None = None) -> None:
    """Workers, and with a teacher its pool and the readers, against what the cluster has or can grow to.

    Raises:
        ConfigError: with the sums, and what to change.
    """
    _check_sums(workers, {"pool": pool} if pool else {}, readers if pool else None)


def check_trials(*, max_concurrent: int, cpus: float, gpus: float, workers: WorkerConfig | None = None) -> None:
    """Trials of a sweep against what the cluster has, or can grow to: one that does not fit would be waited for in silence.

    Args:
        max_concurrent: Trials at once.
        cpus, gpus: Of one trial.
        workers: That a trial starts beside itself; None: it trains in its own process.

    Raises:
        ConfigError: with the sums, and what to change.
    """
    can, growable = can_have(), _autoscaling_limits()
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for resource, flag, own in (("CPU", "cpus", cpus), ("GPU", "gpus", gpus)):
        beside = workers.num_workers * _per(workers, flag) if workers else 0.0
        limit = can.get(resource, 0.0)
        largest = max((node.get(resource, 0.0) for node in nodes), default=0.0)
        one = f"one trial needs {own + beside:g} {resource}s" + (f" ({own:g} + its workers' {beside:g})" if beside else "")
        lower = f"workers.{flag}_per_worker or num_workers" if beside else f"{flag}_per_trial"
        if own + beside > limit + 1e-9:
            raise ConfigError(f"{one} and the cluster has {limit:g}: lower {lower}, or use a larger cluster")
        if not growable and own > largest + 1e-9:
            raise ConfigError(f"{one} and the largest node has {largest:g}: lower {lower}, or use larger nodes")
        if max_concurrent * (own + beside) > limit + 1e-9:
            fitting = int((limit + 1e-9) / (own + beside))
            raise ConfigError(
                f"{one}, {max_concurrent} at once {max_concurrent * (own + beside):g}, and the cluster has {limit:g}: set "
                f"max_concurrent {fitting}, or lower {lower}"
            )


def _check_sums(workers: WorkerConfig, pools: Mapping[str, PoolConfig], readers: ReaderConfig | None) -> None:
    """CPUs and GPUs that a run reserves at least. Raises ConfigError with the sums, and what to change."""
    can = can_have()
    for resource, flag in (("CPU", "cpus"), ("GPU", "gpus")):
        parts = {f"{workers.num_workers} workers x {flag} {_per(workers, flag):g}": workers.num_workers * _per(workers, flag)}
        levers = ["workers.num_workers", f"workers.{flag}_per_worker"]
        for name, pool in pools.items():
            actors = "teacher actors" if len(pools) == 1 else f"actors of {name}"
            parts[f"{pool.min_actors} {actors} x {_per(pool, flag):g}"] = pool.min_actors * _per(pool, flag)
            levers += [f"{name}.min_actors", f"{name}.{flag}_per_actor"]
        if readers is not None and _per(readers, flag):
            parts[f"{readers.min_actors} readers x {_per(readers, flag):g}"] = readers.min_actors * _per(readers, flag)
            levers += ["readers.min_actors", f"readers.{flag}_per_actor"]
        total, limit = sum(parts.values()), can.get(resource, 0.0)
        if total > limit + 1e-9:
            sums = " + ".join(name for name, amount in parts.items() if amount)
            raise ConfigError(
                f"the run needs {total:g} {resource}s ({sums}) and the cluster has {limit:g}: lower "
                f"{', '.join(levers[:-1])} or {levers[-1]}, or use a larger cluster"
            )


def _check_store(ray_config: RayConfig, needed_bytes: int) -> None:
    """What may be on its way, against what has to be and what the object store holds. Raises ConfigError."""
    if ray_config.stream_gb * 1e9 < needed_bytes:
        raise ConfigError(
            f"ray.stream_gb {ray_config.stream_gb:g} is too little to keep the stream moving, which has "
            f"{needed_bytes / 1e6:.0f} MB on its way at least: set ray.stream_gb {needed_bytes / 1e9 + 0.05:.1f}"
        )
    store_bytes = can_have().get("object_store_memory", 0.0)
    if ray_config.stream_gb * 1e9 > store_bytes:
        raise ConfigError(
            f"ray.stream_gb {ray_config.stream_gb:g} is more than the cluster's object store holds "
            f"({store_bytes / 1e9:.2f} GB): lower it, or start Ray with a larger --object-store-memory"
        )


def _per(config: ReaderConfig | PoolConfig | WorkerConfig, flag: str) -> float:
    unit = "worker" if isinstance(config, WorkerConfig) else "actor"
    return float(getattr(config, f"{flag}_per_{unit}", 0.0))


def _autoscaling_limits() -> dict[str, float]:
    """What the cluster can grow to, by resource; {} where it does not autoscale or does not say."""
    raw = os.environ.get("CSAT_CLUSTER_LIMITS", "")  # such as CPU=256,GPU=16; set by the cluster's own configuration
    limits = {}
    for entry in filter(None, raw.split(",")):
        name, _, amount = entry.partition("=")
        try:
            limits[name.strip()] = float(amount)
        except ValueError as error:
            raise ConfigError(f"CSAT_CLUSTER_LIMITS={raw!r}: expected NAME=NUMBER pairs such as CPU=256,GPU=16") from error
    return limits
