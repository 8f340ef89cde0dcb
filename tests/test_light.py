"""Who loads which heavy library: what starts often, or answers at once, stays small."""

import json
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
HEAVY = {"timm", "torchvision", "torchmetrics", "ray", "sympy", "torch._dynamo", "matplotlib", "pandas", "openpyxl"}


def run_python(code):
    """What a Python process prints that runs this code; it has `sys`."""
    command = [sys.executable, "-c", f"import sys\n{code}"]
    return subprocess.run(command, check=True, cwd=ROOT, timeout=120, capture_output=True, text=True).stdout


@pytest.mark.parametrize("modules", LIGHT)
def test_what_starts_often_loads_little(modules):
    loaded = run_python(f"import {modules}\nprint(*sorted(sys.modules))").split()
    assert not set(loaded) & set(LIGHT[modules])


@pytest.mark.parametrize("page", PAGES)
def test_a_page_answers_from_its_settings_without_models_and_ray(page):
    """One process gives all answers: what the first of them loads stays loaded, and is told with it."""
    code = f"""
import contextlib, io, json
from workflows import {page}
loaded = {{}}
for answer, arguments in {ANSWERS}.items():
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            code = {page}.main(arguments)
        except SystemExit as end:
            code = end.code
    loaded[answer] = [code or 0, sorted({HEAVY} & sys.modules.keys())]
print(json.dumps(loaded))
"""
    answers = json.loads(run_python(code))
    assert {answer: loaded for answer, (_, loaded) in answers.items()} == dict.fromkeys(ANSWERS, [])
    assert (answers["help"][0], answers["refusal"][0]) == (0, 2)
