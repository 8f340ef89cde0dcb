"""Resolution-based distillation: the student learns from a fraction of the pixels what the teacher says at full resolution.

DiPalma et al. 2021 (arXiv 2101.04170; Artificial Intelligence in Medicine 2021). The teacher sees the tile; the student sees
the same field at 1/2 … 1/16 of its resolution (`student.downsample`), where a convolutional net costs 4 … 256 times less. No
label is used: labels train the teacher. `L = L_soft + L_pix`, weight 1 each:

| term | loss |
|---|---|
| `soft` | `T^2 KL(softmax(z_T / T) || softmax(z_S / T))` of the logits, T = 1 |
| `pix` | `MSE(F_S, g(F_T))` of the last feature maps; g brings the teacher's to the student's size |

Differs, or is decided here:
- F_S is the map of the student's backbone. In the paper both are one architecture. Where the teacher's has another number of
  channels, a 1x1 convolution on the student's side leads to it; the paper's own case has none.
- The paper jitters brightness, contrast and saturation by 0.5 and hue by 0.2, for both networks alike. Here it is the stains
  in the place of the hue, which tissue varies by; the teacher pool changes the colours before the teacher sees the tile.
- Flips and rotations: the eight symmetries of the square; the paper flips only.
- The student's image is the tile averaged over squares of `downsample` pixels, or what the reader took from the slide's lower
  pyramid level for it (`Batch.student_tiles`).
- Whole images are padded with white to sizes that both networks divide. The padding counts in both terms, as glass does.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from csat.errors import ConfigError, TeacherError
from csat.losses.distribution import logits_kl
from csat.losses.resized import RESIZES, Resize, resized_error
from csat.methods.contract import Method, Setting, check_weights
from csat.model.contract import Model
from csat.model.student import Student, StudentConfig
from csat.responses import Batch, Kind, ResponseSpec, TeacherSpec, needs_view_in_pool
from csat.views.colour_config import ColourConfig
from csat.views.symmetries import apply_d4, d4_of

TERMS = ("soft", "pix")
JITTER = ColourConfig(brightness=0.5, contrast=0.5, saturation=0.5)


@dataclass(frozen=True, kw_only=True)
class ResolutionConfig:
    """Which responses are learned, how, and how the tile is varied."""

    logits: str | None = None  # the response with the teacher's logits; None: its only logits for the tile as a whole
    features: str | None = None  # the response with its last feature map; None: its only feature map
    resize: Resize = "both"  # how the teacher's map gets to the student's size: max_pool, bicubic or both
    temperature: float = 1.0  # of soft, above 1 softens
    weights: dict[str, float] = field(default_factory=dict)  # by term (soft, pix); a term not named weighs 1
    flips_and_rotations: bool = True  # a random one of the eight symmetries per tile, for teacher and student alike
    augment: ColourConfig = field(default_factory=lambda: JITTER)  # of the tile, for teacher and student alike
    seed: int | None = None  # of every tile's view and colours; None: the run's

    def __post_init__(self):
        if self.resize not in RESIZES:
            raise ConfigError(f"resize is one of {', '.join(RESIZES)}, not {self.resize!r}")
        if not self.temperature > 0 or not math.isfinite(self.temperature):
            raise ConfigError(f"temperature must be positive, not {self.temperature}")
        check_weights(self.weights)


class Resolution(Method):
    """Distils a teacher's logits and last feature map into a student at lower resolution.

    Tiles arrive in the colours that both see; where the responses do not move with their tile, in their spatial view too.
    Whole images always do, since those of a batch could not be transposed one by one: a batch has one size, any rectangle.
    """

    takes_any_size = True
    Config = ResolutionConfig

    def __init__(self, config: ResolutionConfig, model: Model, setting: Setting):
        """
        Args:
            config: The settings.
            model: The student: images float `[B, 3, H, W]` in [0, 1], as it sees them → response name → logits
                `[B, C]`, feature map `[B, C, h, w]` at the student's own resolution; as `make_student` makes it.
            setting: With a teacher; `whole` where images of any size come.

        Raises:
            ConfigError: the features do not fit the tile, or a weight names no term.
            TeacherError: as `wanted`.
        """
        super().__init__(config, model, setting)
        self.student = model
        self.logits, self.features = self.responses
        self.view_in_pool = config.flips_and_rotations and (setting.whole or needs_view_in_pool(self.responses))
        self.colour_in_pool = None if config.augment.is_identity else config.augment
        self.weights = self.weigh(TERMS, {"soft": self.logits.name, "pix": self.features.name})

    @classmethod
    def wanted(cls, config: ResolutionConfig, teacher: TeacherSpec) -> tuple[ResponseSpec, ...]:
        """The teacher's logits and its last feature map, in this order.

        Raises:
            TeacherError: the teacher lacks one of them, or has several and none is named; says what it has.
        """
        logits = _choose("logits", config.logits, teacher, [s for s in teacher.responses if _is_logits(s)])
        features = _choose("features", config.features, teacher, [s for s in teacher.responses if _is_feature_map(s)])
        return logits, features

    @classmethod
    def make_student(cls, config: StudentConfig, responses: Sequence[ResponseSpec]) -> Student:
        """A student whose features are its backbone's last map, where other methods read them off the decoder."""
        return Student(config, responses, last_map=[spec.name for spec in responses if spec.is_dense])

    def part(self, turn: str) -> nn.Module:
        return {"student": self.student}[turn]

    def forward(self, batch: Batch, turn: str = "student") -> dict[str, Tensor]:
        """The unweighted terms of a batch.

        Args:
            batch: Tiles `[B, 3, H, W]` and the responses to them.
            turn: "student", the only one.

        Returns:
            `soft` and `pix`, float32 `[B]`.

        Raises:
            TeacherError: a response is missing from the batch or not of the shape that its spec says.
        """
        tiles, student_tiles = batch.tiles, batch.student_tiles
        logits, features = self.responses_in(batch).values()
        if self.training and self.config.flips_and_rotations and not self.view_in_pool:
            index = d4_of(batch.positions, self.seed)
            features = apply_d4(features, index, self.features.symmetry)
            tiles, student_tiles = (x if x is None else apply_d4(x, index) for x in (tiles, student_tiles))
        is_small = student_tiles is not None
        predictions = self.student(self.student.see(student_tiles if is_small else tiles, is_small=is_small))
        return {
            "soft": logits_kl(predictions[self.logits.name], logits, self.config.temperature),
            "pix": resized_error(predictions[self.features.name], features, self.config.resize),
        }


def _is_logits(spec: ResponseSpec) -> bool:
    return spec.kind == Kind.LOGITS and not spec.is_dense and spec.channels > 1  # a softmax over one channel says nothing


def _is_feature_map(spec: ResponseSpec) -> bool:
    return spec.kind == Kind.FEATURES and spec.is_dense and spec.crop_px == 0


def _choose(what: str, name: str | None, teacher: TeacherSpec, fitting: Sequence[ResponseSpec]) -> ResponseSpec:
    """The one response for a need, by name where the user gave one."""
    wanted = {
        "logits": "logits of 2 or more classes for the tile as a whole",
        "features": "a feature map of the whole tile",
    }[what]
    chosen = [spec for spec in fitting if name is None or spec.name == name]
    if len(chosen) == 1:
        return chosen[0]
    if len(chosen) > 1:
        raise TeacherError(
            f"resolution needs {wanted}, and teacher {teacher.name!r} gives several: {_describe(chosen)}. Name one with "
            f"method.options.{what}"
        )
    asked = f"the response {name!r} as {wanted}" if name else wanted
    raise TeacherError(
        f"resolution needs {asked}, which teacher {teacher.name!r} does not give; it gives: {_describe(teacher.responses)}. "
        "A classifier of finetune.py gives both with teacher.options.features true, a timm model with "
        "teacher.options.outputs [tokens,logits]"
    )


def _describe(specs: Iterable[ResponseSpec]) -> str:
    return ", ".join(f"{s.name} ({s.kind}, {s.channels} ch, {'map' if s.is_dense else 'tile'})" for s in specs) or "nothing"
