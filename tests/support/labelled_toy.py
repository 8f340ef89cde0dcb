"""Labelled samples that need no files, and a tiny model, for testing what learns from labels."""

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from csat.errors import SlideError
from csat.labels.datasets.contract import Decoded, Sample
from csat.model.contract import Model
from csat.responses import Batch, TargetSpec
from csat.runs.plan import Plan
from csat.tasks import DatasetInfo, Task, heads_of

CLASSES = {Task.CLASSIFICATION: ("pale", "dark"), Task.SEGMENTATION: ("background", "gland"), Task.NUCLEI: ("round", "long")}


def make_info(task: Task = Task.CLASSIFICATION, classes: tuple[str, ...] | None = None) -> DatasetInfo:
    return DatasetInfo(
        name="toy",
        task=task,
        classes=CLASSES[task] if classes is None else classes,
        mpp=0.5,
        licence="none needed",
        source="made up",
        group="patient",
    )


def make_samples(groups: dict[str, Sequence[int | None]], **fields) -> list[Sample]:
    """Group → labels of its samples; keys are `group-number`."""
    return [
        Sample(key=f"{group}-{index}", layout="folder", image=f"{group}-{index}.png", group=group, label=label, **fields)
        for group, labels in groups.items()
        for index, label in enumerate(labels)
    ]


def draw_nuclei(rng: np.random.Generator, size: int | tuple[int, int], num: int = 6) -> Decoded:
    """Dark ellipses on pink: instances, types 1 (round) and 2 (long), and the mask of both."""
    height, width = (size, size) if isinstance(size, int) else size
    instances = np.zeros((height, width), np.int32)
    types = np.zeros((height, width), np.uint8)
    for number in range(1, num + 1):
        is_long = bool(rng.integers(2))
        centre = int(rng.integers(width)), int(rng.integers(height))
        axes = (min(height, width) // 6, min(height, width) // (12 if is_long else 6))
        for array, value in ((instances, number), (types, 1 + is_long)):
            cv2.ellipse(array, centre, axes, float(number * 40), 0, 360, value, -1)
    image = np.where(instances[..., None] > 0, (90, 40, 130), (230, 190, 210)).astype(np.uint8)
    return Decoded(image=image, mask=(instances > 0).astype(np.uint8), instances=instances, types=types)


def draw_shades(labels: Sequence[int], size: int = 16, seed: int = 0) -> list[Decoded]:
    """Noise around 170 for class 0 and around 90 for class 1."""
    rng = np.random.default_rng(seed)
    shade = np.array([170, 90])
    return [Decoded(image=np.clip(rng.normal(shade[label], 30, (size, size, 3)), 0, 255).astype(np.uint8)) for label in labels]


class ListSource:
    """A `SampleSource` over a list; None stands for a sample that cannot be read."""

    def __init__(self, decoded: Sequence[Decoded | None]):
        self.decoded = decoded

    def get(self, index: int) -> Decoded:
        if self.decoded[index] is None:
            raise SlideError("unreadable", f"sample {index} is broken on purpose")
        return self.decoded[index]


class TinyModel(nn.Module):
    """Three convolutions and a head for each response; heads without pixels see the mean. `has_norm`: with batch norm."""

    downsample, see = 1, Model.see
    step_px = 1

    def __init__(self, info: DatasetInfo, *, crop_px: int = 0, has_norm: bool = False, width: int = 8):
        super().__init__()
        torch.manual_seed(0)
        self.responses = heads_of(info, crop_px=crop_px)
        self.trunk = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1),
            nn.BatchNorm2d(width) if has_norm else nn.Identity(),
            nn.GELU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.GELU(),
        )
        self.heads = nn.ModuleDict({spec.name: nn.Conv2d(width, spec.channels, 1) for spec in self.responses})

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.trunk(images)
        maps = {spec.name: self.heads[spec.name](features) for spec in self.responses}
        return {spec.name: maps[spec.name] if spec.is_dense else maps[spec.name].mean((2, 3)) for spec in self.responses}


def to_batch(tiles: np.ndarray, targets: dict[str, np.ndarray], specs: Sequence[TargetSpec]) -> Batch:
    """Tiles uint8 `[B, n, n, 3]` and their targets as a method sees them."""
    return Batch(
        tiles=torch.from_numpy(tiles).permute(0, 3, 1, 2),
        positions=torch.arange(len(tiles)),
        targets={spec.name: torch.from_numpy(targets[spec.name]) for spec in specs},
    )


def losses_of_steps(method, batch: Batch, *, steps: int, lr: float) -> list[float]:
    """The loss before each of some AdamW steps on one batch."""
    optimiser = torch.optim.AdamW(method.part("student").parameters(), lr=lr)
    losses = []
    for _ in range(steps):
        loss = method.total(method(batch)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


def plan_of(size: int, epochs: int = 2, seed: int = 0) -> Plan:
    """As many positions an epoch as there are samples, in one chunk."""
    return Plan([size], [0], num_epochs=epochs, seed=seed)
