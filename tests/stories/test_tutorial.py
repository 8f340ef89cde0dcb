"""The commands of docs/tutorial.md, one after the other, as they stand there, on real slides and labels."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"
PAGE = ROOT / "docs" / "tutorial.md"
PUBLIC = ("slides", "lc25000_lung", "consep")  # what the page asks its reader to have

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.skipif(not all((DATA / name).exists() for name in PUBLIC), reason="the slides and labels are not at hand"),
]


def commands() -> list[list[str]]:
    blocks = re.findall(r"```bash\n(.*?)```", PAGE.read_text(), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line.strip()]


def run(arguments: list[str], folder: Path) -> str:
    """What it said on standard output. It has to end well."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled"}
    done = subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{shlex.join(arguments)}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the reader works. Each command finds what those before it left there."""
    folder = tmp_path_factory.mktemp("tutorial")
    (folder / "slides").symlink_to(DATA / "slides")
    (folder / "data").symlink_to(DATA)
    return folder


@pytest.mark.parametrize("command", [pytest.param(each, id=f"{i}-{each[1]}") for i, each in enumerate(commands(), 1)])
def test_a_command_ends_well(folder, command):
    assert command[0] == "csat"
    run(["-m", "workflows", *command[1:]], folder)


def test_what_they_left_is_what_the_page_says(folder):
    for slide in ("CMU-1-Small-Region", "TCGA-V5-A7RE-11A_stitched_pyramid"):
        assert (folder / "out" / "nuclei" / "slides" / slide / "nuclei.geojson.gz").exists()
        assert (folder / "out" / "lung" / "slides" / slide / "heatmap.png").exists()
    for place in ("runs/nuclei", "out/nuclei", "runs/lung", "runs/compared"):
        assert (folder / place / "report.html").exists()
    judged = json.loads((folder / "runs" / "nuclei" / "evaluation.json").read_text())
    assert judged["student_vs_teacher.np.dice"]["value"] > 0.8
    judged = json.loads((folder / "runs" / "lung" / "evaluation.json").read_text())
    assert judged["test"]["balanced_accuracy"]["value"] > 0.6
    exported = {path.name for path in (folder / "exported" / "lung").iterdir()}
    assert exported >= {"README.md", "config.json", "csat_timm.py", "model.onnx", "model.safetensors", "torchscript_model.pt"}


def test_the_lines_of_python_find_nuclei(folder):
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert int(run(["-c", f"{block}\nprint(len(nuclei))"], folder).split()[-1]) > 3
