"""How fast teachers, and models that answer, are by themselves in this process: candidates take turns, round by round."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from csat.columns import OK, STATUS, TILE
from csat.errors import ConfigError
from csat.model.cost import count_cost
from csat.prediction.answers import Answers
from csat.slides.synthetic import make_slides
from csat.tiles.reader import TileReader
from teachers.answers import open_answers
from teachers.registry import load_teacher
from workflows.rates.config import BenchmarkConfig
from workflows.rates.readers import rows_of
from workflows.rates.turns import NAME_WIDTH, compare
from workflows.shell import output
from workflows.shell.interruption import scratch_folder

# name in the table → (teacher, options); random weights cost the same as trained ones
TEACHERS = {
    "stain": ("stain", {}),
    "hovernet fast, width 1/4": ("hovernet", {"random_weights": True, "width": 0.25}),
    "hovernet fast, width 1/4, bf16": ("hovernet", {"random_weights": True, "width": 0.25, "precision": "bfloat16"}),
    "hovernet fast, bf16": ("hovernet", {"random_weights": True, "precision": "bfloat16"}),
}
COMPILED = {"hovernet fast, bf16, compiled": ("hovernet", {**TEACHERS["hovernet fast, bf16"][1], "compile": True})}  # on a GPU
UNTRAINED = {"hovernet": {"random_weights": True}}  # of the stage model, by name


def measure_teachers(config: BenchmarkConfig) -> dict[str, Any]:
    """Name → tiles/s."""
    with scratch_folder("csat-bench-") as scratch:
        tiles = _tiles(config, scratch)
    if not len(tiles):
        raise ConfigError(f"no tile of {config.slides} could be read: give others with slides=")
    candidates = {}
    for name, (teacher, options) in (TEACHERS | (COMPILED if config.device == "cuda" else {})).items():
        loaded = load_teacher(teacher, None, options, device=config.device)
        candidates[name] = lambda loaded=loaded: loaded.respond(tiles)
    title = f"teacher: {config.tile_px} px, batch {len(tiles)}, {torch.get_num_threads()} threads, {config.device}, tiles/s"
    return compare(title, candidates, rounds=config.rounds, images=len(tiles), finish=_finish(config))


def measure_models(config: BenchmarkConfig) -> dict[str, Any]:
    """Whatever answers, and what its network costs. A prediction, which also reads and writes, is held against that rate."""
    candidates, costs = {}, {}
    for name in config.models:
        options = UNTRAINED.get(name)
        answers = open_answers(name, options=options, tile_px=config.model_px, device=config.device, threads=config.threads)
        costs[name] = _cost_of(answers)
        with scratch_folder("csat-bench-") as scratch:
            tiles = _tiles(replace(config, tile_px=answers.tile_px), scratch)
        if len(tiles) < config.batch_size:
            raise ConfigError(f"{config.slides} give {len(tiles)} tiles of {answers.tile_px} px: lower batch_size")
        candidates[name] = lambda answers=answers, tiles=tiles: answers.answer(tiles)
    title = f"model: batch {config.batch_size}, {torch.get_num_threads()} threads, {config.device}, tiles/s"
    figures = compare(title, candidates, rounds=config.rounds, images=config.batch_size, finish=_finish(config))
    lines = ["\nparameters, and multiply-accumulates of a tile"]
    lines += [f"  {name:{NAME_WIDTH}}{_in_words(cost)}" for name, cost in costs.items()]
    output.result("\n".join(lines), costs=costs)
    return {name: {**figures[name], **costs[name]} for name in figures}


def _cost_of(answers: Answers) -> dict[str, int]:
    """Of the network that answers; nothing where there is none, or it is onnxruntime's."""
    network = getattr(answers, "model", None) or getattr(getattr(answers, "teacher", None), "net", None)
    if network is None:
        return {"params": 0, "macs": 0, "tile_px": answers.tile_px}
    seen_px = answers.tile_px // getattr(network, "downsample", 1)
    return {**count_cost(network, (1, 3, seen_px, seen_px)), "tile_px": seen_px}


def _in_words(cost: dict[str, int]) -> str:
    return f"{cost['params'] / 1e6:.2f}M, {cost['macs'] / 1e9:.2f} GMAC at {cost['tile_px']} px"


def _finish(config: BenchmarkConfig) -> Any:
    return torch.cuda.synchronize if config.device == "cuda" else int


def _tiles(config: BenchmarkConfig, scratch: Path) -> np.ndarray:
    """A batch of tissue: the weight-free teacher's time depends on what it sees."""
    slides = list(config.slides) or [str(path) for path in make_slides(scratch, num_slides=1, size_px=4096)]
    rows = rows_of(slides, config.tile_px, config.batch_size)
    read = TileReader(tile_px=config.tile_px)(rows)
    return read[TILE][read[STATUS] == OK]
