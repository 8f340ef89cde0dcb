"""A toy method and a toy stream, for testing the loop without a teacher, slides or Ray."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from csat.columns import OK, POSITION, QUARANTINED, READ_S, REASON, RESPONSE_PREFIX, STATUS, TEACHER_S, TILE, of_arrays
from csat.methods.contract import Method, Setting
from csat.responses import Batch, Kind, ResponseSpec, Symmetry, TeacherSpec
from csat.runs.plan import Plan

TILE_PX = 8
SPEC = ResponseSpec(name="mean", kind=Kind.REGRESSION, channels=3, stride_px=None, symmetry=Symmetry.SCALAR)
TEACHER = TeacherSpec(name="toy", responses=(SPEC,), mpp=None)


class ToyMethod(Method):
    """Learns the mean colour of a tile, with so many channels, and dropout, by `noise`, so that steps draw random numbers.

    `nan_at` makes one term NaN for tiles from that position on.
    """

    def __init__(self, nan_at: int | None = None, *, width: int = 4, noise: float = 0.0):
        torch.manual_seed(0)
        student = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1),
            nn.GELU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(noise),
            nn.Linear(width, 3),
        )
        super().__init__(None, student, Setting(tile_px=TILE_PX, teacher=TEACHER))
        self.student = student
        self.weights = {"squared": 1.0, "absolute": 0.5}
        self.nan_at = nan_at

    @classmethod
    def wanted(cls, config, teacher):
        return teacher.responses

    def part(self, turn):
        return {"student": self.student}[turn]

    def forward(self, batch: Batch, turn: str = "student"):
        error = self.student(batch.tiles.float() / 255) - batch.responses["mean"].float()
        absolute = error.abs().mean(1)
        if self.nan_at is not None:
            absolute = absolute + torch.where(batch.positions >= self.nan_at, float("nan"), 0.0)
        return {"squared": error.square().mean(1), "absolute": absolute}


def toy_plan(num_tiles: int = 24, num_epochs: int = 2) -> Plan:
    return Plan([num_tiles], [0], num_epochs=num_epochs, seed=0)


def toy_rows(
    positions, *, bad: tuple[int, ...] = (), num_tiles: int = 24, sizes: tuple[tuple[int, int], ...] | None = None
) -> dict[str, np.ndarray]:
    """Rows as the stream delivers them; the pixels follow from the position. With `sizes` they are whole images of those."""
    positions = np.asarray(positions, dtype=np.int64)
    images = []
    for p in (positions % num_tiles).tolist():
        size = sizes[p % len(sizes)] if sizes else (TILE_PX, TILE_PX)
        images.append(np.random.default_rng(p).integers(0, 256, (*size, 3), dtype=np.uint8))
    tiles = of_arrays(images) if sizes else np.stack(images)
    is_bad = np.isin(positions, bad)
    tiles.flags.writeable = False
    return {
        POSITION: positions,
        TILE: tiles,
        STATUS: np.where(is_bad, QUARANTINED, OK).astype(np.uint8),
        REASON: np.array(["unreadable: broken on purpose" if b else "" for b in is_bad], dtype=object),
        READ_S: np.full(len(positions), 0.001, dtype=np.float32),
        TEACHER_S: np.full(len(positions), 0.002, dtype=np.float32),
        "slide": np.array(["a.svs"] * len(positions), dtype=object),
        "x_px": positions * 10,
        "y_px": positions * 0,
        RESPONSE_PREFIX + SPEC.name: np.stack([image.mean((0, 1)) / 255 for image in images]).astype(np.float16),
    }


def toy_stream(positions, batch_size: int, **options) -> Iterator[dict[str, np.ndarray]]:
    positions = list(positions)
    for start in range(0, len(positions), batch_size):
        yield toy_rows(positions[start : start + batch_size], **options)
