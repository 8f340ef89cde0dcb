"""The board between a run's driver and its workers: how far they are, and whether they are asked to end."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

WATCH_EVERY_S = 0.5
SIGN_EVERY_S = 5.0


# Whose process alone dies starts again: workers take its final end for that of the driver.
@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class ProgressBoard:
    """Holds the newest figures of a run, which rank 0 writes and the driver reads, and the driver's word that it is to end.

    Workers give signs of life, whatever they are at: so the driver knows whether there are any.
    """

    def __init__(self):
        self.figures: dict[str, Any] = {}
        self._signed = time.monotonic()
        self._stop = asyncio.Event()
        self._num_waiting = 0

    async def update(self, figures: dict[str, Any]) -> None:
        self.figures = figures

    async def read(self) -> dict[str, Any]:
        return self.figures

    async def sign(self) -> None:
        self._signed = time.monotonic()

    async def silence(self) -> float:
        """Seconds since a worker's last sign of life, or since the board was made."""
        return time.monotonic() - self._signed

    async def stop(self) -> bool:
        """Ask the workers to end; returns whether there are any."""
        self._stop.set()
        return self._num_waiting > 0

    async def until_stopped(self) -> None:
        """Returns when `stop` was called."""
        self._num_waiting += 1
        try:
            await self._stop.wait()
        finally:
            self._num_waiting -= 1


def make_board(name: str | None = None) -> ray.actor.ActorHandle:
    """A board on the driver's node, so that it lives as long as the driver.

    Args:
        name: Under which others of this job find it.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ProgressBoard.options(name=name, scheduling_strategy=here).remote()


class StopWatch:
    """Knows in a worker, at no cost, whether the driver has asked it to end; meanwhile it gives signs of life."""

    def __init__(self, board: ray.actor.ActorHandle):
        self._board = board
        self._stopped = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def is_stopped(self) -> bool:
        """Whether this worker should end."""
        return self._stopped.is_set()

    def _watch(self) -> None:
        with contextlib.suppress(RayError):  # the driver is gone, and Ray ends its workers: what they still commit is kept
            stopped = self._board.until_stopped.remote()
            self._board.sign.remote()
            while not ray.wait([stopped], timeout=SIGN_EVERY_S)[0]:
                self._board.sign.remote()
            ray.get(stopped)
        self._stopped.set()


@contextlib.contextmanager
def passes_on(is_stopped: Callable[[], bool], board: ray.actor.ActorHandle) -> Iterator[None]:
    """While the context lasts, tell the board's workers to end as soon as `is_stopped`."""
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(WATCH_EVERY_S):
            if is_stopped():
                board.stop.remote()
                return

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        is_over.set()
