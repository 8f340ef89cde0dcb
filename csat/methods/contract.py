"""What every method is (`Method`), what it is told about its run (`Setting`), and what may have to be trained before it
(`FirstStage`).

A method is one file (a folder, where it has a first stage) with a config dataclass and a class, and one line in
`csat/methods/registry.py`. The class says all that the rest of the system may know: what it learns from, which responses it
wants of a teacher, its parts and turns, and its named loss terms per tile.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Flag, auto
from types import MappingProxyType
from typing import Any, ClassVar

from torch import Tensor, nn

from csat import nuclei
from csat.errors import ConfigError, TeacherError
from csat.model.contract import Model
from csat.model.student import Student, StudentConfig
from csat.panel import names_of, split_name
from csat.responses import Batch, Kind, ResponseSpec, TargetSpec, TeacherSpec
from csat.storage import files
from csat.tasks import DatasetInfo, targets_of
from csat.views.colour_config import ColourConfig

DEFAULT_WEIGHT = 1.0  # of a term that the settings do not name


class Source(Flag):
    """What a method learns from."""

    RESPONSES = auto()  # what a teacher says
    LABELS = auto()  # what a person marked


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is known about the run around a method."""

    tile_px: int  # edge of the tiles; of whole images, what their edges are multiples of
    teacher: TeacherSpec | None = None  # whose responses come; None: there are none
    data: DatasetInfo | None = None  # task and classes of the labels; None: there are none
    class_counts: tuple[int, ...] | None = None  # training samples by class; None where a sample has no class
    whole: bool = False  # images of any size come, not tiles
    seed: int = 0  # of the run
    teacher_weights: Mapping[str, float] = field(default_factory=dict)  # of several teachers: all of one's terms times this


@dataclass(frozen=True, kw_only=True)
class OwnOptimiser:
    """The optimiser of a turn that a method's paper fixes, in the place of the run's own: no clipping, no warm-up."""

    lr: float  # at the start
    kind: str = "adam"  # adam, or sgd
    betas: tuple[float, float] = (0.9, 0.999)  # of adam
    momentum: float = 0.9  # of sgd
    weight_decay: float = 0.0  # added to the gradient, of all parameters
    power: float = 0.9  # of the schedule: lr x (1 - progress)^power

    def lr_at(self, progress: float) -> float:
        """Learning rate of the step before which `progress` (0 … 1) of the run's tiles are done: the first has all of `lr`."""
        return self.lr * max(0.0, 1.0 - progress) ** self.power


class Method(nn.Module, ABC):
    """Anything that turns (tiles, responses, labels) into named loss terms.

    The loop wraps a method in DDP and calls it, so that everything that is trained is a submodule. Terms come *per tile*: the
    ranks of a step may hold different numbers of tiles (a tile may have been quarantined), so each rank backpropagates the
    sum over its tiles, and gradients are then scaled once by `world / tiles of all ranks`, which is the mean over the tiles.
    A batch has at least one tile: a rank without any passes one of zeros and multiplies its loss by 0.

    A subclass says on the class:
        Config: Frozen dataclass of its settings. A field `seed` (None: the run's) lets the user choose the seed.
        learns_from: What it learns from; it is refused where that is missing.
        changed_defaults: Options of `Config` whose default has changed: what it was, and what it is. Runs that were recorded
            before the change keep what they began with, and config.yaml spells these options out.
        takes_any_size: A batch may be whole images (all of one size), and the student's pixels may come by themselves
            (`Batch.student_tiles`).
        turns: Names of the updates of a step, in order, one optimiser each; `("student",)` for most. All turns of a step get
            the same batches, and what one of them computes a later one may reuse (`Batch.kept`): running a part again would
            move its batch norms' statistics twice.

    Attributes:
        config: As given.
        setting: As given.
        responses: The responses that it reads from the teacher (`wanted`); empty for one without a teacher.
        targets: The targets that it reads from the labels; empty for one without labels.
        weights: Weight of every term that `forward` returns, by name.
        teachers: Names of the teachers, where there are several; see `csat.panel`.
        teacher_of_term: Term → teacher, where there are several: `weigh` finds it.
        own_optimisers: Turn → its optimiser, where that is not the run's own.
        view_in_pool: The teacher pool puts tiles in their spatial view before the teacher sees them (`seed` says which
            view), and the method therefore transforms nothing.
        colour_in_pool: The teacher pool changes the colours of tiles by this before the teacher sees them (`seed` says how),
            and the method therefore changes none: teacher and student see the same colours. None: the pool changes none.
        seed: Seed of everything random about a tile.
    """

    Config: ClassVar[type]
    learns_from: ClassVar[Source] = Source.RESPONSES
    changed_defaults: ClassVar[Mapping[str, tuple[Any, Any]]] = MappingProxyType({})
    takes_any_size: ClassVar[bool] = False
    turns: tuple[str, ...] = ("student",)
    own_optimisers: Mapping[str, OwnOptimiser] = MappingProxyType({})
    weights: dict[str, float]
    view_in_pool: bool = False
    colour_in_pool: ColourConfig | None = None

    def __init__(self, config: Any, model: Model, setting: Setting):
        """A subclass calls this first, makes `model` a submodule under a name of its choice, and sets `weights`.

        Args:
            config: Of the class's `Config`.
            model: What is trained, on the CPU: images float `[B, 3, H, W]` in [0, 1], as `model.see` gives them → raw
                predictions by name. A method says what else it asks of it.
            setting: The run around it.

        Raises:
            ConfigError: the setting lacks what the method learns from, or a response does not fit the tile.
            TeacherError: the teacher does not give what the method wants.
        """
        super().__init__()
        self.config, self.setting = config, setting
        own_seed = getattr(config, "seed", None)
        self.seed: int = setting.seed if own_seed is None else own_seed
        for source, given in ((Source.RESPONSES, setting.teacher), (Source.LABELS, setting.data)):
            if source in self.learns_from and given is None:
                raise ConfigError(f"{type(self).__name__} learns from {source.name.lower()}, and this run has none")
        self.responses: tuple[ResponseSpec, ...] = ()
        if Source.RESPONSES in self.learns_from:
            self.responses = tuple(self.wanted(config, setting.teacher))
        self.teachers = names_of(setting.teacher) if self.responses else ()
        self.teacher_of_term: dict[str, str] = {}
        self.targets: tuple[TargetSpec, ...] = targets_of(setting.data) if Source.LABELS in self.learns_from else ()
        for spec in self.responses:
            spec.shape(setting.tile_px)

    @classmethod
    def wanted(cls, config: Any, teacher: TeacherSpec) -> tuple[ResponseSpec, ...]:
        """The responses that the method wants of this teacher; known before any model is built.

        Raises:
            TeacherError: the teacher lacks one; names the method's need and what the teacher has.
        """
        return ()

    @classmethod
    def make_student(cls, config: StudentConfig, responses: Sequence[ResponseSpec]) -> Student:
        """The student that learns these responses, where there are no labels that say what its heads are."""
        return Student(config, responses)

    def first_stage(self) -> "FirstStage | None":
        """What has to be trained before this method can learn; None: nothing."""
        return None

    @abstractmethod
    def part(self, turn: str) -> nn.Module:
        """The module whose parameters the turn's optimiser owns. Raises KeyError for a turn that is not in `turns`."""

    @abstractmethod
    def forward(self, batch: Batch, turn: str = "student") -> dict[str, Tensor]:
        """Unweighted terms of one turn: name → float32 `[B]`, one value per tile, gradients to that turn's part only."""

    def total(self, terms: dict[str, Tensor]) -> Tensor:
        """Weighted sum of the terms, `[B]`."""
        return sum(self.weights[name] * term for name, term in terms.items())

    def weigh(self, terms: Sequence[str], learned: Mapping[str, str] | None = None) -> dict[str, float]:
        """The weight of every term: as `config.weights` has it by name, else 1; times that of its teacher.

        Args:
            learned: Term → the response that it compares; all of them, where there may be several teachers.

        Raises:
            ConfigError: a weight without a term, or every weight is 0; several teachers, and nothing is said of terms.
        """
        weights: Mapping[str, float] = self.config.weights
        if unknown := [name for name in weights if name not in terms]:
            raise ConfigError(f"weights name no term of this run: {', '.join(unknown)}; its terms are: {', '.join(terms)}")
        if self.teachers and learned is None:
            raise ConfigError(f"{type(self).__name__} learns from one teacher: give it by teacher, not by teachers")
        if self.teachers:
            self.teacher_of_term = {term: split_name(learned[term])[0] for term in terms}
        of_teachers = {term: self.setting.teacher_weights.get(name, 1.0) for term, name in self.teacher_of_term.items()}
        weighed = {term: float(weights.get(term, DEFAULT_WEIGHT)) * of_teachers.get(term, 1.0) for term in terms}
        if not any(weighed.values()):
            raise ConfigError("every weight is 0: nothing would be learned")
        return weighed

    def responses_in(self, batch: Batch) -> dict[str, Tensor]:
        """The responses that the method wants, by name, as they came.

        Raises:
            TeacherError: one is missing from the batch, or not of the shape that its spec says for tiles of this size.
        """
        height, width = batch.tiles.shape[2:]
        size = height if height == width else f"{height} x {width}"
        picked = {}
        for spec in self.responses:
            expected = (len(batch), *spec.shape((height, width)))
            response = batch.responses.get(spec.name)
            if response is None or tuple(response.shape) != expected:
                came = "nothing" if response is None else f"{list(response.shape)}"
                raise TeacherError(f"response {spec.name!r} of a {size} px tile must be {list(expected)}, got {came}")
            picked[spec.name] = response
        return picked


class FirstStage(ABC):
    """Modules of a method that have to be trained before it, over the same tiles and with responses of the same teacher.

    It is trained as a method is, with the run's settings but for the epochs, and has a folder of its own in the run's, with
    checkpoints and metrics: interrupted and started again, it resumes.

    Attributes:
        name: Of its folder in the run's.
        epochs: Visits of every tile.
        given: URI of a folder where an earlier run left what it trained; None: this run trains it.
    """

    name: str
    epochs: int
    given: str | None = None

    def folder(self, run_folder: str) -> str:
        """URI of the folder with what was trained: the one that the settings name, or the run's own."""
        return self.given or files.join(run_folder, self.name)

    def is_missing(self, run_folder: str) -> bool:
        """Whether the run has to train it."""
        return self.given is None and not self.is_in(self.folder(run_folder))

    @abstractmethod
    def make_method(self) -> Method:
        """The method that trains the modules; they become trainable."""

    @abstractmethod
    def is_in(self, folder: str) -> bool:
        """Whether the folder holds trained modules, all of them."""

    @abstractmethod
    def save(self, folder: str) -> None:
        """Write the trained modules. What marks the folder complete comes last."""

    @abstractmethod
    def load(self, folder: str) -> None:
        """Put a folder's tensors into the modules, and freeze these.

        Raises:
            ConfigError: there are none, or those of another teacher or student.
        """

    def warning(self, figures: Mapping[str, Any]) -> str | None:
        """What a user should know about how it went.

        Args:
            figures: The last line of its metrics, empty where there is none.
        """
        return None


def check_weights(weights: Mapping[str, Any]) -> None:
    """Weights of terms, as settings have them. Raises ConfigError for one that is no number of 0 or more."""
    for term, weight in weights.items():
        if not isinstance(weight, int | float) or not weight >= 0 or not math.isfinite(weight):
            raise ConfigError(f"weights.{term} must be a number of 0 or more, not {weight!r}")


def pick_responses(
    method: str, wanted: Sequence[tuple[str, Kind, bool]], teacher: TeacherSpec, *, hint: str
) -> tuple[ResponseSpec, ...]:
    """The wanted responses of a teacher, in that order.

    Args:
        method: Its name, for the message.
        wanted: Name, kind, and whether it is a map (of the whole tile) or one vector.
        teacher: Whose they are.
        hint: How to get such a teacher, for the message.

    Raises:
        TeacherError: the teacher lacks one; names it and what the teacher gives.
    """
    given = {spec.name: spec for spec in teacher.responses}
    for name, kind, is_dense in wanted:
        spec = given.get(name)
        if spec is None or spec.kind != kind or spec.is_dense != is_dense or spec.crop_px:
            have = ", ".join(f"{spec.name} ({spec.kind}, {spec.channels} ch)" for spec in teacher.responses) or "nothing"
            form = "a map of the whole tile" if is_dense else "one vector for the tile"
            raise TeacherError(
                f"method {method} needs the response {name!r} ({kind}, {form}), which teacher {teacher.name!r} does not give; "
                f"it gives: {have}. {hint}"
            )
    return tuple(given[name] for name, _, _ in wanted)


def check_same_classes(spec: ResponseSpec, classes: Sequence[str], *, remedy: str) -> None:
    """Channels are compared with the data's classes one by one. Raises ConfigError where they are others."""
    if spec.channels != len(classes) or (spec.channel_names and not nuclei.are_same(spec.channel_names, classes)):
        raise ConfigError(
            f"the teacher's classes are {', '.join(spec.channel_names) or spec.channels}, and those of the data "
            f"{', '.join(classes)}: {remedy}"
        )
