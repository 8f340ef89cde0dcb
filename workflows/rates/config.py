"""The settings of benchmark.py."""

from dataclasses import dataclass, field

from csat.settings import Often, Place

STUDENTS = ("csat", "csat_nano", "convnextv2_atto", "efficientnet_b0", "resnet18")
FIRST = ["student", "teacher", "reader"]


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """Settings of benchmark.py."""

    stages: Often[list[str]] = field(default_factory=FIRST.copy)  # or model, plan, manifest, startup, forecast, precision
    students: list[str] = field(default_factory=lambda: list(STUDENTS))  # backbones
    models: list[str] = field(default_factory=lambda: ["stain"])  # of the stage model: as predict.py takes one
    slides: Often[list[Place]] = field(default_factory=list)  # slides for the reader; empty: a synthetic one
    tile_px: int = 256  # edge of the tiles
    batch_size: int = 16  # tiles at once
    num_slides: int = 10_000  # simulated slides of the stage manifest
    num_tiles: int = 100_000_000  # simulated tiles of the stages plan and manifest
    checkouts: list[Place] = field(default_factory=list)  # other checkouts for startup to compare; empty: this one
    rounds: int = 5  # timed rounds of each, after one that is not counted
    device: Often[str] = "cpu"  # cpu or cuda
    threads: Often[int | None] = None  # of torch, on the CPU; None: torch's choice
    output: Often[Place | None] = None  # file for the figures as JSON
