"""A method with a first stage, a model, a teacher and a data set as somebody else would write them: outside of the package.

This file is also the module of the data set's layout.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from csat.labels.datasets.contract import Decoded, LabelledSet, Sample
from csat.losses.classes import cross_entropy
from csat.losses.probability import soft_bce
from csat.methods.contract import FirstStage, Method, Setting, Source, check_weights
from csat.model.contract import FEATURES, Layer, Model
from csat.model.parts import BACKBONE, DECODER, HEADS
from csat.responses import Batch, Kind, ResponseSpec, TeacherSpec
from csat.storage import files
from csat.tasks import DatasetInfo, Task
from csat.views.grid import align
from teachers.contract import Teacher, select_responses, sha256_of_settings
from tests.support.labelled_folders import SIZE_PX

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
