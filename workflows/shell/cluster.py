"""Finding or starting a Ray cluster, and refusing what it cannot hold before anything is started on it."""

import logging
import os
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Protocol

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from csat.errors import ConfigError, StorageError
from csat.precision import BEST, BFLOAT16, resolve_precision
from csat.storage import files
from workflows.shell import interruption, meters, terminal
from workflows.shell.config import PoolConfig, RayConfig, ReaderConfig, WorkerConfig
from workflows.shell.installation import python_path

logger = logging.getLogger(__name__)

LEAST_BLOCKS_IN_FLIGHT = 4  # of one slot each: one being read, one queued, one at the teacher, one at a worker
NODE_CHECK_TIMEOUT_S = 120.0
LEAST_GPU = 0.01  # of a GPU, to see what it is: without any Ray hides it

_started: Future[None] | None = None  # by `start_meanwhile`, until `connect` has waited for it


def start_meanwhile(config: RayConfig, *, kept_gb: float = 0.0) -> None:
    """Start Ray on this machine by a thread, where `connect` will start it: that takes seconds, and the caller has other work.

    Args:
        kept_gb: As `connect` takes it.
    """
    global _started
    if ray.is_initialized() or _address(config) is not None or _started is not None:
        return
    _started = Future()
    # Its processes die with the thread that started them, by their own wish: it stays.
    threading.Thread(target=_start_and_stay, args=(_started, config, kept_gb), daemon=True, name="ray").start()


def _start_and_stay(started: Future, config: RayConfig, kept_gb: float) -> None:
    try:
        _start(config, kept_gb)
        started.set_result(None)
    except BaseException as error:
        started.set_exception(error)
    threading.Event().wait()


class Stage(Protocol):
    """Actors of one stage of a stream: ReaderConfig, PoolConfig and their like."""

    min_actors: int
    cpus_per_actor: float


def connect(config: RayConfig, *, kept_gb: float = 0.0) -> None:
    """Join the cluster that `config`, or else RAY_ADDRESS, names; start Ray on this machine where neither does.

    Args:
        kept_gb: Object-store memory that a store started here should have for what stays in it, beside the stream.
    """
    global _started
    begun, _started = _started, None
    try:
        if begun is not None:
            begun.result()
        elif ray.is_initialized():
            return
        elif (address := _address(config)) is not None:
            _join(address)
        else:
            _start(config, kept_gb)
    except BaseException:
        terminal.show_what_no_file_has()
        raise


def _address(config: RayConfig) -> str | None:
    """Of the cluster to join; None: Ray is started here."""
    address = config.address or os.environ.get("RAY_ADDRESS")
    return None if not address or address == "local" else address


def _join(address: str) -> None:
    interruption.has_ray()
    try:
        _initialise(address=address, runtime_env={"env_vars": _variables() | _named(address)})
    except ConnectionError as error:
        raise ConfigError(
            f"no Ray cluster answers at {address!r}: start one with `ray start --head`, or leave out ray.address to use "
            f"this machine ({error})"
        ) from error


def _named(address: str) -> dict[str, str]:
    """The variable by which Ray's processes know which Ray is theirs: see `_own_folder`. "auto" names none."""
    return {"RAY_ADDRESS": address} if ":" in address and "://" not in address else {}


def _own_folder() -> str:
    """Where the Ray that is started here keeps its session; `RAY_TMPDIR` and `TMPDIR` say another place than /tmp.

    Ray Train asks every few seconds whether a run's controller lives. It asks the Ray that is named in `ray_current_cluster`,
    in the common folder the one that was started last on the machine. Where that was another one, and it has a dashboard, it
    does not know the controller: the run's workers lose their places and start again, or never do (Ray 2.60,
    train/v2/_internal/execution/controller/placement_group_cleaner.py). In a folder of its own nobody else is named.
    """
    common = os.environ.get("TMPDIR") or "/tmp"
    return os.environ.get("RAY_TMPDIR") or str(Path(common, f"csat-ray-{os.getpid()}"))


def _start(config: RayConfig, kept_gb: float) -> None:
    interruption.has_ray()
    # Tiles on their way are bounded by stream_gb; the store gets room for the copies that workers hold beside it.
    store_bytes = int(max(256e6, (2 * config.stream_gb + kept_gb) * 1e9))
    # Its processes inherit the variables from this one. An agent would first have to make a runtime environment of them, and
    # the processes that Ray starts ahead would be of no use. The dashboard is ten more processes, which nobody looks at.
    os.environ.update(_variables(), RAY_TMPDIR=_own_folder())
    os.environ.setdefault("RAY_worker_niceness", "0")  # else all have 15 of 19, and readers and teachers could not give way
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # one more process, and nobody takes this machine away
    _initialise(address="local", num_cpus=available_cpus(), object_store_memory=store_bytes, include_dashboard=False)
    meters.nothing_spilled_yet()


def _initialise(**arguments: Any) -> None:
    context = ray.init(log_to_driver=True, logging_level=logging.WARNING, **arguments)
    if log := terminal.put_aside(Path(context.address_info["session_dir"], "logs")):
        logger.info("what Ray says by itself goes to %s", log)


def _variables() -> dict[str, str]:
    """Environment variables that Ray's processes have, and this one, too."""
    # Ray Data tells of every pipeline that starts and ends; ours has one, and its progress is shown.
    variables = {"RAY_DATA_LOG_LEVEL": os.environ.setdefault("RAY_DATA_LOG_LEVEL", "WARNING")}
    logging.getLogger("ray.data").setLevel(os.environ["RAY_DATA_LOG_LEVEL"])
    # How long Ray Train may not see that its workers have begun, or ended: 2 s, unless it is told otherwise.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    return variables | ({"PYTHONPATH": path} if (path := python_path()) else {})


def available_cpus() -> int:
    """CPUs that this process may use: the scheduler's and the container's word, not the machine's."""
    limits = [len(os.sched_getaffinity(0))]
    if slurm := os.environ.get("SLURM_CPUS_PER_TASK"):
        limits.append(int(slurm))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            limits.append(max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        pass  # not Linux with cgroups v2
    return min(limits)


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


def _check_store(ray_config: RayConfig, needed_bytes: int) -> None:
    """What may be on its way, against what has to be and what the object store holds. Raises ConfigError."""
    have, growable = _have(), _autoscaling_limits()
    if ray_config.stream_gb * 1e9 < needed_bytes:
        raise ConfigError(
            f"ray.stream_gb {ray_config.stream_gb:g} is too little to keep the stream moving, which has "
            f"{needed_bytes / 1e6:.0f} MB on its way at least: set ray.stream_gb {needed_bytes / 1e9 + 0.05:.1f}"
        )
    store_bytes = max(have.get("object_store_memory", 0.0), growable.get("object_store_memory", 0.0))
    if ray_config.stream_gb * 1e9 > store_bytes:
        raise ConfigError(
            f"ray.stream_gb {ray_config.stream_gb:g} is more than the cluster's object store holds "
            f"({store_bytes / 1e9:.2f} GB): lower it, or start Ray with a larger --object-store-memory"
        )


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
    have, growable = _have(), _autoscaling_limits()
    largest = max((node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]), default=0.0)
    for resource, flag in (("CPU", "cpus"), ("GPU", "gpus")):
        each = {name: float(getattr(stage, f"{flag}_per_actor", 0.0)) for name, stage in stages.items()}
        parts = {
            f"{stages[name].min_actors} {name} x {amount:g}": stages[name].min_actors * amount for name, amount in each.items()
        }
        if resource == "CPU":
            parts |= {f"{name} {count} x {amount:g}": count * amount for name, (count, amount) in beside.items()}
        total, limit = sum(parts.values()), max(have.get(resource, 0.0), growable.get(resource, 0.0))
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


def _check_sums(workers: WorkerConfig, pools: Mapping[str, PoolConfig], readers: ReaderConfig | None) -> None:
    """CPUs and GPUs that a run reserves at least. Raises ConfigError with the sums, and what to change."""
    have, growable = _have(), _autoscaling_limits()
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
        total, limit = sum(parts.values()), max(have.get(resource, 0.0), growable.get(resource, 0.0))
        if total > limit + 1e-9:
            sums = " + ".join(name for name, amount in parts.items() if amount)
            raise ConfigError(
                f"the run needs {total:g} {resource}s ({sums}) and the cluster has {limit:g}: lower "
                f"{', '.join(levers[:-1])} or {levers[-1]}, or use a larger cluster"
            )


def _have() -> dict[str, float]:
    return {name: max(value, 0.0) for name, value in ray.cluster_resources().items()}


def check_trials(*, max_concurrent: int, cpus: float, gpus: float, workers: WorkerConfig | None = None) -> None:
    """Trials of a sweep against what the cluster has, or can grow to: one that does not fit would be waited for in silence.

    Args:
        max_concurrent: Trials at once.
        cpus, gpus: Of one trial.
        workers: That a trial starts beside itself; None: it trains in its own process.

    Raises:
        ConfigError: with the sums, and what to change.
    """
    have, growable = ray.cluster_resources(), _autoscaling_limits()
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for resource, flag, own in (("CPU", "cpus", cpus), ("GPU", "gpus", gpus)):
        beside = workers.num_workers * _per(workers, flag) if workers else 0.0
        limit = max(have.get(resource, 0.0), growable.get(resource, 0.0))
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


def check_run_folder_is_shared(run_folder: str) -> None:
    """Every node must see the run folder, because rank 0 and the driver may be on different ones.

    Raises:
        StorageError: names the nodes that do not see it.
    """
    check_is_shared("run folder", run_folder, file="config.yaml")


def check_is_shared(what: str, folder: str, *, file: str) -> None:
    """Every node must see this file in the folder.

    Args:
        what: For the message.

    Raises:
        StorageError: names the nodes that do not see it.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) < 2:
        return
    marker = files.join(folder, file)
    sees = _ask_each({node["NodeID"]: node["NodeManagerAddress"] for node in nodes}, _exists, marker)
    blind = [address for address, is_there in sees.items() if not is_there]
    if blind:
        raise StorageError(f"node {', '.join(blind)} cannot see the {what} {folder}: use an s3:// URI or a shared file system")


def without_bfloat16(device: str) -> list[str]:
    """Nodes where `precision: best` is float32, of those that have such a device; [] where it is bfloat16 on all of them.

    Args:
        device: "cpu" or "cuda".
    """
    nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    if device == "cuda":
        having = {node["NodeID"] for node in ray.nodes() if node["Resources"].get("GPU")}
        nodes = {name: address for name, address in nodes.items() if name in having}
    if device == "cpu" and list(nodes) == [ray.get_runtime_context().get_node_id()]:
        return [] if resolve_precision(BEST, device) == BFLOAT16 else list(nodes.values())  # no process has to be started
    best = _ask_each(nodes, _best_precision, device, num_gpus=LEAST_GPU if device == "cuda" else None)
    return [address for address, precision in best.items() if precision != BFLOAT16]


def _ask_each(nodes: Mapping[str, str], task: Any, *arguments: Any, **options: Any) -> dict[str, Any]:
    """Address → what the task answers there. A node that dies meanwhile, or has died and is still listed, has no say.

    Args:
        nodes: Id → address.
    """
    asked = {
        address: task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(name, soft=False), **options).remote(
            *arguments
        )
        for name, address in nodes.items()
    }
    answers = {}
    for address, answer in asked.items():
        try:
            answers[address] = ray.get(answer, timeout=NODE_CHECK_TIMEOUT_S)
        except (GetTimeoutError, RayTaskError):
            raise
        except RayError as error:
            logger.warning("node %s does not answer and is left out: %s", address, type(error).__name__)
    return answers


@ray.remote(num_cpus=0)
def _best_precision(device: str) -> str:
    return resolve_precision(BEST, device)


@ray.remote(num_cpus=0)
def _exists(uri: str) -> bool:
    return files.exists(uri)


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
