"""Does a plan keep its word: five pairs of teacher and student, each planned, trained, and compared with its plan.

Called by benchmark.py (`--stages '["forecast"]'`). Everything is the command that a user gives. Weights are random: they cost
the same as trained ones.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from csat.errors import ConfigError
from csat.slides.synthetic import make_slides
from workflows.rates.config import BenchmarkConfig
from workflows.shell import output

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 1800.0  # of one command
NUM_SLIDES, SLIDE_PX = 4, 3072  # synthetic ones, where none are given
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
    figures = {}
    with tempfile.TemporaryDirectory(prefix="csat-bench-") as scratch:
        made = [] if config.slides else make_slides(Path(scratch, "slides"), num_slides=NUM_SLIDES, size_px=SLIDE_PX)
        slides = list(config.slides) or list(map(str, made))
        for index, (name, pair) in enumerate(PAIRS.items()):
            figures[name] = _measure(pair, slides, Path(scratch, str(index)))
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
        "--train.log_every_steps=4",
        "--manifest.max_holdout_tiles=8",
        "--manifest.chunk_tiles=32",
    ]
    _run([*command, "--plan=true"])
    _run(command)
    plan = json.loads((folder / "plan.json").read_text())["plan"]
    compared = json.loads((folder / "throughput.json").read_text())["predicted"]
    if compared is None:
        raise ConfigError(f"{pair}: the run was over before there was anything to measure: give more slides")
    return {**compared, "bottleneck": plan["bottleneck"]}


def _run(arguments: list[str]) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S
    )
    if done.returncode:
        raise ConfigError(f"{' '.join(arguments)} failed:\n{(done.stdout + done.stderr)[-2000:]}")


def _print(name: str, figures: dict[str, Any]) -> None:
    planned, measured, ratio = (figures[key] for key in ("tiles_per_s", "measured_tiles_per_s", "ratio"))
    told = f"  {name:34} planned {planned:8.2f}  measured {measured:8.2f} tiles/s  x{ratio:.2f}  ({figures['bottleneck']})"
    output.result(told, title=name, figures=figures)
