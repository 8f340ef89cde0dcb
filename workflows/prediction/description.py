"""What is known of a model before a tile is read. No torch: it travels to every process of a prediction."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from csat.responses import ResponseSpec, TeacherSpec
from csat.tasks import Task


@dataclass(frozen=True, kw_only=True)
class Description:
    """A model; see `csat.prediction.answers.Answers`.

    Attributes:
        overlap_px: By how much neighbouring tiles have to overlap, tile pixels.
        about: `csat.prediction.answers.About`, as a mapping.
    """

    specs: tuple[ResponseSpec, ...]
    tile_px: int
    mpp: float | None
    task: Task | None
    classes: tuple[str, ...]
    overlap_px: int
    about: dict[str, Any]

    @property
    def name(self) -> str:
        return self.about["name"]

    def spec(self, name: str) -> ResponseSpec | None:
        """What it answers under that name; None: nothing."""
        return next((spec for spec in self.specs if spec.name == name), None)

    @property
    def crop_px(self) -> int:
        """Tile pixels on each side that its maps leave out."""
        return max((spec.crop_px for spec in self.specs if spec.is_dense), default=0)

    def as_teacher(self, wanted: Sequence[str]) -> TeacherSpec:
        """The same, of some of its answers, as the stage takes it that answers tiles (`teachers.stage.TeacherStage`)."""
        return TeacherSpec(
            name=self.name,
            responses=tuple(spec for spec in self.specs if spec.name in wanted),
            mpp=self.mpp,
            weights_sha256=self.about["sha256"],
            licence=self.about["licence"],
            source=self.about["source"],
        )
