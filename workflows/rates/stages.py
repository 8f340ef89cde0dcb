"""How fast students, teachers and readers are, each by itself in this process: candidates take turns, round by round."""

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import torch

from csat.columns import OK, STATUS, TILE
from csat.errors import ConfigError
from csat.model.cost import count_cost
from csat.model.student import Student, StudentConfig
from csat.responses import Kind, ResponseSpec, Symmetry
from csat.slides.synthetic import make_slides
from csat.tiles.grid import TilingConfig
from csat.tiles.reader import TileReader
from csat.tiles.sources import list_slides
from csat.tiles.tiling import tile_slide
from teachers.answers import open_answers
from teachers.registry import load_teacher
from workflows.rates.config import BenchmarkConfig
from workflows.shell import output

RESPONSES = (
    ResponseSpec(name="np", kind=Kind.PROBABILITY, channels=1),
    ResponseSpec(name="hv", kind=Kind.REGRESSION, channels=2, symmetry=Symmetry.HV),
)
# name in the table → (teacher, options); random weights cost the same as trained ones
TEACHERS = {
    "stain": ("stain", {}),
    "hovernet fast, width 1/4": ("hovernet", {"random_weights": True, "width": 0.25}),
    "hovernet fast, width 1/4, bf16": ("hovernet", {"random_weights": True, "width": 0.25, "precision": "bfloat16"}),
    "hovernet fast, bf16": ("hovernet", {"random_weights": True, "precision": "bfloat16"}),
}


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
        raise ConfigError(f"no tile of {config.slides} could be read: give others with slides=")
    candidates = {}
    for name, (teacher, options) in TEACHERS.items():
        loaded = load_teacher(teacher, None, options, device=config.device)
        candidates[name] = lambda loaded=loaded: loaded.respond(tiles)
    return _compare(f"teacher, {config.tile_px} px, tiles/s", candidates, config, images=len(tiles))


def measure_models(config: BenchmarkConfig) -> dict[str, float]:
    """Whatever answers, on tiles of its own size: the rate that a prediction, which also reads and writes, is held against."""
    candidates = {}
    for name in config.models:
        answers = open_answers(name, device=config.device, threads=config.threads)
        with tempfile.TemporaryDirectory(prefix="csat-bench-") as scratch:
            tiles = _tiles(replace(config, tile_px=answers.tile_px), Path(scratch))
        if len(tiles) < config.batch_size:
            raise ConfigError(f"{config.slides} give {len(tiles)} tiles of {answers.tile_px} px: lower batch_size")
        candidates[name] = lambda answers=answers, tiles=tiles: answers.answer(tiles)
    return _compare("model, tiles/s", candidates, config)


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
    lines = [f"\n{title}"]
    for name, rate in rates.items():
        low, high = ((images or config.batch_size) / bound(seconds[name]) for bound in (max, min))
        lines.append(f"  {name:32} {rate:9.2f}   [{low:.2f}, {high:.2f}]   x{rate / first:.2f}")
    output.result("\n".join(lines), title=title, rates=rates)
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
