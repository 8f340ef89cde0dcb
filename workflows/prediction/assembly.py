"""The files of several slides at once, each by a task of its own, as soon as all tiles of the slide are answered."""

import logging
from collections import Counter, deque
from collections.abc import Iterator
from typing import Any

import ray
from ray.exceptions import RayTaskError, WorkerCrashedError

from csat.errors import ConfigError, StorageError
from csat.words import last_line
from workflows.prediction.job import PredictJob
from workflows.prediction.slide_files import mark_failed, write_slide_files

logger = logging.getLogger(__name__)


class Assembly:
    """Slides whose files are being written, and those that wait for it: only their numbers.

    Args:
        job: What every task has to know.
    """

    def __init__(self, job: PredictJob):
        self._job, settings = job, job.config.assembly
        self._shared = ray.put(job)
        self._most = settings.max_slides
        self._task = ray.remote(num_cpus=settings.cpus_per_slide, max_retries=settings.retries)(write_slide_files)
        self._waiting: deque[int] = deque()
        self._running: dict[ray.ObjectRef, int] = {}
        self._tries: Counter[int] = Counter()

    def __len__(self) -> int:
        return len(self._waiting) + len(self._running)

    def add(self, slide_index: int) -> None:
        """All tiles of this slide are answered."""
        self._waiting.append(slide_index)
        self._start()

    def ended(self, timeout_s: float | None = 0.0) -> Iterator[dict[str, Any]]:
        """Records of the slides that are done since the last call.

        Args:
            timeout_s: How long to wait for one; None: until there is one.

        Raises:
            StorageError, ConfigError: the files cannot be written, and it is not this slide's fault.
        """
        if not self._running:
            return
        ready, _ = ray.wait(list(self._running), timeout=timeout_s)
        for reference in ready:
            if (record := self._take(self._running.pop(reference), reference)) is not None:
                yield record
        self._start()

    def _start(self) -> None:
        while self._waiting and len(self._running) < self._most:
            slide_index = self._waiting.popleft()
            self._running[self._task.remote(self._shared, slide_index)] = slide_index

    def _take(self, slide_index: int, reference: ray.ObjectRef) -> dict[str, Any] | None:
        """The slide's record; None: it is tried once more."""
        try:
            return ray.get(reference)
        except RayTaskError as error:
            self._tries[slide_index] += 1
            if isinstance(error.cause, StorageError) and self._tries[slide_index] <= self._job.config.assembly.retries:
                logger.warning("%s: %s; trying again", self._job.names[slide_index], error.cause)
                self._waiting.append(slide_index)
                return None
            if isinstance(error.cause, StorageError | ConfigError):
                raise type(error.cause)(str(error.cause)) from error
            message = last_line(error)
        except WorkerCrashedError as error:
            message = last_line(error)
        # One slide that cannot be put together must not end a run of ten thousand: it is quarantined as a whole.
        logger.warning("%s: its files cannot be written: %s", self._job.names[slide_index], message)
        return mark_failed(self._job, slide_index, message)
