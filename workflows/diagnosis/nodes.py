"""What each node of a cluster says of itself: versions, disk, memory, GPU."""

import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeVar

import psutil
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from csat.storage import files
from workflows.shell.cluster import LEAST_GPU
from workflows.shell.installation import fingerprint

T = TypeVar("T")
PACKAGES = ("ray", "torch", "timm", "numpy", "pyarrow")
TIMEOUT_S = 120.0
GPU_EDGE = 1024  # of the product that a GPU is asked for


@dataclass(frozen=True, kw_only=True)
class Node:
    """One node, as a process on it sees it."""

    address: str
    versions: dict[str, str]
    memory_bytes: int  # available
    disk_bytes: dict[str, int]  # folder → free where it is, or will be
    has_files: dict[str, bool]  # local path → whether it is there
    gpu: str | None = None  # what one was found to be; None: not asked
    gpu_error: str | None = None


def ask_nodes(*, folders: list[str], paths: list[str], with_gpus: bool) -> list[Node]:
    """Every node that is alive.

    Raises:
        GetTimeoutError: of Ray; one of them has no room for a process.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    asked = []
    for node in nodes:
        has_gpu = with_gpus and node["Resources"].get("GPU", 0) > 0
        here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        task = _look.options(scheduling_strategy=here, num_gpus=LEAST_GPU if has_gpu else None)
        asked.append(task.remote(node["NodeManagerAddress"], folders, paths, has_gpu))
    return ray.get(asked, timeout=TIMEOUT_S)


def differences(nodes: list[Node]) -> list[str]:
    """What is not the same on all nodes, one sentence for each package."""
    told = []
    for name in nodes[0].versions:
        by_version: dict[str, list[str]] = {}
        for node in nodes:
            by_version.setdefault(node.versions[name], []).append(node.address)
        if len(by_version) > 1:
            where = ", ".join(f"{found} on {' '.join(addresses)}" for found, addresses in by_version.items())
            told.append(f"{name}: {where}")
    return told


def versions() -> dict[str, str]:
    """Of this process."""
    found = {"python": platform.python_version(), "this project": fingerprint()[:12]}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "none"
    return found


@ray.remote(num_cpus=0)
def _look(address: str, folders: list[str], paths: list[str], has_gpu: bool) -> Node:
    gpu, error = _try(_use_gpu) if has_gpu else (None, None)
    return Node(
        address=address,
        versions=versions(),
        memory_bytes=psutil.virtual_memory().available,
        disk_bytes={folder: free_bytes(folder) for folder in folders},
        has_files={path: Path(path).exists() for path in paths},
        gpu=gpu,
        gpu_error=error,
    )


def free_bytes(folder: str) -> int:
    """Where that folder is, or will be, on this node."""
    path = Path(files.local_path(folder)).expanduser()
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free


def _use_gpu() -> str:
    import torch

    ones = torch.ones(GPU_EDGE, GPU_EDGE, device="cuda")
    found = float((ones @ ones)[0, 0])
    if found != GPU_EDGE:
        raise RuntimeError(f"a product of ones gave {found:g}, not {GPU_EDGE}")
    free, _ = torch.cuda.mem_get_info()
    return f"{torch.cuda.get_device_name()}, {free / 1e9:.0f} GB free"


def _try(run: Callable[[], T]) -> tuple[T | None, str | None]:
    try:
        return run(), None
    except Exception as error:  # torch raises what it likes
        return None, f"{type(error).__name__}: {str(error).splitlines()[0]}"
