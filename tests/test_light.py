"""Who loads which heavy library: what starts often, or answers at once, stays small."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TORCH = ("torch", "timm", "torchvision", "torchmetrics")
# Modules → what importing them must not load.
LIGHT = {
    # What the readers of a stream import, and Ray's coordinator of it, which imports the classes of all its stages.
    "csat.tiles.planned_reader, teachers.stage, teachers.cached_stage": (
        *(*TORCH, "ray", "skimage", "matplotlib", "openpyxl"),
        *("cv2", "jsonargparse"),
    ),
    "csat.labels.reader, csat.labels.sets": (*TORCH, "ray", "matplotlib", "openpyxl"),
    # Tiling is many processes that each live for seconds; so is decoding, and asking how far a run is.
    "workflows.shell.tile_slides": (*TORCH, "pandas", "scipy", "skimage", "matplotlib", "openpyxl"),
    # What Ray Train's controller imports to make a stream and the process group: the first step waits for it.
    "workflows.pretraining.stream, workflows.shell.process_group": (
        *(*TORCH, "scipy", "skimage", "csat.tiles.tiling", "matplotlib", "openpyxl"),
    ),
    "workflows.shell.decode_samples": (*TORCH, "matplotlib", "openpyxl"),
    "csat.evaluation.scores": (*TORCH, "ray", "matplotlib", "openpyxl"),
    "csat.runs.checkpoints, csat.runs.folder, workflows.shell.kept": (*TORCH, "ray", "matplotlib"),
}


PAGES = sorted(path.stem for path in (ROOT / "workflows").glob("*.py") if not path.stem.startswith("_"))
# What a page answers from its settings alone.
ANSWERS = {"help": ["--help"], "print_config": ["--print_config"], "refusal": ["--no_such_setting", "1"]}


def loaded_by(code):
    """Modules that a Python process has loaded after this code."""
    shown = f"import sys\n{code}\nprint(*sorted(sys.modules))"
    command = [sys.executable, "-c", shown]
    return set(subprocess.run(command, check=True, cwd=ROOT, timeout=120, capture_output=True, text=True).stdout.split())


@pytest.mark.parametrize("modules", LIGHT)
def test_what_starts_often_loads_little(modules):
    assert not loaded_by(f"import {modules}") & set(LIGHT[modules])


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("page", PAGES)
def test_a_page_answers_from_its_settings_without_models_and_ray(page, answer):
    code = f"""
import contextlib, io
from workflows import {page}
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    {page}.main({ANSWERS[answer]})
"""
    heavy = {"timm", "torchvision", "torchmetrics", "ray", "sympy", "torch._dynamo", "matplotlib", "pandas", "openpyxl"}
    assert not loaded_by(code) & heavy
