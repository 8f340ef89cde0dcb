"""A group of workers that does not come: told while it is waited for, and an error where there is room for it.

Ray Train starts a group that has lost a worker again, and waits for it without end and without a word. Where a node is gone
that is what a user wants, and is told. Where the cluster has the CPUs and GPUs, something else holds them, or Ray is stuck.
"""

import logging
import queue
import threading
from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray.exceptions import RayError
from ray.train import TrainingFailedError

from workflows.shell.config import WorkerConfig

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
SAY_EVERY_S = 60.0
LEAST_S = 180.0  # for a group to start, which takes a minute on a slow machine
ANSWER_WITHIN_S = 5.0  # of the board; one that does not answer says nothing about the workers


def fit_watched(fit: Callable[[], Any], board: ray.actor.ActorHandle, workers: WorkerConfig, *, limit_s: float) -> None:
    """Call `fit`, and watch its workers' signs of life on the board meanwhile.

    Args:
        fit: Of Ray Train; in a thread of its own, which is left alone where this raises.
        limit_s: Without a sign of life, though the cluster has room for the workers; at least `LEAST_S` are waited.

    Raises:
        TrainingFailedError: the limit is reached; a group that comes later ends at once.
        Exception: of `fit`.
    """
    limit_s, say_at_s = max(limit_s, LEAST_S), SAY_EVERY_S
    ended: queue.SimpleQueue[tuple[BaseException | None]] = queue.SimpleQueue()
    threading.Thread(target=_run, args=(fit, ended), daemon=True, name="fit").start()
    while (end := _within(ended, LOOK_EVERY_S)) is None:
        silence_s = _silence(board)
        if silence_s < SAY_EVERY_S:
            say_at_s = SAY_EVERY_S
            continue
        has_room, told = room_for(workers, ray.cluster_resources(), ray.available_resources())
        if has_room and silence_s >= limit_s:
            board.stop.remote()
            raise TrainingFailedError(
                f"no worker has given a sign of life for {silence_s:.0f} s; {told}. Another run may hold them, or Ray is "
                "stuck: look with `ray status`, end what is left of other runs and give the same command again, or raise "
                "ray.stall_timeout_s"
            )
        if silence_s >= say_at_s:
            after = f"; the run ends after {limit_s:.0f} s (ray.stall_timeout_s)" if has_room else ""
            logger.warning("no worker has given a sign of life for %.0f s; %s%s", silence_s, told, after)
            say_at_s = silence_s + SAY_EVERY_S
    if end[0] is not None:
        raise end[0]


def room_for(workers: WorkerConfig, have: Mapping[str, float], free: Mapping[str, float]) -> tuple[bool, str]:
    """Whether a cluster could hold these workers beside nothing else, and what they need of what it has, in words."""
    needed = {"CPU": workers.num_workers * workers.cpus_per_worker, "GPU": workers.num_workers * workers.gpus_per_worker}
    lacking = {name: amount for name, amount in needed.items() if amount > have.get(name, 0.0) + 1e-9}
    if lacking:
        parts = (f"{amount:g} {name}s and the cluster has {have.get(name, 0.0):g}" for name, amount in lacking.items())
        return False, f"the workers need {', '.join(parts)} now. The run goes on when a node comes"
    parts = (f"{amount:g} {name}s, of which {free.get(name, 0.0):g} are free" for name, amount in needed.items() if amount)
    return True, f"the workers need {' and '.join(parts)}"


def _run(fit: Callable[[], Any], ended: queue.SimpleQueue) -> None:
    error = None
    try:
        fit()
    except BaseException as raised:
        error = raised
    ended.put((error,))


def _within(ended: queue.SimpleQueue, seconds: float) -> tuple[BaseException | None] | None:
    try:
        return ended.get(timeout=seconds)
    except queue.Empty:
        return None


def _silence(board: ray.actor.ActorHandle) -> float:
    """Seconds since the last sign of life; 0 where the board does not say."""
    try:
        return ray.get(board.silence.remote(), timeout=ANSWER_WITHIN_S)
    except RayError:
        return 0.0
