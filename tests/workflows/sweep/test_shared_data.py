import time

import numpy as np
import pytest
import ray

from workflows.sweep.shared_data import share, shared_data

pytestmark = pytest.mark.ray
SIZE_BYTES = 60 * 2**20


def used_bytes():
    name = "object_store_memory"
    return ray.cluster_resources()[name] - ray.available_resources().get(name, 0.0)


def wait_for(is_so):
    deadline = time.monotonic() + 120
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.2)


@ray.remote(num_cpus=0)
def total(name):
    return sum(float(ray.get(reference).sum()) for reference in shared_data(name)["tables"])


def test_data_are_there_while_they_are_shared_and_gone_afterwards(ray_cluster):
    before = used_bytes()
    for number in range(2):  # a second data set has room, because the first is gone
        with share(f"data {number}", {"tables": [ray.put(np.ones(SIZE_BYTES, np.uint8))]}):
            assert ray.get(total.remote(f"data {number}")) == SIZE_BYTES
            wait_for(lambda: used_bytes() > before + SIZE_BYTES / 2)
        wait_for(lambda: used_bytes() < before + SIZE_BYTES / 2)
        with pytest.raises(ValueError, match=f"data {number}"):
            shared_data(f"data {number}")
