"""Run folders of version 0.1, made by `old_runs/make.py`: they open, teach, start others and are resumed by today's code."""

import fcntl
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from csat.errors import ConfigError
from csat.model.files import load_exported, read_model_config, save_model
from csat.model.registry import ModelConfig, build_model
from csat.prediction.opening import open_answers
from csat.runs.checkpoints import Checkpoints
from csat.runs.plan import Intervals
from csat.tasks import Task
from teachers.registry import describe_teacher, load_teacher
from tests.support.labelled_folders import fit_alone
from tests.support.labelled_toy import make_info
from workflows import finetune, pretrain

# Written into the runs, and into the fingerprint of their slides: today's code must find the same one. So it cannot be a
# folder of each test run's own, and two that run at once take turns.
ROOT = Path("/tmp/csat-old-runs")


@pytest.fixture(scope="module")
def runs():
    """The folder of all runs, fresh, and nobody else's meanwhile: the lock ends with the process, however that ends."""
    with ROOT.with_suffix(".lock").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        shutil.rmtree(ROOT, ignore_errors=True)
        with tarfile.open(Path(__file__).parent / "old_runs" / "runs.tar.xz") as archive:
            archive.extractall(ROOT, filter="data")
        yield ROOT
        shutil.rmtree(ROOT, ignore_errors=True)


def accounts(run: Path) -> list[dict]:
    return json.loads((run / "accounting.json").read_text())["epochs"]


@pytest.mark.parametrize(
    ("name", "edge_px"),
    [("classifier", 32), ("hovernet", 96), ("coco", 64), ("attention", 32), ("resnet", 32), ("rckd", 64)],
)
def test_models_open_and_answer(runs, name, edge_px):
    model = load_exported(str(runs / name / "exported")).eval()
    with torch.inference_mode():
        responses = model(torch.rand(2, 3, edge_px, edge_px))
    assert responses and all(torch.isfinite(response).all() for response in responses.values())


@pytest.mark.parametrize("name", ["classifier", "hovernet", "coco", "attention", "resnet", "rckd"])
def test_models_are_written_as_they_were(runs, tmp_path, name):
    """Tensor by tensor and key by key: what reads the old folders reads the new ones. What timm reads came later."""
    before = runs / name / "exported"
    config = read_model_config(str(before))
    save_model(load_exported(str(before)), str(tmp_path), config["metadata"])
    now = read_model_config(str(tmp_path))
    assert {key: now[key] for key in config} == config
    for path in before.glob("*.safetensors"):
        if path.name == "backbone.safetensors":
            backbone, others = load_file(path), load_file(tmp_path / "model.safetensors")
            assert all(torch.equal(tensor, others[key]) for key, tensor in backbone.items())
        else:
            assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize(("name", "edge_px"), [("classifier", 32), ("hovernet", 96), ("coco", 64), ("rckd", 64)])
def test_old_models_answer_tiles(runs, name, edge_px):
    answers = open_answers(str(runs / name), tile_px=edge_px)
    said = answers.answer(np.random.default_rng(0).integers(0, 256, (2, edge_px, edge_px, 3), np.uint8))
    assert answers.task and all(said[spec.name].shape == (2, *spec.shape(edge_px)) for spec in answers.specs)


@pytest.mark.parametrize("name", ["classifier", "hovernet", "resnet"])
def test_runs_teach(runs, name):
    assert describe_teacher(str(runs / name)).responses
    assert load_teacher(str(runs / name))


def test_a_fanet_of_other_blocks_is_refused_by_name(runs):
    with pytest.raises(ConfigError, match="earlier fanet.*trained again"):
        describe_teacher(str(runs / "fanet"))


def test_a_run_starts_another(runs):
    info = make_info(Task.CLASSIFICATION)
    config = ModelConfig(name="test_convnext", decoder_channels=8, init="run", from_run=str(runs / "rckd"))
    model = build_model(config, info, load=lambda run: load_exported(f"{run}/exported"))
    before = load_exported(str(runs / "rckd" / "exported")).backbone.state_dict()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.backbone.state_dict().items())


@pytest.mark.parametrize(("name", "verb"), [("rckd", pretrain), ("classifier", finetune), ("coco", finetune)])
def test_rerunning_a_finished_run_is_a_no_op(runs, name, verb, capsys):
    assert verb.main(["--config", str(runs / name / "config.yaml")]) == 0
    assert "nothing to do" in capsys.readouterr().out


def test_a_default_that_has_changed_since_is_told_and_can_be_repeated(runs, capsys):
    """The old run said nothing of alpha_kd, which was 1 then: not another run by stealth."""
    argv = ["--config", str(runs / "attention" / "config.yaml")]
    assert finetune.main(argv) == 2
    assert "method.options.alpha_kd: was 1.0, is 0.0" in capsys.readouterr().err
    assert finetune.main([*argv, "--method.options.alpha_kd", "1.0"]) == 0
    assert "nothing to do" in capsys.readouterr().out
    written = yaml.safe_load((runs / "attention" / "config.yaml").read_text())
    assert written["method"]["options"] == {"alpha_kd": 1.0}
    assert finetune.main(argv) == 0, "from now on it says so itself"


def test_a_stopped_fine_tuning_is_resumed(runs):
    run = runs / "classifier-stopped"
    before = len(Checkpoints(str(run / "checkpoints")).latest_cursor().done)
    fit_alone(yaml.safe_load((run / "config.yaml").read_text()))
    assert 0 < before < sum(row["manifest"] for row in accounts(run))
    assert all(row["manifest"] == row["trained"] for row in accounts(run))


@pytest.mark.ray
@pytest.mark.thorough
def test_a_stopped_pretraining_is_resumed(runs, ray_cluster):
    run = runs / "rckd-stopped"
    cursor = Checkpoints(str(run / "checkpoints")).latest_cursor()
    assert pretrain.main(["--config", str(run / "config.yaml")]) == 0
    total = sum(row["manifest"] for row in accounts(run))
    assert 0 < len(cursor.done) < total
    assert all(row["manifest"] == row["trained"] for row in accounts(run))
    assert Checkpoints(str(run / "checkpoints")).latest_cursor().done.pairs() == Intervals([[0, total]]).pairs()
