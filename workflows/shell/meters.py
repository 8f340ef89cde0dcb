"""What a run costs the cluster: object-store use, spilled bytes, memory. Sampled by the driver through Ray's public doors."""

import logging
import math
import re
import subprocess
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import ray

logger = logging.getLogger(__name__)

SAMPLE_EVERY_S = 1.0
MEMORY_REPORT_TIMEOUT_S = 60.0


class _Spilled:
    """What is known of this process's cluster: bytes spilled since it started; None: it has to be asked."""

    known: float | None = None


_spilled = _Spilled()


def nothing_spilled_yet() -> None:
    """Ray was started here, just now."""
    _spilled.known = 0.0


class StoreMeter:
    """Samples the object store while the context lasts; then `figures()` tells the peak and what was spilled."""

    def __init__(self):
        self.peak_bytes = 0.0
        self._answer: Future[float] | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._spilled_before = 0.0

    def __enter__(self) -> "StoreMeter":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join(timeout=10)

    def ask(self) -> None:
        """Ask now what was spilled: Ray takes seconds to say it. For the end of a training, while its processes end."""
        if self._answer is None:
            self._answer = ThreadPoolExecutor(1).submit(spilled_bytes)

    def figures(self) -> dict[str, Any]:
        """Peak bytes in the object stores of all nodes together, their capacity, and bytes spilled to disk since the start."""
        self.ask()
        _spilled.known = None if math.isnan(spilled := self._answer.result()) else spilled
        spilled -= self._spilled_before
        return {
            "object_store_peak_bytes": int(self.peak_bytes),
            "object_store_capacity_bytes": int(ray.cluster_resources().get("object_store_memory", 0)),
            "spilled_bytes": None if math.isnan(spilled) else int(spilled),
        }

    def _sample(self) -> None:
        name = "object_store_memory"
        # Here, as Ray takes seconds to say it and nobody has to wait; of a Ray that was just started it need not be asked.
        self._spilled_before = spilled_bytes() if _spilled.known is None else _spilled.known
        while not self._stop.wait(SAMPLE_EVERY_S):
            try:
                used = ray.cluster_resources().get(name, 0.0) - ray.available_resources().get(name, 0.0)
            except Exception as error:  # a meter must never end a run: a node may be going away at this moment
                logger.debug("no object-store sample: %s", error)
                continue
            self.peak_bytes = max(self.peak_bytes, used)


def spilled_bytes() -> float:
    """Bytes that the cluster has spilled to disk since it started; NaN where Ray does not say."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "memory", "--stats-only", "--address", _address()]
    try:
        text = subprocess.run(command, capture_output=True, text=True, timeout=MEMORY_REPORT_TIMEOUT_S).stdout
    except subprocess.TimeoutExpired:
        logger.warning("`ray memory` did not answer within %.0f s: spilled bytes are not known", MEMORY_REPORT_TIMEOUT_S)
        return float("nan")
    if "Plasma memory usage" not in text:
        return float("nan")
    return sum(float(mib) * 2**20 for mib in re.findall(r"Spilled ([\d.]+) MiB", text))


def _address() -> str:
    return ray.get_runtime_context().gcs_address
