"""The board between a run's driver and its workers: how far they are, and whether they are asked to end.

In the terminal progress is a bar, and a line now and then where the output goes to a file.
"""

import asyncio
import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from tqdm import tqdm

LINE_EVERY_S = 15.0
WATCH_EVERY_S = 0.5


# Whose process alone dies starts again: workers take its final end for that of the driver.
@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class ProgressBoard:
    """Holds the newest figures of a run, which rank 0 writes and the driver reads, and the driver's word that it is to end."""

    def __init__(self):
        self.figures: dict[str, Any] = {}
        self._stop = asyncio.Event()
        self._num_waiting = 0

    async def update(self, figures: dict[str, Any]) -> None:
        self.figures = figures

    async def read(self) -> dict[str, Any]:
        return self.figures

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
    """Knows in a worker, at no cost, whether the driver has asked it to end."""

    def __init__(self, board: ray.actor.ActorHandle):
        self._board = board
        self._stopped = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def is_stopped(self) -> bool:
        """Whether this worker should end."""
        return self._stopped.is_set()

    def _watch(self) -> None:
        with contextlib.suppress(RayError):  # the driver is gone, and Ray ends its workers: what they still commit is kept
            ray.get(self._board.until_stopped.remote())
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


class ProgressDisplay:
    """Shows a board's figures until the context ends."""

    def __init__(self, board: ray.actor.ActorHandle, *, total: int):
        self.board = board
        self.total = total
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._show, daemon=True)

    def __enter__(self) -> "ProgressDisplay":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join(timeout=10)

    def _show(self) -> None:
        is_terminal = sys.stderr.isatty()
        bar = tqdm(total=self.total, unit="tile", desc="training", disable=not is_terminal)
        last_line, last_step = time.monotonic(), None
        while True:
            is_last = self._stop.wait(1.0)
            try:
                figures = ray.get(self.board.read.remote(), timeout=5)
            except Exception:  # the display must never end a run: the board may be gone with its node
                figures = {}
            if figures and figures["step"] != last_step:
                bar.n = figures["tiles"]
                bar.set_postfix_str(describe(figures, with_tiles=False))
                if not is_terminal and (is_last or time.monotonic() - last_line >= LINE_EVERY_S):
                    print(describe(figures), file=sys.stderr, flush=True)
                    last_line, last_step = time.monotonic(), figures["step"]
            if is_last:
                break
        bar.close()


def describe(figures: dict[str, Any], *, with_tiles: bool = True) -> str:
    """One line: where the run is, how fast, how much of the time the trainer waits, how it learns, how long it will take."""
    eta = figures["eta_s"]
    place = f"step {figures['step']} | {figures['tiles']:,}/{figures['tiles_total']:,} tiles | " if with_tiles else ""
    left = f" | ETA {time.strftime('%H:%M:%S', time.gmtime(eta))}" if eta is not None else ""
    days = f" {int(eta // 86400)}d" if eta is not None and eta >= 86400 else ""
    return (
        f"{place}{figures['tiles_per_s']:.1f} tiles/s | waiting {figures['wait_share']:.0%} | loss {figures['loss']:.4f}"
        f"{left}{days}"
    )
