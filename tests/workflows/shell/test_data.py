"""Ray Data's settings, as Ray Data keeps them."""

import time

import numpy as np
import pytest
import ray.data

from workflows.shell.config import RayConfig
from workflows.shell.data import LEAST_STEP_S, Pause, configure_data

BLOCKS, BLOCK_BYTES, STREAM_GB = 8, 2**21, 0.008  # the stream holds a few of the blocks that its tasks have ready


def blocks(rows):
    for _ in rows["id"].tolist():
        yield {"tile": np.zeros((1, BLOCK_BYTES), np.uint8)}


def test_a_round_takes_its_time():
    pause, begun = Pause(), time.monotonic()
    for _ in range(5):
        pause.on_execution_step(None)
    assert time.monotonic() - begun >= 5 * 0.99 * LEAST_STEP_S


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
