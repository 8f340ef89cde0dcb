"""A method, a model, a teacher and a data set of somebody else: each is its source and one line in its registry.

Each (`tests/support/outsiders.py`) runs as those of the package do, in this process.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load as load_tensors

from csat.columns import OK, POSITION, READ_S, REASON, STATUS, TILE
from csat.errors import ConfigError
from csat.labels.datasets.registry import DATASETS
from csat.methods.contract import Setting
from csat.methods.registry import METHODS, build_method, build_student
from csat.model.contract import ModelConfig
from csat.model.files import load_exported
from csat.model.parts import BACKBONE
from csat.model.registry import MODELS, build_model
from csat.model.student import StudentConfig
from csat.runs.checkpoints import Checkpoints
from csat.runs.folder import RunFolder
from csat.runs.plan import Plan
from csat.runs.recorder import read_metrics
from csat.storage import files
from csat.tasks import Task
from csat.tiles.grid import TilingConfig
from csat.training.config import TrainConfig
from csat.training.context import TrainContext
from csat.training.loop import Trainer
from csat.training.optim import OptimConfig
from teachers.registry import TEACHERS, describe_teacher, load_teacher
from teachers.stage import TeacherStage
from tests.support import outsiders
from tests.support.labelled_folders import SIZE_PX, data_settings, fit_here, make_folder, taught_settings
from tests.support.labelled_toy import make_info
from tests.support.outsiders import Patchwork, PatchworkOptions, ToneOptions, load_tone, write_notes
from workflows.pretraining.config import PretrainConfig
from workflows.pretraining.first_stage import make_first_job
from workflows.pretraining.job import make_job
from workflows.shell.config import MethodConfig, TeacherConfig

SMALL = {"model": {"name": "unet", "options": {"width": 4, "depth": 2}}, **taught_settings(batch_size=8)}


def run_settings(run_folder, data: dict, *, epochs: int, **more) -> dict:
    train = {"epochs": epochs, "batch_size": 8, "log_every_steps": 1, "optim": {"lr": 0.01, "warmup": 0.0}}
    return {"run_folder": str(run_folder), **SMALL, **data, "train": train, **more}


@pytest.fixture
def tone(monkeypatch):
    monkeypatch.setitem(TEACHERS, "tone", (ToneOptions, load_tone))


def test_a_method_with_a_first_stage(tone, tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(METHODS, "hint", f"{outsiders.__name__}:Hint")
    data = data_settings(str(make_folder(tmp_path / "images")), tile_px=SIZE_PX)
    method = {"name": "hint", "options": {"weights": {"hint": 0.5}, "epochs": 3}}
    settings = run_settings(tmp_path / "run", data, epochs=2, method=method, teacher={"name": "tone"})
    assert fit_here(settings)["test"]

    run = RunFolder(str(tmp_path / "run"))
    lines, first = read_metrics(run.uri), read_metrics(run.path("reader"))
    assert run.is_finished() and {"loss/ce", "loss/hint"} <= lines[-1].keys()
    assert first[-1]["epoch"] == 3 and first[-1]["loss/brightness"] < first[0]["loss/brightness"]
    assert f"the reader ends at {first[-1]['loss/brightness']:.3g}" in caplog.text
    trained = load_tensors(files.read_bytes(run.path("reader", "reader.safetensors")))
    state = Checkpoints(run.path("checkpoints")).load().state["method"]
    assert torch.equal(state["reader.weight"], trained["weight"]), "the method learned with what was trained first"


NUM_TILES = 16
STUDENT = StudentConfig(backbone="csat_nano", decoder_channels=8)
TRAIN = TrainConfig(epochs=4, batch_size=8, log_every_steps=1, optim=OptimConfig(lr=1e-3, warmup=0.0))


def answered_by(stage: TeacherStage, plan: Plan) -> TrainContext:
    """Noise of another brightness on each tile, with what the teacher says of it."""

    def batches(size):
        for start in range(0, plan.num_positions, size):
            positions = np.arange(start, start + size)
            shades = [np.random.default_rng(p).normal(60 + 12 * p, 20, (SIZE_PX, SIZE_PX, 3)) for p in positions % NUM_TILES]
            rows = {POSITION: positions, TILE: np.stack(shades).clip(0, 255).astype(np.uint8)}
            rows |= {STATUS: np.full(size, OK, np.uint8), REASON: np.full(size, "", object)}
            rows |= {READ_S: np.zeros(size, np.float32), "slide": np.full(size, "a.svs", object)}
            yield stage({**rows, "x_px": positions, "y_px": positions})

    return TrainContext(batches)


def test_the_first_stage_of_a_pretraining(tone, tmp_path, monkeypatch):
    """Its job asks the teacher for its own responses, over its own epochs; the run's own comes after it."""
    monkeypatch.setitem(METHODS, "told", f"{outsiders.__name__}:Told")
    method = MethodConfig(name="told", options={"epochs": 3})
    teacher, run = TeacherConfig(name="tone"), RunFolder(str(tmp_path / "run"))
    options = {"student": STUDENT, "method": method, "train": TRAIN, "data": TilingConfig(tile_px=SIZE_PX)}
    config = PretrainConfig(run_folder=run.uri, slides=["a.svs"], teacher=teacher, **options)

    def work(job):
        plan = Plan([NUM_TILES], [0], num_epochs=job.num_epochs, seed=0)
        stage = TeacherStage("tone", wanted=[spec.name for spec in job.stream.responses])
        job = replace(job, stream=replace(job.stream, plan=plan))
        return job.work(answered_by(stage, plan))["tiles"]

    job, methods = make_job(config, describe_teacher("tone"))
    first = make_first_job(job, methods)
    asked = [[spec.name for spec in each.stream.responses] for each in (first, job)]
    assert asked == [["tone"], ["tone", "bright"]] and first.folder == run.path("reader") and not first.is_trained
    assert work(first) == 3 * NUM_TILES
    assert make_first_job(job, methods) is None, "the run has it"
    assert work(job) == 4 * NUM_TILES
    lines, trained = read_metrics(run.uri), load_tensors(files.read_bytes(run.path("reader", "reader.safetensors")))
    assert lines[-1]["loss"] < lines[0]["loss"] and read_metrics(run.path("reader"))[-1]["epoch"] == 3
    assert torch.equal(Checkpoints(run.path("checkpoints")).load().state["method"]["reader.weight"], trained["weight"])


def test_a_model(tmp_path, monkeypatch):
    """Fine-tuned, read from its folder, a teacher with all that it can say, and where others start."""
    monkeypatch.setitem(MODELS, "patchwork", f"{outsiders.__name__}:Patchwork")
    data = data_settings(str(make_folder(tmp_path / "images")), tile_px=SIZE_PX)
    mine = {"name": "patchwork", "options": {"width": 16}}
    optim = {"lr": 0.01, "warmup": 0.0, "layer_decay": 0.5}
    settings = run_settings(tmp_path / "run", data, epochs=4, model=mine)
    settings["train"]["optim"] = optim
    assert fit_here(settings)["test"]["balanced_accuracy"]["value"] > 0.6

    assert {path.name for path in (tmp_path / "run" / "exported").iterdir()} == {"patchwork.safetensors", "config.json"}
    model = load_exported(str(tmp_path / "run"))
    assert isinstance(model, Patchwork) and model.options == PatchworkOptions(width=16) and not model.training

    teacher = load_teacher(str(tmp_path / "run"), options={"features": True, "cam": True})
    assert [(spec.name, spec.stride_px) for spec in teacher.spec.responses] == [
        ("label", None),
        ("features", 4),
        ("cam_at_plus", 4),
        ("cam_at", 4),
    ]
    tiles = np.random.default_rng(0).integers(0, 256, (2, SIZE_PX, SIZE_PX, 3), dtype=np.uint8)
    with torch.no_grad():
        expected = model(model.see(torch.from_numpy(tiles).permute(0, 3, 1, 2)))["label"]
    np.testing.assert_allclose(teacher.respond(tiles)["label"], expected, atol=2e-3, rtol=2e-3)

    taught = {"name": str(tmp_path / "run"), "options": {"features": True, "cam": True}}
    start = {"init": "run", "from_run": str(tmp_path / "run")}
    more = {"method": {"name": "attention"}, "teacher": taught, "model": mine | start}
    assert fit_here(run_settings(tmp_path / "second", data, epochs=1, **more))["test"]
    config = ModelConfig(**mine, **start, transfer="backbone", freeze="backbone")
    started = build_model(config, make_info(Task.SEGMENTATION), load_exported)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in started.tensors_of(BACKBONE).items())
    assert [name for name, parameter in started.named_parameters() if parameter.requires_grad] == [
        "heads.mask.weight",
        "heads.mask.bias",
    ]

    with pytest.raises(ConfigError, match="holds a patchwork, and model.name asks for a unet: name the same model"):
        build_model(ModelConfig(name="unet", init="run", from_run=str(tmp_path / "run")), make_info(), load_exported)


def test_a_teacher(tone, tmp_path):
    """What it says goes through the stage of the pool into a student of method rckd."""
    spec = describe_teacher("tone", None, {"gain": 0.5})
    stage = TeacherStage("tone", None, {"gain": 0.5}, expected_sha256=spec.weights_sha256)
    torch.manual_seed(0)
    student = build_student("rckd", {}, STUDENT, spec)
    method = build_method("rckd", {}, student, Setting(tile_px=SIZE_PX, teacher=spec))
    assert list(method.weights) == ["tone_mse", "bright_bce", "bright_dice"]

    plan = Plan([NUM_TILES], [0], num_epochs=4, seed=0)
    trainer = Trainer(method, plan, answered_by(stage, plan), TRAIN, run_folder=str(tmp_path), tile_px=SIZE_PX)
    assert len(trainer.run().done) == plan.num_positions
    lines = read_metrics(str(tmp_path))
    assert lines[-1]["loss"] < lines[0]["loss"]


def test_a_data_set(tmp_path, monkeypatch):
    monkeypatch.setitem(DATASETS, "notes", outsiders.__name__)
    (tmp_path / "notes").mkdir()
    write_notes(tmp_path / "notes")
    data = {"data": {"sets": {"notes": str(tmp_path / "notes")}, "tile_px": SIZE_PX}}
    figures = fit_here(run_settings(tmp_path / "run", data, epochs=8))
    assert list(figures["classes"]) == ["dim", "bright"]
    assert figures["test"]["balanced_accuracy"]["value"] == 1.0
    model = load_exported(str(tmp_path / "run"))
    shades = torch.stack([torch.full((3, SIZE_PX, SIZE_PX), value / 255) for value in (90, 180)])
    assert model(shades)["label"].argmax(1).tolist() == [0, 1]
