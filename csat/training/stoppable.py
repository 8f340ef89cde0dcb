"""A stream whose reader can stop waiting: the rows of a step may take longer than whoever ends a run is ready to wait."""

import math
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

LOOK_EVERY_S = 0.2


class Waiting(Exception):
    """The rows that were asked for have not come yet."""


class StoppableStream:
    """Takes rows from a stream in a thread of its own, one batch when it is asked for one: nothing is read ahead.

    Args:
        stream: Used in that thread only.
        is_stopped: Asked while waiting.
    """

    def __init__(self, stream: Iterator[Any], is_stopped: Callable[[], bool]):
        self._is_stopped = is_stopped
        self._asked: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._taken: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        self._is_over = self._is_asked = False
        # A daemon: a thread that waits for rows must not keep the process from ending.
        threading.Thread(target=self._take, args=(stream,), daemon=True).start()

    def next(self, within_s: float = math.inf) -> Any | None:
        """The next batch; None where the stream is over, or a stop was asked for first: then what comes later is dropped.

        Raises:
            Waiting: it has not come within so many seconds. Ask again.
            Exception: what the stream raised.
        """
        if self._is_over:
            return None
        if not self._is_asked:
            self._asked.put(True)
        self._is_asked, deadline = True, time.monotonic() + within_s
        while True:
            try:
                rows, error = self._taken.get(timeout=LOOK_EVERY_S)
            except queue.Empty:
                if self._is_stopped():
                    self.close()
                    return None
                if time.monotonic() > deadline:
                    raise Waiting from None
                continue
            self._is_asked = False
            if error is not None:
                self.close()
                raise error
            self._is_over = rows is None
            return rows

    def close(self) -> None:
        """Let the thread end once it is through with what it was asked for."""
        self._is_over = True
        self._asked.put(False)

    def _take(self, stream: Iterator[Any]) -> None:
        rows: Any = ()
        while rows is not None and self._asked.get():
            try:
                rows, error = next(stream, None), None
            except BaseException as raised:
                rows, error = None, raised
            self._taken.put((rows, error))
