"""Finding or starting a Ray cluster, and asking its nodes what they see and can do."""

import logging
import os
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from csat.errors import ConfigError, StorageError
from csat.precision import BEST, BFLOAT16, resolve_precision
from csat.storage import files
from csat.words import last_line
from workflows.shell import interruption, terminal
from workflows.shell.config import RayConfig
from workflows.shell.installation import python_path

logger = logging.getLogger(__name__)

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

    The common folder has a file, `ray_current_cluster`, that names the Ray that was started last on the machine. Whoever asks
    "the Ray of this machine" is led there: another run's `address="auto"`, and Ray Train, which asks a dashboard every second
    whether a run's controller lives. One that does not know the controller says no, and the run's workers lose their places
    (Ray 2.60, train/v2/_internal/execution/controller/placement_group_cleaner.py). Nobody is led into a folder of its own.
    """
    common = os.environ.get("TMPDIR") or "/tmp"
    return os.environ.get("RAY_TMPDIR") or str(Path(common, f"csat-ray-{os.getpid()}"))


def _start(config: RayConfig, kept_gb: float) -> None:
    interruption.has_ray()
    # Tiles on their way are bounded by stream_gb; the store gets room for the copies that workers hold beside it.
    store_bytes = int(max(256e6, (2 * config.stream_gb + kept_gb) * 1e9))
    os.environ.update(own_variables(), RAY_TMPDIR=_own_folder())
    try:
        # The dashboard is ten more processes, which nobody looks at.
        _initialise(address="local", num_cpus=available_cpus(), object_store_memory=store_bytes, include_dashboard=False)
    except RayError:
        raise
    except Exception as error:  # Ray raises plain ones where its processes are not there within half a minute
        raise RayError(
            f"it did not start on this machine ({last_line(error)}). Is the machine too busy, or the disk full of "
            f"{os.environ['RAY_TMPDIR']}? Try again, or name a cluster that runs: ray.address"
        ) from error


def own_variables() -> dict[str, str]:
    """Environment variables of a process that starts a Ray of its own on this machine, without a dashboard.

    Ray's processes inherit them. As a runtime environment an agent would first have to make one of them, and the processes
    that Ray starts ahead would be of no use.
    """
    ours = {
        "RAY_worker_niceness": "0",  # else all have 15 of 19, and readers and teachers could not give way
        # Ray ends a process that has had nothing to do for a second; the next task, such as a slide's files, would start one.
        "RAY_idle_worker_killing_time_threshold_ms": "60000",
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # one more process, and nobody takes this machine away
    }
    return {name: os.environ.get(name, value) for name, value in ours.items()} | _variables()


def has_dashboard() -> bool:
    """Whether this cluster has one: Ray's own state can be asked there, and nowhere else."""
    return bool(ray._private.worker.get_dashboard_url())  # Ray (2.60) has no public way to say so


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
