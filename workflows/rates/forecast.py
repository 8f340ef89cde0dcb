"""Does a plan keep its word: five pairs of teacher and student, each planned, trained, and compared with its plan.

Called by benchmark.py (`--stages forecast`). Everything is the command that a user gives. Weights are random: they cost
the same as trained ones.
"""

import json
from pathlib import Path
from typing import Any

from csat.errors import ConfigError
from csat.slides.synthetic import make_slides
from workflows.rates.commands import run
from workflows.rates.config import BenchmarkConfig
from workflows.shell import output
from workflows.shell.interruption import scratch_folder

NUM_SLIDES, SLIDE_PX = 4, 3072  # synthetic ones, where none are given: 340 tiles of 256 px
QUICK_SLIDES, QUICK_PX, QUICK_PAIRS = 2, 2048, 1
VIT = {"model": "vit_small_patch16_224", "num_classes": 0, "random_weights": True}
RESNET = {"model": "resnet50", "num_classes": 0, "random_weights": True}
# name → teacher, its options, student
PAIRS: dict[str, tuple[str, dict[str, Any], str]] = {
    "stain → csat_nano": ("stain", {}, "csat_nano"),
    "stain → csat": ("stain", {}, "csat"),
    "hovernet, width 1/4 → csat_nano": ("hovernet", {"random_weights": True, "width": 0.25, "mpp": 0.5}, "csat_nano"),
    "vit_small → resnet18": ("timm", VIT, "resnet18"),
    "resnet50 → convnextv2_atto": ("timm", RESNET, "convnextv2_atto"),
}


def measure_forecasts(config: BenchmarkConfig) -> dict[str, dict[str, float]]:
    """Pair → tiles/s planned and measured, their ratio, and what the plan named as the bottleneck.

    Raises:
        ConfigError: a command failed.
    """
    number, edge_px = (QUICK_SLIDES, QUICK_PX) if config.quick else (NUM_SLIDES, SLIDE_PX)
    pairs = dict(list(PAIRS.items())[: QUICK_PAIRS if config.quick else None])
    figures = {}
    with scratch_folder("csat-bench-") as scratch:
        made = [] if config.slides else make_slides(scratch / "slides", num_slides=number, size_px=edge_px)
        slides = list(config.slides) or list(map(str, made))
        for index, (name, pair) in enumerate(pairs.items()):
            figures[name] = _measure(pair, slides, scratch / str(index))
            _print(name, figures[name])
    return figures


def _measure(pair: tuple[str, dict[str, Any], str], slides: list[str], folder: Path) -> dict[str, Any]:
    teacher, options, student = pair
    command = [
        "workflows/pretrain.py",
        f"--slides={json.dumps(slides)}",
        f"--run_folder={folder}",
        f"--teacher.name={teacher}",
        f"--teacher.options={json.dumps(options)}",
        f"--student.backbone={student}",
        "--data.mpp=0.5",
        "--data.tile_px=224" if teacher == "timm" else "--data.tile_px=256",
        "--train.batch_size=32",
        "--train.log_every_steps=1",
        "--manifest.holdout_fraction=0",
        "--manifest.chunk_tiles=32",
    ]
    run([*command, "--plan=true"])
    run(command)
    plan = json.loads((folder / "plan.json").read_text())["plan"]
    compared = json.loads((folder / "throughput.json").read_text())["predicted"]
    if compared is None:
        raise ConfigError(f"{pair}: the run was over before there was anything to measure: give more slides")
    return {**compared, "bottleneck": plan["bottleneck"]}


def _print(name: str, figures: dict[str, Any]) -> None:
    planned, measured, ratio = (figures[key] for key in ("tiles_per_s", "measured_tiles_per_s", "ratio"))
    told = f"  {name:34} planned {planned:8.2f}  measured {measured:8.2f} tiles/s  x{ratio:.2f}  ({figures['bottleneck']})"
    output.result(told, title=name, figures=figures)
