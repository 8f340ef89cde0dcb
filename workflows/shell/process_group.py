"""The process group of the workers of a training, made by a controller that never loads torch.

`ray.train.torch.TorchConfig` does the same, but its module imports torch, and Ray Train's controller with it: 2.4 s on the way
to the first step, for a process that only asks workers. Here the workers alone load it.
"""

import logging
from datetime import timedelta
from typing import Any

import ray
from ray.exceptions import GetTimeoutError
from ray.train.backend import Backend, BackendConfig

logger = logging.getLogger(__name__)

TIMEOUT_S = 1800  # of one operation of the group, as Ray Train's own
LEAVE_S = 30  # for workers to leave the group


class ProcessGroupConfig(BackendConfig):
    """For `TorchTrainer(torch_config=...)`.

    Args:
        backend: Of torch.distributed; None: the trainer puts "nccl" where workers have GPUs, else "gloo".
    """

    def __init__(self, backend: str | None = None):
        self.backend = backend

    @property
    def backend_cls(self) -> type[Backend]:
        return _ProcessGroup

    @property
    def train_func_context(self) -> type["_OnOwnDevice"]:
        return _OnOwnDevice

    def to_dict(self) -> dict[str, Any]:
        return {"backend": self.backend}


class _ProcessGroup(Backend):
    """What Ray Train's controller calls when a group of workers starts and ends."""

    share_cuda_visible_devices = True  # nccl between GPUs of a node needs to see them all

    def on_start(self, worker_group: Any, backend_config: ProcessGroupConfig) -> None:
        """All workers join one process group, whose store is on rank 0's node."""
        url, world_size = worker_group.execute_single(0, _free_address), len(worker_group)
        joined = [
            worker_group.execute_single_async(rank, _join, backend_config.backend, url, rank, world_size)
            for rank in range(world_size)
        ]
        ray.get(joined)

    def on_shutdown(self, worker_group: Any, backend_config: ProcessGroupConfig) -> None:
        """They leave it; one that does not is left alone: its process ends with the group."""
        try:
            ray.get(worker_group.execute_async(_leave), timeout=LEAVE_S)
        except GetTimeoutError:
            logger.warning("workers did not leave their process group within %s s", LEAVE_S)


class _OnOwnDevice:
    """Around all that a worker does: its GPU, where it has one, is torch's current device."""

    def __enter__(self) -> None:
        import torch

        if torch.cuda.is_available() and (device := ray.train.torch.get_device()).type == "cuda":
            torch.cuda.set_device(device)

    def __exit__(self, *_: object) -> None: ...


def _free_address() -> str:
    from ray.train._internal.utils import get_address_and_port  # Ray (2.60) has no public way to say where a worker is reached

    host, port = get_address_and_port()
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


def _join(backend: str, url: str, rank: int, world_size: int) -> None:
    import torch.distributed as dist

    timeout = timedelta(seconds=TIMEOUT_S)
    dist.init_process_group(backend, init_method=url, rank=rank, world_size=world_size, timeout=timeout)


def _leave() -> None:
    import torch
    import torch.distributed as dist

    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.destroy_process_group()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
