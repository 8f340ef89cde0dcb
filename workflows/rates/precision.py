"""float32 against bfloat16: how fast teacher and student are, and how good the student is after a short training.

Called by benchmark.py (`--stages precision`, best with slides of one's own). The formats take turns. Each seed trains
two students over the same tiles in the same order; both are judged in float32, by the loss on tiles that neither has seen.
"""

from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import numpy as np
import torch

from csat.columns import OK, POSITION, STATUS
from csat.errors import ConfigError
from csat.methods.contract import Method, Setting
from csat.methods.registry import build_method, build_student
from csat.model.student import StudentConfig
from csat.precision import BFLOAT16, FLOAT32
from csat.runs.plan import Plan
from csat.runs.recorder import read_metrics
from csat.slides.synthetic import make_slides
from csat.tiles.grid import TilingConfig
from csat.tiles.planned_reader import columns_of
from csat.tiles.reader import TileReader
from csat.tiles.sample import Rows, joined
from csat.tiles.sources import list_slides
from csat.tiles.tiling import tile_slide
from csat.training.batches import to_batches
from csat.training.config import TrainConfig
from csat.training.context import TrainContext
from csat.training.loop import Trainer
from csat.training.optim import OptimConfig
from teachers.registry import load_teacher
from teachers.stage import TeacherStage
from workflows.rates.config import BenchmarkConfig
from workflows.shell import output
from workflows.shell.interruption import scratch_folder

SEEDS, EPOCHS, BATCH = (0, 1, 2), 3, 16
QUICK_SEEDS, QUICK_EPOCHS = (0, 1), 1
MAX_TILES, HELD_OUT = 256, 4  # tiles in all; every so many-th is held out
LR = 0.004
# name → teacher, its options, student
PAIRS: dict[str, tuple[str, dict[str, Any], str]] = {
    "stain → csat_nano": ("stain", {}, "csat_nano"),
    "resnet18 → csat_nano": ("timm", {"model": "resnet18", "num_classes": 0, "random_weights": True}, "csat_nano"),
}


def measure_precision(config: BenchmarkConfig) -> dict[str, Any]:
    """Pair → tiles/s of teacher and student in both formats, and the held-out loss of each seed."""
    figures = {}
    with scratch_folder("csat-bench-") as scratch:
        tiles = _read(config, scratch)
    for name, (teacher, options, student) in PAIRS.items():
        figures[name] = _measure(config, tiles, teacher, options, student)
        _print(name, figures[name])
    return figures


def _read(config: BenchmarkConfig, scratch: Path) -> Rows:
    slides = list(config.slides) or [str(path) for path in make_slides(scratch, num_slides=2, size_px=3072)]
    parts: list[Rows] = []
    for slide in list_slides(slides):
        if sum(len(part["slide"]) for part in parts) < MAX_TILES:
            parts.append(columns_of(tile_slide(slide, TilingConfig(tile_px=config.tile_px, mpp=None))))
    rows = {name: column[:MAX_TILES] for name, column in joined(parts).items()}
    read = TileReader(tile_px=config.tile_px)(rows)
    good = read[STATUS] == OK
    if good.sum() < 2 * BATCH:
        raise ConfigError(f"slides: {good.sum()} tiles of {config.tile_px} px could be read, and {2 * BATCH} are needed")
    return {name: column[good] for name, column in read.items()} | {POSITION: np.arange(good.sum())}


def _measure(config: BenchmarkConfig, tiles: Rows, teacher: str, options: dict[str, Any], student: str) -> dict[str, Any]:
    stage = TeacherStage(teacher, None, options, device=config.device)
    answered = stage(tiles)
    is_held_out = np.arange(len(tiles[POSITION])) % HELD_OUT == 0
    seen, unseen = ({name: column[chosen] for name, column in answered.items()} for chosen in (~is_held_out, is_held_out))
    rates: dict[str, list[float]] = {FLOAT32: [], BFLOAT16: []}
    losses: dict[str, list[float]] = {FLOAT32: [], BFLOAT16: []}
    seeds, epochs = (QUICK_SEEDS, QUICK_EPOCHS) if config.quick else (SEEDS, EPOCHS)
    for seed in seeds:
        for precision in rates:  # they take turns: a machine that others use is as slow for both
            setting = Setting(tile_px=config.tile_px, teacher=load_teacher(teacher, None, options).spec, seed=seed)
            torch.manual_seed(seed)
            method = build_method(
                "rckd", {}, build_student("rckd", {}, StudentConfig(backbone=student), setting.teacher), setting
            )
            method = method.to(config.device)
            rates[precision].append(_train(method, seen, precision, epochs, seed, config.device))
            losses[precision].append(_judge(method, unseen, config.device))
    return {"epochs": epochs, "student_tiles_per_s": rates, "held_out_loss": losses}


def _train(method: Method, rows: Rows, precision: str, epochs: int, seed: int, device: str) -> float:
    """Train; returns tiles/s, the median over log lines."""
    number = len(rows[POSITION]) // BATCH * BATCH
    plan = Plan([number], [0], num_epochs=epochs, seed=seed)
    orders = [np.random.default_rng((seed, epoch)).permutation(len(rows[POSITION]))[:number] for epoch in range(epochs)]
    order = np.concatenate(orders)
    batches = [
        {name: column[order[start : start + BATCH]] for name, column in rows.items()} | {POSITION: start + np.arange(BATCH)}
        for start in range(0, len(order), BATCH)
    ]
    settings = TrainConfig(
        epochs=epochs, batch_size=BATCH, precision=precision, seed=seed, log_every_steps=4, optim=OptimConfig(lr=LR)
    )
    with scratch_folder("csat-bench-") as folder:
        context = TrainContext(batches=lambda _: iter(batches), device=torch.device(device))
        trainer = Trainer(method, plan, context, settings, run_folder=str(folder), tile_px=rows["tile"].shape[1])
        trainer.run()
        method.load_state_dict(trainer.learner.averaged_state())
        return median(line["tiles_per_s"] for line in read_metrics(str(folder)))


@torch.inference_mode()
def _judge(method: Method, rows: Rows, device: str) -> float:
    """Mean loss of a tile, in float32."""
    method.eval()
    sums = []
    for start in range(0, len(rows[POSITION]), BATCH):
        part = {name: column[start : start + BATCH] for name, column in rows.items()}
        for batch in to_batches(part, method, torch.device(device)):
            sums += method.total(method(batch)).tolist()
    return mean(sums)


def _print(name: str, figures: dict[str, Any]) -> None:
    lines = [f"\n{name}, {len(figures['held_out_loss'][FLOAT32])} seeds, {figures['epochs']} epochs"]
    first = median(figures["student_tiles_per_s"][FLOAT32])
    for precision in (FLOAT32, BFLOAT16):
        rates, losses = figures["student_tiles_per_s"][precision], figures["held_out_loss"][precision]
        each = ", ".join(f"{loss:.4f}" for loss in losses)
        lines.append(
            f"  {precision:9} student {median(rates):7.1f} tiles/s (x{median(rates) / first:.2f})   held-out loss "
            f"{mean(losses):.4f} ± {stdev(losses):.4f}   ({each})"
        )
    output.result("\n".join(lines), title=name, figures=figures)
