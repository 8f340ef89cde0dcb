"""What keeps the training loop free of Ray: where batches come from, who this process is, how the others are reached."""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

# Rows of one step: column name → array with the rows along the first axis.
Columns = dict[str, np.ndarray]

# A rank that waits longer than this for the others gives up, so that a lost worker ends in an error and not in silence.
CONTROL_TIMEOUT = timedelta(minutes=30)


@dataclass
class TrainContext:
    """One worker's place in the run.

    Attributes:
        batches: Makes the stream of this worker's rows, `batch_size` rows at a time; the last may be shorter. Called
            `num_streams` times, each time when all ranks are through with what came before.
        device: Where the student lives.
        num_streams: Streams that follow each other.
        on_progress: Called on rank 0 with the figures of each log line.
        on_validation: Called on rank 0 with the figures of each validation.
        is_stopped: Whether the run was asked to end. Any rank may be the first to know; asked often, so it must be cheap.
        is_leaving: Whether a machine of this run will be taken away soon. All ranks ask at the same step, every few seconds.
        after_step: Called after each step with this rank's tiles and the seconds that the step took, without waiting for rows.
    """

    batches: Callable[[int], Iterator[Columns]]
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    num_streams: int = 1
    on_progress: Callable[[dict[str, Any]], None] = lambda figures: None
    on_validation: Callable[[dict[str, Any]], None] = lambda figures: None
    is_stopped: Callable[[], bool] = lambda: False
    is_leaving: Callable[[], bool] = lambda: False
    after_step: Callable[[int, float], None] = lambda tiles, seconds: None

    def __post_init__(self):
        is_distributed = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if is_distributed else 0
        self.world_size = dist.get_world_size() if is_distributed else 1
        # Small numbers that every rank must agree on go through gloo: no GPU has to be waited for.
        self._control = dist.new_group(backend="gloo", timeout=CONTROL_TIMEOUT) if self.world_size > 1 else None

    def begin(self, batch_size: int) -> None:
        """Have the first rows of the first stream made now, so that they come while the caller builds what they are for.

        Args:
            batch_size: As `batches` will be called with.
        """
        make, begun = self.batches, _Begun(self.batches(batch_size))
        waiting = [begun]
        self.batches = lambda size: waiting.pop() if waiting else make(size)

    def sum_over_ranks(self, values: list[float]) -> list[float]:
        """The element-wise sum of `values` over all ranks; every rank must call it."""
        if self.world_size == 1:
            return list(values)
        summed = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(summed, group=self._control)
        return summed.tolist()

    def share(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite the tensors with those of rank 0; every rank must call it."""
        if self.world_size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def gather(self, value: Any) -> list[Any]:
        """`value` of every rank, in rank order; every rank must call it."""
        if self.world_size == 1:
            return [value]
        gathered: list[Any] = [None] * self.world_size
        dist.all_gather_object(gathered, value, group=self._control)
        return gathered


class _Begun:
    """An iterator whose first item is made at once, by a thread of its own."""

    def __init__(self, items: Iterator[Columns]):
        self._items = items
        self._first: queue.SimpleQueue[tuple[Columns | None, BaseException | None]] | None = queue.SimpleQueue()
        # A daemon: a thread that waits for rows must not keep the process from ending.
        threading.Thread(target=self._take, args=(self._first,), daemon=True).start()

    def __iter__(self) -> Iterator[Columns]:
        return self

    def __next__(self) -> Columns:
        if self._first is None:
            return next(self._items)
        (item, error), self._first = self._first.get(), None
        if error is not None:
            raise error
        if item is None:
            raise StopIteration
        return item

    def _take(self, first: queue.SimpleQueue) -> None:
        try:
            first.put((next(self._items, None), None))
        except BaseException as error:
            first.put((None, error))
