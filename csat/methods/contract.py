"""What the training loop may know about a method: its parts, its turns, and its named loss terms per tile.

And what methods share in asking a teacher for what they need.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from csat import nuclei
from csat.errors import ConfigError, TeacherError
from csat.model.student import Student, StudentConfig
from csat.responses import Batch, Kind, ResponseSpec, TargetSpec, TeacherSpec
from csat.views.colour import ColourConfig


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
    """Anything that turns (tiles, responses) into named loss terms.

    The loop wraps a method in DDP and calls it, so that everything that is trained is a submodule. Terms come *per tile*: the
    ranks of a step may hold different numbers of tiles (a tile may have been quarantined), so each rank backpropagates the
    sum over its tiles, and gradients are then scaled once by `world / tiles of all ranks`, which is the mean over the tiles.
    A batch has at least one tile: a rank without any passes one of zeros and multiplies its loss by 0.

    Attributes:
        turns: Names of the updates of a step, in order, one optimiser each; `("student",)` for most. All turns of a step get
            the same batches, and what one of them computes a later one may reuse (`Batch.kept`): running a part again would
            move its batch norms' statistics twice.
        has_teacher: It learns from a teacher's responses; else it can't be given one.
        own_optimisers: Turn → its optimiser, where that is not the run's own.
        responses: The responses that this method reads from the teacher; empty for one without a teacher.
        targets: The targets that it reads from the labels; empty for one without labels.
        weights: Weight of every term that `forward` returns, by name.
        view_in_pool: The teacher pool puts tiles in their spatial view before the teacher sees them (`seed` says which
            view), and the method therefore transforms nothing.
        colour_in_pool: The teacher pool changes the colours of tiles by this before the teacher sees them (`seed` says how),
            and the method therefore changes none: teacher and student see the same colours. None: the pool changes none.
        seed: Seed of everything random about a tile.
        takes_any_size: A batch may be whole images (all of one size), and the student's pixels may come by themselves
            (`Batch.student_tiles`). Its constructor then takes `whole`.
    """

    turns: tuple[str, ...] = ("student",)
    has_teacher: bool = True
    own_optimisers: Mapping[str, OwnOptimiser] = MappingProxyType({})
    responses: tuple[ResponseSpec, ...] = ()
    targets: tuple[TargetSpec, ...] = ()
    weights: dict[str, float]
    view_in_pool: bool = False
    colour_in_pool: ColourConfig | None = None
    seed: int = 0
    takes_any_size: bool = False

    @classmethod
    @abstractmethod
    def needs(cls, config: Any, teacher: TeacherSpec) -> tuple[ResponseSpec, ...]:
        """The responses that the method wants of this teacher; known before any model is built.

        Raises:
            TeacherError: the teacher lacks one; names the method's need and what the teacher has.
        """

    @classmethod
    def make_student(cls, config: StudentConfig, responses: Sequence[ResponseSpec]) -> Student:
        """The student that learns these responses; called by methods without labels only."""
        return Student(config, responses)

    @abstractmethod
    def part(self, turn: str) -> nn.Module:
        """The module whose parameters the turn's optimiser owns. Raises KeyError for a turn that is not in `turns`."""

    @abstractmethod
    def forward(self, batch: Batch, turn: str = "student") -> dict[str, Tensor]:
        """Unweighted terms of one turn: name → float32 `[B]`, one value per tile, gradients to that turn's part only."""

    def total(self, terms: dict[str, Tensor]) -> Tensor:
        """Weighted sum of the terms, `[B]`."""
        return sum(self.weights[name] * term for name, term in terms.items())


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
