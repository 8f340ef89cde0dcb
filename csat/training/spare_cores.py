"""Cores that nobody uses: the training process computes on them, too, where that makes its steps faster.

A student that is cheap beside its teacher waits for it, and needs one core. One that is not keeps its stream full: readers and
teacher stand still then, and their cores with them. How long that lasts nobody knows before; so it is looked at all the time.
Results then differ in their last digits from run to run, as the order of sums does: a number for `workers.threads` fixes it.
"""

import logging
import time
from collections.abc import Callable

import psutil
import torch

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 2.0
BUSY = 0.9  # share of the time that goes into steps, not into waiting for rows: below it more threads would only wait
ENOUGH_IDLE = 0.4  # of a core, for each thread that is added
GAIN = 1.08  # of the rate, below which more threads are taken back
LOSS = 0.7  # of the best rate with so many threads, below which others have come to need the cores
PATIENCE = 5  # looks without a try after one that did not pay; twice as many after the next one


class SpareCores:
    """How many threads torch computes a step with, from `least` to `most`; told of every step, in the thread that makes it.

    Args:
        least: The CPUs that are reserved for this process.
        most: Cores of this node.
        idle_cores: Cores that nobody has used since it was asked before.
        set_threads: Of torch, in the calling thread.
        clock: Seconds.
    """

    def __init__(
        self,
        least: int,
        most: int,
        *,
        idle_cores: Callable[[], float] | None = None,
        set_threads: Callable[[int], None] = torch.set_num_threads,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.threads, self._least, self._most = least, least, max(least, most)
        self._idle_cores, self._set_threads, self._clock = idle_cores or _IdleCores(), set_threads, clock
        self._fewer: tuple[int, float] | None = None  # before the last try: threads, and their rate
        self._best_rate = 0.0  # with as many threads as now
        self._rest, self._patience = 0, PATIENCE  # looks until the next try, and after the next that does not pay
        self._begin()

    def after_step(self, tiles: int, seconds: float) -> None:
        """A step was made, with so many tiles, in so many seconds without the wait for them."""
        self._tiles, self._busy_s = self._tiles + tiles, self._busy_s + seconds
        if (passed_s := self._clock() - self._begun) >= LOOK_EVERY_S and self._busy_s:
            self._look(self._tiles / self._busy_s, self._busy_s / passed_s, self._idle_cores())
            self._begin()

    def _look(self, rate: float, busy: float, idle: float) -> None:
        self._best_rate = max(self._best_rate, rate)
        if self._fewer is not None:
            fewer, their_rate = self._fewer
            self._fewer = None
            if rate < GAIN * their_rate:
                self._rest, self._patience = self._patience, 2 * self._patience
                self._use(fewer)
        elif self.threads > self._least and rate < LOSS * self._best_rate:
            self._rest = self._patience
            self._use(self._least)
        elif self._rest:
            self._rest -= 1
        elif self.threads < self._most and busy >= BUSY and (more := int(idle + 1 - ENOUGH_IDLE)):
            self._fewer = (self.threads, rate)
            self._use(min(self._most, 2 * self.threads, self.threads + more))

    def _use(self, threads: int) -> None:
        logger.info("the student computes with %s from now on", "1 thread" if threads == 1 else f"{threads} threads")
        self.threads, self._best_rate = threads, 0.0
        self._set_threads(threads)

    def _begin(self) -> None:
        self._begun, self._tiles, self._busy_s = self._clock(), 0, 0.0


class _IdleCores:
    """Cores of this machine that were idle since the last call."""

    def __init__(self):
        self._last = self._read()

    def __call__(self) -> float:
        (then, idle_then), (now, idle_now) = self._last, self._read()
        self._last = (now, idle_now)
        return (idle_now - idle_then) / max(now - then, 1e-9)

    def _read(self) -> tuple[float, float]:
        times = psutil.cpu_times()
        return time.monotonic(), times.idle + getattr(times, "iowait", 0.0)
