"""`precision: best` through the whole path, of resolution-based distillation: a teacher of turned, recoloured tiles, DDP.

The teacher is tried both ways, what was decided is kept, and is kept to.
"""

import json

import pytest
import yaml

from csat.model.files import load_exported
from csat.runs.recorder import read_metrics
from tests.support.verbs import HELD_OUT, arguments
from workflows import pretrain

TEACHER = {"model": "resnet18", "outputs": ["tokens", "logits"], "num_classes": 3, "random_weights": True}
SETTINGS = {
    "teacher__name": "timm",
    "teacher__options": json.dumps(TEACHER),
    "method__name": "resolution",
    "student__downsample": 2,
}


def decided(folder):
    config = yaml.safe_load((folder / "config.yaml").read_text())
    return config["teacher"]["options"]["precision"], config["train"]["precision"]


@pytest.mark.ray
@pytest.mark.thorough
def test_a_run_computes_in_what_its_machines_do_best(ray_cluster, slides, tmp_path, monkeypatch, capsys, caplog):
    caplog.set_level("INFO")
    folder = tmp_path / "run"
    more = {**HELD_OUT, "train__epochs": 2, "workers__num_workers": 2, "train__accumulate": 2, "train__log_every_steps": 1}
    monkeypatch.setenv("CSAT_BEST_PRECISION", "bfloat16")
    assert pretrain.main(arguments(slides, folder, **SETTINGS, **more)) == 0
    assert decided(folder) == ("bfloat16", "bfloat16")
    assert "teacher in bfloat16 (" in caplog.text
    record = json.loads((folder / "precision.json").read_text())
    assert 16 <= record["teacher"]["tiles"] <= 32  # of one slide a chunk
    assert {each["response"] for each in record["teacher"]["deviations"]} == {"tokens", "logits"}
    assert all(0 < each["worst"] <= each["bound"] for each in record["teacher"]["deviations"])
    assert set(record["teacher"]["tiles_per_s"]) == {"float32", "bfloat16"}

    _check_resolution(folder)

    (folder / "status.json").write_text('{"state": "interrupted"}')
    monkeypatch.setenv("CSAT_BEST_PRECISION", "float32")  # machines of another kind
    assert pretrain.main(arguments(slides, folder, **SETTINGS, **more)) == 2
    said = capsys.readouterr().err
    assert "began with its teacher in bfloat16, and" in said and "resume it on machines that do" in said
    assert pretrain.main(arguments(slides, folder, **SETTINGS, **more, train__precision="float32")) == 2
    assert "train.precision: was bfloat16, is float32" in capsys.readouterr().err.replace("--", "")
    options = json.dumps(TEACHER | {"precision": "bfloat16"})
    insisting = {**SETTINGS, "teacher__options": options, "train__precision": "bfloat16"}
    assert pretrain.main(arguments(slides, folder, **insisting, **more)) == 0  # slowly, as asked


def _check_resolution(folder):
    """What resolution-based distillation leaves, of tiles of slides and two ranks that accumulate."""
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


@pytest.mark.ray
@pytest.mark.thorough
def test_where_answers_would_differ_too_much_the_teacher_stays_exact(ray_cluster, slides, tmp_path, monkeypatch, caplog):
    """A classifier whose logits all lie about 1,000, where bfloat16 has steps of 4: its probabilities become others."""
    import torch
    from safetensors.torch import save_file

    from teachers.registry import load_teacher

    state = load_teacher("timm", None, TEACHER).net.state_dict()
    state["fc.weight"] = torch.randn(state["fc.weight"].shape, generator=torch.Generator().manual_seed(0))
    state["fc.bias"] = torch.full_like(state["fc.bias"], 1000.0)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "steep.safetensors")
    options = json.dumps({name: value for name, value in TEACHER.items() if name != "random_weights"})
    steep = {**SETTINGS, "teacher__options": options, "teacher__weights": tmp_path / "steep.safetensors"}
    monkeypatch.setenv("CSAT_BEST_PRECISION", "bfloat16")
    caplog.set_level("INFO")
    folder = tmp_path / "run"
    assert pretrain.main(arguments(slides, folder, **steep, plan="true")) == 0
    assert decided(folder) == ("float32", "bfloat16")
    assert "teacher in float32 (logits: " in caplog.text and "more than 0.02 allowed" in caplog.text


def test_a_run_of_an_earlier_version_goes_on_in_float32(tmp_path):
    """Its teacher had no choice, and its settings say nothing about it."""
    from csat.runs.folder import RunFolder
    from workflows.pretraining.config import PretrainConfig
    from workflows.pretraining.precision import as_before, as_begun
    from workflows.shell.config import TeacherConfig

    options = {"model": "resnet18", "random_weights": True}
    config = PretrainConfig(run_folder=str(tmp_path), slides=["x"], teacher=TeacherConfig(name="timm", options=options))
    earlier = {"teacher": {"name": "timm", "options": options}, "train": {"precision": "float32"}}
    folder = RunFolder(str(tmp_path))
    folder.write_text("config.yaml", yaml.safe_dump(earlier))
    assert as_begun(config, folder) == config  # refused for its input: nothing was decided
    folder.set_status("interrupted")
    now = as_begun(config, folder)
    assert now.train.precision == "float32" and now.teacher.options == {**options, "precision": "float32"}
    assert as_before(earlier)["teacher"]["options"] == now.teacher.options
    assert as_before({"teacher": {"name": "stain", "options": {}}}) == {"teacher": {"name": "stain", "options": {}}}
