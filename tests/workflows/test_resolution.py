"""Resolution-based distillation through the whole path: slides, a teacher of turned, recoloured tiles, DDP, evaluation."""

import json

import pytest

from csat.export import load_exported
from csat.training.recorder import read_metrics
from tests.workflows.conftest import arguments
from workflows import pretrain

TEACHER = {"model": "resnet18", "outputs": ["tokens", "logits"], "num_classes": 3, "random_weights": True}
SETTINGS = {
    "teacher__name": "timm",
    "teacher__options": json.dumps(TEACHER),
    "method__name": "resolution",
    "student__downsample": 2,
}


def test_a_teacher_that_has_no_logits_is_refused(tmp_path, slides, capsys):
    assert pretrain.main(arguments(slides, tmp_path / "run", method__name="resolution")) == 2
    message = capsys.readouterr().err
    assert "resolution needs logits" in message and "teacher 'stain' does not give; it gives: np" in message


def test_a_factor_that_does_not_divide_the_tile_is_refused(tmp_path, slides, capsys):
    assert pretrain.main(arguments(slides, tmp_path / "run", **{**SETTINGS, "student__downsample": 8})) == 2
    assert "multiple of 128 px (stride 16 x downsample 8), not 64 px: set --data.tile_px to 128" in capsys.readouterr().err


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_whole_path(ray_cluster, slides, tmp_path):
    folder = tmp_path / "run"
    options = {"train__epochs": 2, "workers__num_workers": 2, "train__accumulate": 2, "train__log_every_steps": 1}
    assert pretrain.main(arguments(slides, folder, **SETTINGS, **options)) == 0
    lines = read_metrics(str(folder))
    assert {"loss/soft", "loss/pix"} <= lines[0].keys()
    assert lines[-1]["loss"] < lines[0]["loss"]
    evaluation = json.loads((folder / "evaluation.json").read_text())
    assert {"student_vs_teacher.logits.agreement", "student_vs_teacher.tokens.cosine"} <= evaluation.keys()
    student = load_exported(str(folder / "exported"))
    assert {spec.name for spec in student.responses} == {"tokens", "logits"}
    assert student.config.downsample == 2 and student.last_map == ("tokens",)
    for epoch in json.loads((folder / "accounting.json").read_text())["epochs"]:
        assert epoch["trained"] == epoch["manifest"] > 0
