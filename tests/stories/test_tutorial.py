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

pytestmark = [pytest.mark.thorough, pytest.mark.timeout(900)]


def commands() -> list[list[str]]:
    blocks = re.findall(r"```bash\n(.*?)```", PAGE.read_text(), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line.strip()]


def script() -> str:
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return block


@pytest.mark.skipif(not all((DATA / name).exists() for name in PUBLIC), reason="the slides and labels are not at hand")
def test_every_command_does_what_the_page_says(tmp_path):
    (tmp_path / "slides").symlink_to(DATA / "slides")
    (tmp_path / "data").symlink_to(DATA)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled"}
    verbs = []
    for command in commands():
        assert command[0] == "csat"
        verbs.append(command[1])
        done = subprocess.run(
            [sys.executable, "-m", "workflows", *command[1:]], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{shlex.join(command)}\n{done.stderr[-3000:]}"
    assert verbs == ["pretrain", "predict", "finetune", "predict", "evaluate", "export"]

    said = f"{script()}\nprint(len(nuclei))"
    counted = subprocess.run([sys.executable, "-c", said], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert counted.returncode == 0, counted.stderr[-3000:]
    assert int(counted.stdout.split()[-1]) > 3
    for slide in (DATA / "slides").glob("*.[st]*"):
        assert (tmp_path / "out" / "nuclei" / "slides" / slide.stem / "nuclei.geojson.gz").exists()
        assert (tmp_path / "out" / "lung" / "slides" / slide.stem / "heatmap.png").exists()
    for run in ("nuclei", "lung", "compared"):
        assert (tmp_path / "runs" / run / "report.html").exists()
    judged = json.loads((tmp_path / "runs" / "nuclei" / "evaluation.json").read_text())
    assert judged["student_vs_teacher"]["np.dice"]["value"] > 0.8
    judged = json.loads((tmp_path / "runs" / "lung" / "evaluation.json").read_text())
    assert judged["test"]["balanced_accuracy"]["value"] > 0.6
    exported = {path.name for path in (tmp_path / "exported" / "lung").iterdir()}
    assert exported >= {"README.md", "config.json", "csat_timm.py", "model.onnx", "model.safetensors", "torchscript_model.pt"}
