"""Ray Data as every page uses it: bounded memory, a split that keeps no row to itself, no spinning, no idle actors."""

import importlib
import logging
import math
import time
from typing import Any

from ray.data import DataContext, ExecutionOptions, ExecutionResources
from ray.data._internal.execution.operators.output_splitter import OutputSplitter
from ray.train import DataConfig

from workflows.shell.config import RayConfig

logger = logging.getLogger(__name__)

TRAIN = "train"  # name of the data set that the workers ask for
CACHED = "cached"  # and of the one that comes after it where there is a response cache

# Modules of Ray, and what each of them starts an actor by, or finds it where it is there.
HELPERS = {
    "ray.data._internal.cluster_autoscaler": "get_or_create_autoscaling_coordinator",
    "ray.data._internal.execution.node_trackers.actor_location": "get_or_create_actor_location_tracker",
    "ray.data._internal.stats": "get_or_create_stats_actor",
}
LEAST_STEP_S = 0.01  # of the loop that starts a stream's tasks
WAITING_OVER_S = 5.0  # the last seconds in which a consumer is watched
MOSTLY = 0.5  # of that time


class Pause:
    """Keeps a stream's scheduling loop from spinning; one of Ray Data's execution callbacks.

    Where the trainer is slower than its stream, the stream is full nearly all the time: tasks have rows ready that nobody may
    take yet. Ray Data (2.60) waits for whatever is ready, which is at once, and so goes round its loop without end: 0.6 to 0.8
    of a core, for nothing (`process_completed_tasks` in ray/data/_internal/execution/streaming_executor_state.py).
    """

    def __init__(self):
        self._last = time.monotonic()

    def before_execution_starts(self, executor: Any) -> None: ...

    def on_execution_step(self, executor: Any) -> None:
        """After each round: the rest of `LEAST_STEP_S` is slept."""
        time.sleep(max(0.0, LEAST_STEP_S - (time.monotonic() - self._last)))
        self._last = time.monotonic()

    def after_execution_succeeds(self, executor: Any) -> None: ...

    def after_execution_fails(self, executor: Any, error: Exception) -> None: ...


class Demand:
    """No more actors on CPUs than whoever takes the rows has use for; one of Ray Data's execution callbacks.

    Ray Data starts actors while there is work and room for them, and does not look whether its rows are taken. Two cores have
    room for two teachers beside a trainer that one of them keeps busy: the second takes seven core-seconds to load and a
    gigabyte, and then both share what is left. So a pool grows only while its consumer is mostly found waiting, from the first
    rows on. Actors on GPUs take nothing from the trainer; pools with some grow as Ray Data decides.
    """

    def __init__(self):
        self._waiting_share, self._last = 0.0, time.monotonic()

    def before_execution_starts(self, executor: Any) -> None:
        autoscaler = executor._actor_autoscaler  # Ray Data (2.60) has no public way to say when
        self._threshold = autoscaler._actor_pool_scaling_up_threshold
        pools = [pool for op in executor._topology for pool in op.get_autoscaling_actor_pools()]
        self._is_asked = not any(pool.per_actor_resource_usage().gpu for pool in pools)

    def on_execution_step(self, executor: Any) -> None:
        """After each round: look whether somebody waits."""
        if not self._is_asked:
            return
        now, (output, state) = time.monotonic(), executor._output_node
        passed_s, self._last = now - self._last, now
        if output.metrics.num_outputs_taken:
            weight = min(1.0, passed_s / WAITING_OVER_S)
            self._waiting_share += weight * ((state.num_waiting_consumers > 0) - self._waiting_share)
        may_grow = self._waiting_share >= MOSTLY
        executor._actor_autoscaler._actor_pool_scaling_up_threshold = self._threshold if may_grow else math.inf

    def after_execution_succeeds(self, executor: Any) -> None: ...

    def after_execution_fails(self, executor: Any, error: Exception) -> None: ...


class Release:
    """Gives workers that wait what there is; one of Ray Data's execution callbacks.

    Of a stream that is split, Ray Data (2.60) holds up to two blocks for each worker back, until it is the turn of one on
    whose node they are. It does so while workers wait, too, and counts them as output that nobody takes: a stream with little
    memory then started nothing for a minute and longer. Whoever is ahead of its workers still chooses by node.
    """

    def before_execution_starts(self, executor: Any) -> None: ...

    def on_execution_step(self, executor: Any) -> None:
        """After each round: nothing is held back from somebody who waits."""
        output, state = executor._output_node  # Ray Data (2.60) has no public way
        if isinstance(output, OutputSplitter) and state.num_waiting_consumers > 0:
            output._try_dispatch_bundles(force=True)

    def after_execution_succeeds(self, executor: Any) -> None: ...

    def after_execution_fails(self, executor: Any, error: Exception) -> None: ...


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


def start_helpers() -> None:
    """Start the actors that Ray Data and Ray Train keep one of in a cluster, without waiting for them.

    Whoever first needs one starts it otherwise, and waits for the process: a second each, one after the other, on the way to a
    run's first step. Ray (2.60) has no public way to ask for them; where a version has none of that name, they come as before.
    """
    for module, create in HELPERS.items():
        try:
            getattr(importlib.import_module(module), create)()
        except (ImportError, AttributeError):
            logger.debug("%s.%s is not there: it starts when it is needed", module, create)


def configure_data(settings: RayConfig) -> None:
    """This process's Ray Data settings: bounded memory, no bars, no spinning, no idle actors, no rows held back, no stall.

    Ray's warning of actors that reserve no memory is off: it names an argument that no setting of ours has.
    """
    context = DataContext.get_current()
    context.execution_options = execution_options(settings)
    context.enable_progress_bars = False
    context.custom_execution_callback_classes = [Pause, Demand, Release]
    context.execution_no_progress_timeout_s = settings.stall_timeout_s
    context.issue_detectors_config.high_memory_detector_config.detection_time_interval_s = -1  # never
