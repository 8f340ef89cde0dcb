"""A method, a model, a teacher and a data set of somebody else: each is what is in this file and one line in its registry.

Each runs as those of the package do, in this process.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from csat.columns import OK, POSITION, READ_S, REASON, STATUS, TILE
from csat.errors import ConfigError
from csat.export.folder import load_exported
from csat.labels.datasets.contract import Decoded, LabelledSet, Sample
from csat.labels.datasets.registry import DATASETS
from csat.losses.classes import cross_entropy
from csat.losses.probability import soft_bce
from csat.methods.contract import FirstStage, Method, Setting, Source, check_weights
from csat.methods.registry import METHODS, build_method, build_student
from csat.model.contract import FEATURES, Layer, Model, ModelConfig
from csat.model.parts import BACKBONE, DECODER, HEADS
from csat.model.registry import MODELS, build_model
from csat.model.student import StudentConfig
from csat.responses import Batch, Kind, ResponseSpec, TeacherSpec
from csat.runs.checkpoints import Checkpoints
from csat.runs.folder import RunFolder
from csat.runs.plan import Plan
from csat.runs.recorder import read_metrics
from csat.storage import files
from csat.tasks import DatasetInfo, Task
from csat.tiles.grid import TilingConfig
from csat.training.config import TrainConfig
from csat.training.context import TrainContext
from csat.training.loop import Trainer
from csat.training.optim import OptimConfig
from csat.views.grid import align
from teachers.contract import Teacher, select_responses, sha256_of_settings
from teachers.registry import TEACHERS, describe_teacher, load_teacher
from teachers.stage import TeacherStage
from tests.support.labelled_folders import SIZE_PX, data_settings, fit_here, make_folder, taught_settings
from tests.support.labelled_toy import make_info
from workflows.pretraining.config import PretrainConfig
from workflows.pretraining.first_stage import make_first_job
from workflows.pretraining.job import make_job
from workflows.shell.config import MethodConfig, TeacherConfig

# ------------------------------------------------------------------------------------------------------------- the method


@dataclass(frozen=True, kw_only=True)
class HintConfig:
    """How much the hint counts, and for how long its reader learns."""

    weights: dict[str, float] = field(default_factory=dict)  # by term: ce, hint
    epochs: int = 2  # of the reader

    def __post_init__(self):
        check_weights(self.weights)


class Reading(Method):
    """Trains the reader of a hint: it says how bright a tile is, from what the teacher says."""

    Config = dict

    def __init__(self, config: dict, model: nn.Module, setting: Setting):
        super().__init__(config, model, setting)
        self.reader = model.requires_grad_(True)
        self.weights = {"brightness": 1.0}

    @classmethod
    def wanted(cls, config: dict, teacher: TeacherSpec) -> tuple[ResponseSpec, ...]:
        return (teacher.response("tone"),)

    def part(self, turn: str) -> nn.Module:
        return {"student": self.reader}[turn]

    def forward(self, batch: Batch, turn: str = "student") -> dict[str, Tensor]:
        said = self.reader(self.responses_in(batch)["tone"].float())[:, 0]
        return {"brightness": (said - batch.tiles.float().mean((1, 2, 3)) / 255).square()}


class Reader(FirstStage):
    """The reader as what is trained first, and its one file."""

    name = "reader"

    def __init__(self, reader: nn.Module, setting: Setting, epochs: int):
        self.reader, self.setting, self.epochs = reader, setting, epochs

    def make_method(self) -> Reading:
        return Reading({}, self.reader, self.setting)

    def is_in(self, folder: str) -> bool:
        return files.exists(files.join(folder, "reader.safetensors"))

    def save(self, folder: str) -> None:
        files.write_bytes(files.join(folder, "reader.safetensors"), save_tensors(self.reader.state_dict()))

    def load(self, folder: str) -> None:
        self.reader.load_state_dict(load_tensors(files.read_bytes(files.join(folder, "reader.safetensors"))))
        self.reader.requires_grad_(False)

    def warning(self, figures: Mapping[str, float]) -> str | None:
        return f"the reader ends at {figures['loss/brightness']:.3g}"


class Hint(Method):
    """Classifies by labels, and takes a hint: class 1 is as likely as the tile is bright."""

    Config = HintConfig
    learns_from = Source.RESPONSES | Source.LABELS

    def __init__(self, config: HintConfig, model: nn.Module, setting: Setting):
        super().__init__(config, model, setting)
        self.model, self.reader = model, nn.Linear(3, 1).requires_grad_(False)
        self.weights = self.weigh(("ce", "hint"))

    @classmethod
    def wanted(cls, config: HintConfig, teacher: TeacherSpec) -> tuple[ResponseSpec, ...]:
        return (teacher.response("tone"),)

    def first_stage(self) -> Reader:
        return Reader(self.reader, self.setting, self.config.epochs)

    def part(self, turn: str) -> nn.Module:
        return {"student": self.model}[turn]

    def forward(self, batch: Batch, turn: str = "student") -> dict[str, Tensor]:
        logits = self.model(batch.tiles.float() / 255)["label"].float()
        hint = self.reader(self.responses_in(batch)["tone"].float())[:, 0]
        return {
            "ce": cross_entropy(logits, batch.targets["label"]),
            "hint": (logits.softmax(1)[:, 1] - hint).square(),
        }


class Told(Method):
    """Learns, without labels, what the reader reads in the teacher's tone, and which pixels are bright."""

    Config = HintConfig

    def __init__(self, config: HintConfig, model: nn.Module, setting: Setting):
        super().__init__(config, model, setting)
        self.student, self.reader = model, nn.Linear(3, 1).requires_grad_(False)
        self.weights = self.weigh(("read", "bright"))

    @classmethod
    def wanted(cls, config: HintConfig, teacher: TeacherSpec) -> tuple[ResponseSpec, ...]:
        return teacher.response("tone"), teacher.response("bright")

    def first_stage(self) -> Reader:
        return Reader(self.reader, self.setting, self.config.epochs)

    def part(self, turn: str) -> nn.Module:
        return {"student": self.student}[turn]

    def forward(self, batch: Batch, turn: str = "student") -> dict[str, Tensor]:
        ours, theirs = self.student(batch.tiles.float() / 255), self.responses_in(batch)
        bright = align(ours["bright"], self.responses[1], self.setting.tile_px)
        return {
            "read": (self.reader(ours["tone"].float()) - self.reader(theirs["tone"].float())).square()[:, 0],
            "bright": soft_bce(bright, theirs["bright"]),
        }


# -------------------------------------------------------------------------------------------------------------- the model


@dataclass(frozen=True, kw_only=True)
class PatchworkOptions:
    """Of `name: patchwork`."""

    width: int = 8  # channels


class Patchwork(Model):
    """Patches of 4 px that see their neighbours; a class is said of their mean."""

    kind = "patchwork"
    Options = PatchworkOptions
    weights_file = "patchwork.safetensors"
    step_px = 4

    def __init__(self, options: PatchworkOptions, responses: Sequence[ResponseSpec]):
        super().__init__(options, responses)
        self.patches = nn.Conv2d(3, options.width, 4, 4)
        self.mix = nn.Conv2d(options.width, options.width, 3, padding=1)
        self.heads = nn.ModuleDict({spec.name: nn.Linear(options.width, spec.channels) for spec in responses})

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.tap(images, ())[1]

    @property
    def layers(self) -> dict[str, Layer]:
        return {FEATURES: Layer(channels=self.options.width, stride_px=4, has_verdict=True)}

    def tap(self, images: Tensor, layers: Iterable[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        features = self.mix(self.patches(images - 0.5).relu())
        return {name: features for name in layers}, {
            spec.name: self.heads[spec.name](features.mean((2, 3))) for spec in self.responses
        }

    def parts(self) -> dict[str, list[nn.Module]]:
        return {BACKBONE: [self.patches, self.mix], DECODER: [], HEADS: list(self.heads.values())}

    def backbone_layers(self) -> dict[str, int]:
        return {name: int(name.startswith("mix")) for name in self.tensors_of(BACKBONE)}


# ------------------------------------------------------------------------------------------------------------ the teacher


@dataclass(frozen=True, kw_only=True)
class ToneOptions:
    """Settings of the teacher."""

    gain: float = 1.0  # of what it says


class ToneTeacher(Teacher):
    """`tone` is the mean colour, `bright` which pixels are lighter than most."""

    def __init__(self, options: ToneOptions, wanted):
        responses = (
            ResponseSpec(name="tone", kind=Kind.REGRESSION, channels=3, stride_px=None),
            ResponseSpec(name="bright", kind=Kind.PROBABILITY, channels=1),
        )
        self.options = options
        self.spec = TeacherSpec(
            name="tone",
            responses=select_responses(responses, wanted, teacher="tone"),
            mpp=None,
            weights_sha256=sha256_of_settings(options, version=1),
        )

    def respond(self, tiles):
        answers = {
            "tone": self.options.gain * tiles.mean((1, 2)) / 255,
            "bright": (tiles.mean(3) > 150)[:, None],
        }
        return {spec.name: answers[spec.name].astype(np.float16) for spec in self.spec.responses}


def load_tone(options, *, weights, device, wanted):
    return ToneTeacher(options, wanted)


# ----------------------------------------------------------------------------------------------------------- the data set


TASKS = (Task.CLASSIFICATION,)


def read(root, *, task, options):
    """`notes.txt` says of every image its patient and its class."""
    lines = [line.split() for line in files.read_bytes(files.join(root, "notes.txt")).decode().splitlines()]
    samples = [
        Sample(key=name, layout="notes", image=files.join(root, name), group=patient, label=int(label))
        for name, patient, label in lines
    ]
    info = DatasetInfo(
        name="notes", task=task, classes=("dim", "bright"), mpp=None, licence="none", source="this test", group="patient"
    )
    return LabelledSet(info, tuple(sorted(samples, key=lambda sample: sample.key)))


def load(sample):
    with files.open_input(sample.image) as stream:
        return Decoded(image=np.asarray(Image.open(stream).convert("RGB")))


def write_notes(folder):
    """Twelve patients with two images each; the class is how light they are."""
    rng, lines = np.random.default_rng(0), []
    for number in range(24):
        label = number // 2 % 2
        pixels = rng.normal(90 + 90 * label, 20, (SIZE_PX, SIZE_PX, 3)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
        lines.append(f"{number:02}.png patient{number // 2} {label}")
    (folder / "notes.txt").write_text("\n".join(lines))


# -------------------------------------------------------------------------------------------------------------- they run

SMALL = {"model": {"name": "unet", "options": {"width": 4, "depth": 2}}, **taught_settings(batch_size=8)}


def run_settings(run_folder, data: dict, *, epochs: int, **more) -> dict:
    train = {"epochs": epochs, "batch_size": 8, "log_every_steps": 1, "optim": {"lr": 0.01, "warmup": 0.0}}
    return {"run_folder": str(run_folder), **SMALL, **data, "train": train, **more}


@pytest.fixture
def tone(monkeypatch):
    monkeypatch.setitem(TEACHERS, "tone", (ToneOptions, load_tone))


def test_a_method_with_a_first_stage(tone, tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(METHODS, "hint", f"{__name__}:Hint")
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
    monkeypatch.setitem(METHODS, "told", f"{__name__}:Told")
    method = MethodConfig(name="told", options={"epochs": 3})
    teacher, run = TeacherConfig(name="tone"), RunFolder(str(tmp_path / "run"))
    options = {"student": STUDENT, "method": method, "train": TRAIN, "data": TilingConfig(tile_px=SIZE_PX)}
    config = PretrainConfig(run_folder=run.uri, slides=["a.svs"], teacher=teacher, **options)

    def work(job):
        plan = Plan([NUM_TILES], [0], num_epochs=job.num_epochs, seed=0)
        stage = TeacherStage("tone", wanted=[spec.name for spec in job.stream.responses])
        job = replace(job, stream=replace(job.stream, plan=plan))
        return job.work(answered_by(stage, plan))["tiles"]

    job, method = make_job(config, describe_teacher("tone"))
    first = make_first_job(job, method)
    asked = [[spec.name for spec in each.stream.responses] for each in (first, job)]
    assert asked == [["tone"], ["tone", "bright"]] and first.folder == run.path("reader") and not first.is_trained
    assert work(first) == 3 * NUM_TILES
    assert make_first_job(job, method) is None, "the run has it"
    assert work(job) == 4 * NUM_TILES
    lines, trained = read_metrics(run.uri), load_tensors(files.read_bytes(run.path("reader", "reader.safetensors")))
    assert lines[-1]["loss"] < lines[0]["loss"] and read_metrics(run.path("reader"))[-1]["epoch"] == 3
    assert torch.equal(Checkpoints(run.path("checkpoints")).load().state["method"]["reader.weight"], trained["weight"])


def test_a_model(tmp_path, monkeypatch):
    """Fine-tuned, read from its folder, a teacher with all that it can say, and where others start."""
    monkeypatch.setitem(MODELS, "patchwork", f"{__name__}:Patchwork")
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
    monkeypatch.setitem(DATASETS, "notes", __name__)
    (tmp_path / "notes").mkdir()
    write_notes(tmp_path / "notes")
    data = {"data": {"sets": {"notes": str(tmp_path / "notes")}, "tile_px": SIZE_PX}}
    figures = fit_here(run_settings(tmp_path / "run", data, epochs=8))
    assert list(figures["classes"]) == ["dim", "bright"]
    assert figures["test"]["balanced_accuracy"]["value"] == 1.0
    model = load_exported(str(tmp_path / "run"))
    shades = torch.stack([torch.full((3, SIZE_PX, SIZE_PX), value / 255) for value in (90, 180)])
    assert model(shades)["label"].argmax(1).tolist() == [0, 1]
