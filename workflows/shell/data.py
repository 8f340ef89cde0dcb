"""Ray Data as every page uses it: bounded memory, and a split that drops no row."""

from typing import Any

from ray.data import DataContext, ExecutionOptions, ExecutionResources
from ray.train import DataConfig

from workflows.shell.config import RayConfig

TRAIN = "train"  # name of the data set that the workers ask for
CACHED = "cached"  # and of the one that comes after it where there is a response cache


class WholeSplit(DataConfig):
    """Splits the stream so that every row reaches exactly one worker.

    Ray's own split makes equal shares and drops what does not divide; the training loop copes with unequal ones.
    """

    def configure(self, datasets: dict[str, Any], world_size: int, worker_handles, worker_node_ids, **kwargs):
        shards: list[dict[str, Any]] = [{} for _ in range(world_size)]
        for name, dataset in datasets.items():
            dataset.context.execution_options = self._resolve_execution_options(name)
            splits = dataset.streaming_split(world_size, equal=False, locality_hints=worker_node_ids)
            for shard, split in zip(shards, splits, strict=True):
                shard[name] = split
        return shards


def execution_options(settings: RayConfig) -> ExecutionOptions:
    """Bounds on what the stream keeps in the object store."""
    limits = ExecutionResources.for_limits(object_store_memory=settings.stream_gb * 1e9)
    return ExecutionOptions(resource_limits=limits)


def configure_data(settings: RayConfig) -> None:
    """This process's Ray Data settings: bounded memory, no bars of its own, and an error in place of a silent stall."""
    context = DataContext.get_current()
    context.execution_options = execution_options(settings)
    context.enable_progress_bars = False
    context.execution_no_progress_timeout_s = settings.stall_timeout_s
