"""How fast each stage is on this machine, one stage at a time, in one process.

    python workflows/benchmark.py --device cpu --threads 2
    python workflows/benchmark.py --stages '["plan", "manifest"]'     # what ten thousand slides cost before pixels are read

Machines are noisy: every figure is the median of several rounds, the candidates of a stage take turns within a round, and a
table shows each as a ratio to the first. What a whole run reaches, with everything at once, stands in its throughput.json.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the script runs from a checkout, installed or not

from workflows.shell import interruption

if __name__ == "__main__":
    interruption.listen()  # before the imports, which take seconds

import numpy as np
import torch

from csat.columns import OK, STATUS, TILE
from csat.errors import ConfigError
from csat.model.cost import count_cost
from csat.model.student import Student, StudentConfig
from csat.responses import Kind, ResponseSpec, Symmetry
from csat.slides.synthetic import make_slides
from csat.tiles.reader import TileReader
from csat.tiles.sources import list_slides
from csat.tiles.tiling import TilingConfig, tile_slide
from teachers.registry import load_teacher
from workflows.rates.metadata import measure_manifest, measure_plan
from workflows.shell import command_line

RESPONSES = (
    ResponseSpec(name="np", kind=Kind.PROBABILITY, channels=1),
    ResponseSpec(name="hv", kind=Kind.REGRESSION, channels=2, symmetry=Symmetry.HV),
)
STUDENTS = ("csat", "csat_nano", "convnextv2_atto", "efficientnet_b0", "resnet18")
# name in the table → (teacher, options); random weights cost the same as trained ones
TEACHERS = {
    "stain": ("stain", {}),
    "hovernet fast, width 1/4": ("hovernet", {"random_weights": True, "width": 0.25}),
    "hovernet fast, width 1/4, bf16": ("hovernet", {"random_weights": True, "width": 0.25, "precision": "bfloat16"}),
    "hovernet fast, bf16": ("hovernet", {"random_weights": True, "precision": "bfloat16"}),
}


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """Settings of benchmark.py."""

    stages: list[str] = field(default_factory=lambda: ["student", "teacher", "reader"])  # any of these, plan, manifest
    students: list[str] = field(default_factory=lambda: list(STUDENTS))  # backbones
    slides: list[str] = field(default_factory=list)  # slides for the reader; empty: a synthetic one
    tile_px: int = 256  # edge of the tiles
    batch_size: int = 16  # tiles at once
    num_slides: int = 10_000  # simulated slides of the stage manifest
    num_tiles: int = 100_000_000  # simulated tiles of the stages plan and manifest
    rounds: int = 5  # timed rounds of each, after one that is not counted
    device: str = "cpu"  # cpu or cuda
    threads: int | None = None  # of torch, on the CPU; None: torch's choice
    output: str | None = None  # file for the figures as JSON


def main(argv: list[str] | None = None) -> int:
    """Run the verb. Returns the exit code, see `command_line.run`."""
    return command_line.run(benchmark, BenchmarkConfig, __doc__, argv)


def benchmark(config: BenchmarkConfig, plain: dict[str, Any]) -> int:
    """All of it, top to bottom."""
    stages = {
        "student": measure_students,
        "teacher": measure_teachers,
        "reader": measure_readers,
        "plan": lambda config: measure_plan(config.num_tiles),
        "manifest": lambda config: measure_manifest(config.num_slides, config.num_tiles),
    }
    if unknown := [stage for stage in config.stages if stage not in stages]:
        raise ConfigError(f"there is no stage {', '.join(unknown)}; there are: {', '.join(stages)}")
    if min(config.num_slides - 1, config.num_tiles) < 1:
        raise ConfigError("--num_slides must be at least 2 and --num_tiles at least 1")
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch sees no CUDA device here")
    if config.threads:
        torch.set_num_threads(config.threads)
    if config.slides:
        list_slides(config.slides)  # a wrong name is met before minutes of measuring
    figures = {stage: stages[stage](config) for stage in config.stages}
    figures["machine"] = {
        "device": describe_device(config.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    print(f"{figures['machine']['device']}, {figures['machine']['threads']} threads, torch {torch.__version__}")
    if config.output:
        Path(config.output).write_text(json.dumps(figures, indent=2) + "\n")
    return 0


def measure_students(config: BenchmarkConfig) -> dict[str, dict[str, float]]:
    """Forward, and forward with backward, of whole students (backbone, decoder, np and hv heads), float32."""
    images = torch.rand(config.batch_size, 3, config.tile_px, config.tile_px, device=config.device)
    students = {name: Student(StudentConfig(backbone=name), RESPONSES).to(config.device) for name in config.students}
    inference, training = {}, {}
    for name, student in students.items():
        inference[name] = lambda student=student: _infer(student, images)
        training[name] = lambda student=student: _train(student, images)
    costs = {name: count_cost(student, (1, 3, config.tile_px, config.tile_px)) for name, student in students.items()}
    title = f"student, {config.tile_px} px, batch {config.batch_size}"
    forward = _compare(f"{title}: forward, tiles/s", inference, config)
    backward = _compare(f"{title}: forward and backward, tiles/s", training, config)
    return {name: {"forward": forward[name], "training": backward[name], **costs[name]} for name in students}


def measure_teachers(config: BenchmarkConfig) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="csat-bench-") as scratch:
        tiles = _tiles(config, Path(scratch))
    if not len(tiles):
        raise ConfigError(f"no tile of {config.slides} could be read: give other --slides")
    candidates = {}
    for name, (teacher, options) in TEACHERS.items():
        loaded = load_teacher(teacher, None, options, device=config.device)
        candidates[name] = lambda loaded=loaded: loaded.respond(tiles)
    return _compare(f"teacher, {config.tile_px} px, tiles/s", candidates, config, images=len(tiles))


def measure_readers(config: BenchmarkConfig) -> dict[str, float]:
    """Reading and decoding by one process, with its slides open."""
    with tempfile.TemporaryDirectory(prefix="csat-bench-") as scratch:
        columns = _rows(config, Path(scratch))
        reader = TileReader(tile_px=config.tile_px)
        rows = len(columns["slide"])
        return _compare("reader, tiles/s", {"reader": lambda: reader(columns)}, config, images=rows)


def describe_device(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")


def _compare(
    title: str, candidates: dict[str, Callable[[], object]], config: BenchmarkConfig, images: int | None = None
) -> dict[str, float]:
    """Tiles/s of each candidate, in turns; prints the table."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for round_index in range(config.rounds + 1):
        for name, run in candidates.items():
            started = time.perf_counter()
            run()
            if config.device == "cuda":
                torch.cuda.synchronize()
            if round_index:
                seconds[name].append(time.perf_counter() - started)
    rates = {name: (images or config.batch_size) / median(times) for name, times in seconds.items()}
    first = next(iter(rates.values()))
    print(f"\n{title}")
    for name, rate in rates.items():
        low, high = ((images or config.batch_size) / bound(seconds[name]) for bound in (max, min))
        print(f"  {name:32} {rate:9.2f}   [{low:.2f}, {high:.2f}]   x{rate / first:.2f}")
    return rates


@torch.no_grad()
def _infer(student: Student, images: torch.Tensor) -> None:
    student.eval()(images)


def _train(student: Student, images: torch.Tensor) -> None:
    sum(prediction.square().mean() for prediction in student.train()(images).values()).backward()
    student.zero_grad(set_to_none=True)


def _rows(config: BenchmarkConfig, scratch: Path) -> dict[str, np.ndarray]:
    """Up to 512 manifest rows of the given slides, or of a synthetic one."""
    slides = list(config.slides) or [str(path) for path in make_slides(scratch, num_slides=1, size_px=4096)]
    tiling = TilingConfig(tile_px=config.tile_px)
    table = tile_slide(list_slides(slides)[0], tiling).slice(0, 512)
    return {name: column.to_numpy() for name, column in zip(table.column_names, table.combine_chunks().columns, strict=True)}


def _tiles(config: BenchmarkConfig, scratch: Path) -> np.ndarray:
    """A batch of tissue: the weight-free teacher's time depends on what it sees."""
    columns = {name: column[: config.batch_size] for name, column in _rows(config, scratch).items()}
    read = TileReader(tile_px=config.tile_px)(columns)
    return read[TILE][read[STATUS] == OK]


if __name__ == "__main__":
    sys.exit(main())
