"""Ray Data's settings, as Ray Data keeps them."""

import os
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import ray.data

from workflows.shell.config import RayConfig, WorkerConfig
from workflows.shell.data import HELPERS, LEAST_STEP_S, Pause, configure_data, start_helpers

BLOCKS, BLOCK_BYTES, STREAM_GB = 8, 2**21, 0.008  # the stream holds a few of the blocks that its tasks have ready
LARGE_BYTES = 2**28


def blocks(rows):
    for _ in rows["id"].tolist():
        yield {"tile": np.zeros((1, BLOCK_BYTES), np.uint8)}


def test_a_round_takes_its_time():
    pause, begun = Pause(), time.monotonic()
    for _ in range(5):
        pause.on_execution_step(None)
    assert time.monotonic() - begun >= 5 * 0.99 * LEAST_STEP_S


@pytest.mark.ray
def test_helpers_are_those_that_ray_finds_later(ray_cluster, caplog):
    """Where Ray renames one, runs only start later: this test is what tells."""
    caplog.set_level("DEBUG", logger="workflows.shell.data")
    start_helpers()
    start_helpers()  # they are there
    names = [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)]
    assert "is not there" not in caplog.text and {"AutoscalingCoordinator", "ActorLocationTracker"} <= set(names)
    assert len(names) == len(set(names)) >= len(HELPERS)


@pytest.mark.ray
def test_a_stream_that_is_full_does_not_spin(ray_cluster, monkeypatch):
    """However slow its consumer is, its loop takes a step at a time, and each of them its time."""
    rounds, step = [], Pause.on_execution_step
    monkeypatch.setattr(Pause, "on_execution_step", lambda pause, executor: rounds.append(step(pause, executor)))
    configure_data(RayConfig(stream_gb=STREAM_GB))
    stream = ray.data.range(BLOCKS, override_num_blocks=2).map_batches(blocks, batch_size=None, num_cpus=0.25)
    stream.context.target_max_block_size = BLOCK_BYTES
    begun, taken = time.monotonic(), 0
    for _ in stream.iter_batches(batch_size=None, prefetch_batches=0):
        taken += 1
        time.sleep(0.15)
    assert taken == BLOCKS
    assert 0 < len(rounds) <= (time.monotonic() - begun) / LEAST_STEP_S + 1


class Large:
    """A stage with more memory than Ray thinks right for its share of a core."""

    def __init__(self):
        self.held = np.ones(LARGE_BYTES, np.uint8)

    def __call__(self, rows):
        time.sleep(0.2)
        return rows


@pytest.mark.ray
def test_an_actor_that_takes_memory_is_no_reason_to_warn(ray_cluster, monkeypatch):
    """No setting of ours is the argument that Ray's warning names."""
    told = []
    monkeypatch.setattr("ray.data._internal.issue_detection.issue_detector_manager.logger.warning", told.append)
    context = ray.data.DataContext.get_current()
    context.issue_detectors_config.high_memory_detector_config.detection_time_interval_s = 0.05
    configure_data(RayConfig())
    pool = ray.data.ActorPoolStrategy(size=1)
    ray.data.range(20, override_num_blocks=20).map_batches(Large, num_cpus=0.01, compute=pool).materialize()
    assert told == []


class Slow:
    """A stage that takes its time for each row."""

    def __init__(self, seconds):
        self.seconds = seconds

    def __call__(self, rows):
        for row in rows["id"].tolist():
            time.sleep(self.seconds)
            yield {"row": [row], "process": [os.getpid()], "at": [time.time()]}


def processes_of(num_rows, *, stage_s, consumer_s):
    """How many of at most two actors answered."""
    configure_data(RayConfig())
    pool = ray.data.ActorPoolStrategy(min_size=1, max_size=2)
    stream = ray.data.range(num_rows, override_num_blocks=num_rows).map_batches(
        Slow, fn_constructor_args=(stage_s,), batch_size=None, num_cpus=0.1, compute=pool
    )
    rows, processes = [], set()
    for batch in stream.iter_batches(batch_size=None, prefetch_batches=0):
        rows += batch["row"].tolist()
        processes |= set(batch["process"].tolist())
        time.sleep(consumer_s)
    assert sorted(rows) == list(range(num_rows))
    return len(processes)


@pytest.mark.ray
def test_a_pool_grows_for_a_consumer_that_waits(ray_cluster):
    assert processes_of(60, stage_s=0.2, consumer_s=0) == 2


@pytest.mark.ray
def test_a_pool_does_not_grow_for_a_consumer_that_is_busy(ray_cluster):
    assert processes_of(25, stage_s=0.01, consumer_s=0.2) == 1


@pytest.mark.ray
def test_a_worker_begins_with_the_first_rows_that_are_there(ray_cluster):
    """It does not wait for those that come after them: with a slow teacher, each batch takes seconds."""
    stage_s = 1.0
    stream = ray.data.range(5, override_num_blocks=1).map_batches(
        Slow, fn_constructor_args=(stage_s,), batch_size=1, concurrency=1
    )
    stream.context.target_max_block_size = 1
    batches = stream.iter_batches(batch_size=1, prefetch_batches=WorkerConfig().prefetch_batches)
    first = next(iter(batches))
    assert time.time() - first["at"].item() < stage_s


@pytest.mark.ray
def test_a_worker_that_waits_gets_what_there_is(ray_cluster):
    """Also where nothing is on the worker's own node, for which Ray Data would hold blocks back."""
    configure_data(RayConfig())
    stage_s = 1.0
    stream = ray.data.range(6, override_num_blocks=1).map_batches(
        Slow, fn_constructor_args=(stage_s,), batch_size=1, concurrency=1
    )
    stream.context.target_max_block_size = 1
    splits = stream.streaming_split(2, equal=False, locality_hints=["elsewhere", "elsewhere"])

    def latest(split) -> float:
        """Seconds from when a row was made until the worker has it, at most."""
        rows = split.iter_batches(batch_size=1, prefetch_batches=0)
        return max(time.time() - row["at"].item() for row in rows)

    with ThreadPoolExecutor(2) as workers:
        assert max(workers.map(latest, splits)) < stage_s
