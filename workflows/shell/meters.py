"""What a run costs the cluster: object-store use, and bytes spilled from there to disk. Sampled by the driver."""

import logging
import math
import re
import threading
from typing import Any

import ray

from csat.words import last_line

logger = logging.getLogger(__name__)

SAMPLE_EVERY_S = 1.0


class StoreMeter:
    """Samples the object store while the context lasts; then `figures()` tells the peak and what was spilled."""

    def __init__(self):
        self.peak_bytes = self._capacity_bytes = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> "StoreMeter":
        self._spilled_before = spilled_bytes()
        self._look()
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join(timeout=10)

    def figures(self) -> dict[str, Any]:
        """Peak bytes in the object stores of all nodes together, their capacity, and bytes spilled to disk since the start.

        Also where the cluster does not answer any more.
        """
        spilled = spilled_bytes() - self._spilled_before
        return {
            "object_store_peak_bytes": int(self.peak_bytes),
            "object_store_capacity_bytes": int(self._capacity_bytes),
            "spilled_bytes": None if math.isnan(spilled) else int(spilled),
        }

    def _sample(self) -> None:
        while not self._stop.wait(SAMPLE_EVERY_S):
            self._look()

    def _look(self) -> None:
        name = "object_store_memory"
        try:
            self._capacity_bytes = ray.cluster_resources().get(name, 0.0)
            used = self._capacity_bytes - ray.available_resources().get(name, 0.0)
        except Exception as error:  # a meter must never end a run: a node may be going away at this moment
            logger.debug("no object-store sample: %s", error)
            return
        self.peak_bytes = max(self.peak_bytes, used)


def spilled_bytes() -> float:
    """Bytes that the cluster has spilled to disk since it started; NaN where Ray does not say."""
    try:
        # What `ray memory --stats-only` prints. The command is a process that takes two seconds to load before it asks.
        from ray._private.internal_api import memory_summary

        text = memory_summary(ray.get_runtime_context().gcs_address, stats_only=True)
    except Exception as error:  # a meter must never end a run
        logger.warning("Ray does not say what it has spilled: %s: %s", type(error).__name__, last_line(error))
        return float("nan")
    return sum(float(mib) * 2**20 for mib in re.findall(r"Spilled ([\d.]+) MiB", text))
