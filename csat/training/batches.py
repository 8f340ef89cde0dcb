"""Columns of the stream become batches on the device: one for each size of image, or a stand-in where a rank has no tile."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from csat.columns import (
    OK,
    POSITION,
    RESPONSE_PREFIX,
    STATUS,
    STUDENT_TILE,
    TARGET_PREFIX,
    TILE,
    UNANSWERED_PREFIX,
    rows_by_size,
    take_rows,
)
from csat.methods.contract import Method
from csat.responses import Batch
from csat.training.context import Columns


def to_batches(rows: Columns, method: Method, device: torch.device) -> Iterator[Batch]:
    """The good tiles among `rows`, on the device: one batch, or one for each size of image; none without good tiles."""
    for good in rows_by_size(rows[TILE], np.flatnonzero(rows[STATUS] == OK)):

        def there(name: str, good: np.ndarray = good) -> Tensor:
            return _to_device(rows[name], good, device)

        yield Batch(
            tiles=there(TILE).permute(0, 3, 1, 2),
            positions=there(POSITION),
            responses={spec.name: there(RESPONSE_PREFIX + spec.name) for spec in method.responses},
            targets={spec.name: there(TARGET_PREFIX + spec.name) for spec in method.targets},
            student_tiles=there(STUDENT_TILE).permute(0, 3, 1, 2) if STUDENT_TILE in rows else None,
            answered={
                name: torch.from_numpy(rows[UNANSWERED_PREFIX + name][good] == "").to(device) for name in method.teachers
            },
        )


def idle_batch(method: Method, tile_px: int, device: torch.device) -> Batch:
    """A batch of one white tile that says nothing: for a rank that has none, and has not had any."""
    return Batch(
        tiles=torch.full((1, 3, tile_px, tile_px), 255, dtype=torch.uint8, device=device),
        positions=torch.zeros(1, dtype=torch.int64, device=device),
        responses={spec.name: torch.zeros(1, *spec.shape(tile_px), device=device) for spec in method.responses},
        targets={
            spec.name: torch.zeros(1, *spec.shape(tile_px), dtype=getattr(torch, spec.dtype), device=device)
            for spec in method.targets
        },
    )


def _to_device(column: np.ndarray, rows: np.ndarray, device: torch.device) -> Tensor:
    column = take_rows(column, rows)
    if not column.flags.writeable:  # batches from an object store are read-only views: a tensor needs its own copy
        column = column.copy()
    tensor = torch.from_numpy(np.ascontiguousarray(column))
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor
