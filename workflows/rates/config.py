"""The settings of benchmark.py."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

from csat.errors import ConfigError
from csat.settings import Often, Place

STUDENTS = ("csat", "csat_nano", "convnextv2_atto", "efficientnet_b0", "resnet18")
FIRST = ["student", "teacher", "reader"]
QUICK = {"rounds": 1, "num_images": 128, "num_slides": 50, "num_tiles": 100_000}


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """Settings of benchmark.py."""

    stages: Often[list[str]] = field(default_factory=FIRST.copy)  # which, in this order; all: every one
    quick: Often[bool] = False  # small, and one round: does it work, rather than how fast
    images: Often[Place | None] = None  # folder of images for the stage peers; None: synthetic ones
    lightly_python: Often[Place | None] = None  # a Python that has LightlyTrain, for peers; None: without it
    ours: list[str] = field(default_factory=list)  # more arguments of pretrain.py, for this project's side of peers
    num_images: int = 1480  # images of peers at most
    students: list[str] = field(default_factory=lambda: list(STUDENTS))  # backbones
    ways: list[str] = field(default_factory=list)  # in which each of them runs; empty: all (see docs/performance.md)
    models: list[str] = field(default_factory=lambda: ["stain"])  # of the stage model: as predict.py takes one, or hovernet
    model_px: int | None = None  # edge of the tiles of the stage model; None: each model's own
    slides: Often[list[Place]] = field(default_factory=list)  # slides for the reader; empty: a synthetic one
    tile_px: int = 256  # edge of the tiles
    batch_size: int = 16  # tiles at once
    num_slides: int = 10_000  # simulated slides of the stage manifest
    num_tiles: int = 100_000_000  # simulated tiles of the stages plan and manifest
    checkouts: list[Place] = field(default_factory=list)  # other checkouts for startup to compare; empty: this one
    rounds: int = 5  # timed rounds of each, after one that is not counted
    seed: int = 0  # of weights, order and augmentation
    device: Often[str] = "cpu"  # cpu or cuda
    threads: Often[int | None] = None  # of torch, in stages of one process on the CPU; None: torch's choice
    output: Often[Place | None] = None  # file for the figures as JSON

    def as_asked(self) -> Self:
        """Smaller, where that was asked for."""
        return replace(self, **QUICK) if self.quick else self

    def check(self) -> None:
        """Meet a wrong setting before minutes of measuring. Raises ConfigError, StorageError."""
        if min(self.num_slides - 1, self.num_tiles, self.rounds) < 1:
            raise ConfigError("num_slides must be at least 2, num_tiles and rounds at least 1")
        if self.device == "cuda":
            import torch

            if not torch.cuda.is_available():
                raise ConfigError("device=cuda: torch sees no CUDA device here")
        if self.slides:
            from csat.tiles.sources import list_slides

            list_slides(self.slides)
        if self.lightly_python is not None and not Path(self.lightly_python).is_file():
            raise ConfigError(f"lightly_python: {self.lightly_python} is no file; name a Python such as lightly/bin/python")
