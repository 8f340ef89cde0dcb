"""RCKD, response-based cross-task knowledge distillation: the student learns to say what the teacher says about a tile.

Kim et al., Bioengineering 2023, 10(11):1279, stage 1: pretraining on unlabelled tiles with a nuclei teacher's results. The
paper's loss, response form and weights were never published. Decided here: each response has the loss of its kind,

| response | terms | loss |
|---|---|---|
| probability, 1 channel | `<name>_bce`, `<name>_dice` (dense only) | cross-entropy above the target's entropy, soft Dice |
| probability, several channels; logits | `<name>_kl` | `T^2 KL` over the channels |
| regression | `<name>_mse` | mean squared error |
| regression that is an HV field | `<name>_mse`, `<name>_gradient` | the same, and HoVer-Net's masked gradient error |
| features | `<name>_cosine` | 1 - cosine |

each weighing 1, as HoVer-Net's own training weighs them (Graham et al. 2019).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import Tensor, nn

from csat.errors import ConfigError, TeacherError
from csat.losses.distribution import distribution_kl, logits_kl
from csat.losses.features import cosine_distance
from csat.losses.hv import hv_gradient_error
from csat.losses.probability import soft_bce, soft_dice
from csat.losses.regression import squared_error
from csat.methods.contract import Method, Setting, check_weights
from csat.model.contract import Model
from csat.panel import SEPARATOR, split_name
from csat.responses import Batch, Kind, ResponseSpec, Symmetry, TeacherSpec, needs_view_in_pool
from csat.views.colour import ColourAugment
from csat.views.colour_config import ColourConfig
from csat.views.grid import align
from csat.views.symmetries import apply_d4, d4_of


@dataclass(frozen=True, kw_only=True)
class RCKDConfig:
    """What of the teacher the student learns, how much of each, and how the tile is varied."""

    responses: tuple[str, ...] | None = None  # names of the teacher's responses; None: every one that has a loss
    weights: dict[str, float] = field(default_factory=dict)  # by term (np_bce, hv_gradient, …); a term not named weighs 1
    nucleus: str = "np"  # the response whose nuclei mask the gradient term; where it is not learned there is no such term
    temperature: float = 1.0  # of the distributions (<name>_kl), above 1 softens
    flips_and_rotations: bool = True  # a random one of the eight symmetries per tile, for tile and responses alike
    augment: ColourConfig = field(default_factory=ColourConfig)  # of the student's tile only
    seed: int | None = None  # of every tile's view and colours; None: the run's

    def __post_init__(self):
        if not self.temperature > 0 or not math.isfinite(self.temperature):
            raise ConfigError(f"temperature must be positive, not {self.temperature}")
        if self.responses is not None and (isinstance(self.responses, str) or not self.responses):
            raise ConfigError(f"responses must be a list of names, not {self.responses!r}; leave it out to learn them all")
        check_weights(self.weights)


class RCKD(Method):
    """Distils named responses into one head each, per tile and per response kind.

    In training mode a tile and its responses are seen under one of the eight symmetries, and the student's tile alone is
    augmented in colour; in evaluation mode neither happens. The student normalises for itself, and so did the teacher.
    """

    Config = RCKDConfig

    def __init__(self, config: RCKDConfig, model: Model, setting: Setting):
        """
        Args:
            config: The settings.
            model: The student: images float `[B, 3, H, W]` in [0, 1], as it sees them → raw predictions by response
                name: `[B, C, h, w]` over the whole tile, or `[B, C]` for a response to the tile as a whole; logits where the
                response is a probability.
            setting: With a teacher.

        Raises:
            ConfigError: a response does not fit the tile, a weight names no term, or all weights are zero.
            TeacherError: as `wanted`.
        """
        super().__init__(config, model, setting)
        self.student = model
        self.view_in_pool = config.flips_and_rotations and needs_view_in_pool(self.responses)
        self.augment = ColourAugment(config.augment)
        by_name = {spec.name: spec for spec in self.responses}
        # Of several teachers each has its own: nuclei that another one sees say nothing of this one's distances.
        own = {name: f"{split_name(name)[0]}{SEPARATOR}" if self.teachers else "" for name in by_name}
        self.nuclei = {name: own[name] + config.nucleus for name in by_name}
        self.losses = {name: _list_losses(spec, by_name.get(self.nuclei[name])) for name, spec in by_name.items()}
        terms = {f"{name}_{loss}": name for name, losses in self.losses.items() for loss in losses}
        self.weights = self.weigh(list(terms), terms)

    @classmethod
    def wanted(cls, config: RCKDConfig, teacher: TeacherSpec) -> tuple[ResponseSpec, ...]:
        """The responses to learn.

        Raises:
            TeacherError: a wanted response is not among the teacher's, or none of the teacher's has a loss here.
            ConfigError: a wanted response has no loss here.
        """
        have = {spec.name: spec for spec in teacher.responses}
        if config.responses is None:
            wanted = tuple(spec for spec in teacher.responses if _has_loss(spec))
            if not wanted:
                raise TeacherError(
                    f"rckd has no loss for any response of teacher {teacher.name!r}: {_describe(have.values())}"
                )
            return wanted
        missing = [name for name in config.responses if name not in have]
        if missing:
            raise TeacherError(
                f"rckd needs the response {', '.join(missing)}, which teacher {teacher.name!r} does not give; "
                f"it gives: {_describe(have.values())}"
            )
        wanted = tuple(have[name] for name in dict.fromkeys(config.responses))
        if without := [spec for spec in wanted if not _has_loss(spec)]:
            raise ConfigError(f"rckd has no loss for {_describe(without)}: leave it out of responses")
        return wanted

    def part(self, turn: str) -> nn.Module:
        return {"student": self.student}[turn]

    def forward(self, batch: Batch, turn: str = "student") -> dict[str, Tensor]:
        """The unweighted terms of a batch.

        Args:
            batch: Tiles and responses; under `view_in_pool` both already in their view.
            turn: "student", the only one.

        Returns:
            Term → float32 `[B]`.

        Raises:
            TeacherError: a response is missing from the batch or not of the shape that its spec says.
        """
        tile_px = batch.tiles.shape[-1]
        tiles, responses = batch.tiles, self.responses_in(batch)
        if self.training and self.config.flips_and_rotations and not self.view_in_pool:
            index = d4_of(batch.positions, self.seed)
            tiles = apply_d4(tiles, index)
            responses = {spec.name: apply_d4(responses[spec.name], index, spec.symmetry) for spec in self.responses}
        images = self.student.see(tiles)
        if self.training:
            images = self.augment(images, batch.positions, self.seed)
        predictions = self.student(images)

        terms = {}
        for spec in self.responses:
            prediction = align(predictions[spec.name], spec, tile_px)
            for loss in self.losses[spec.name]:
                terms[f"{spec.name}_{loss}"] = self._compare(loss, spec, prediction, responses)
        return terms

    def _compare(self, loss: str, spec: ResponseSpec, prediction: Tensor, responses: dict[str, Tensor]) -> Tensor:
        """One loss of one response, `[B]`."""
        response = responses[spec.name]
        match loss:
            case "bce":
                return soft_bce(prediction, response)
            case "dice":
                return soft_dice(prediction, response)
            case "kl" if spec.kind == Kind.LOGITS:
                return logits_kl(prediction, response, self.config.temperature)
            case "kl":
                return distribution_kl(prediction, response, self.config.temperature)
            case "mse":
                return squared_error(prediction, response)
            case "gradient":
                return hv_gradient_error(prediction, response, responses[self.nuclei[spec.name]])
            case "cosine":
                return cosine_distance(prediction, response)
        raise AssertionError(loss)


def _has_loss(spec: ResponseSpec) -> bool:
    match spec.kind:
        case Kind.PROBABILITY | Kind.REGRESSION | Kind.FEATURES:
            return True
        case Kind.LOGITS:
            return spec.channels > 1  # a softmax over one channel says nothing
        case _:
            return False


def _list_losses(spec: ResponseSpec, nucleus: ResponseSpec | None) -> tuple[str, ...]:
    """Names of the losses of one response; `nucleus` is the response that masks the gradient term."""
    match spec.kind:
        case Kind.PROBABILITY if spec.channels == 1:
            return ("bce", "dice") if spec.is_dense else ("bce",)
        case Kind.PROBABILITY | Kind.LOGITS:
            return ("kl",)
        case Kind.FEATURES:
            return ("cosine",)
        case Kind.REGRESSION if spec.symmetry == Symmetry.HV and nucleus is not None and _masks(nucleus, spec):
            return ("mse", "gradient")
        case Kind.REGRESSION:
            return ("mse",)
    raise AssertionError(f"{spec} has no loss: wanted() lets no such response through")


def _masks(nucleus: ResponseSpec, spec: ResponseSpec) -> bool:
    """Whether `nucleus` is one probability for each cell of `spec`."""
    grids = {(each.stride_px, each.crop_px) for each in (nucleus, spec)}
    return nucleus.kind == Kind.PROBABILITY and nucleus.channels == 1 and spec.is_dense and len(grids) == 1


def _describe(specs: Iterable[ResponseSpec]) -> str:
    return ", ".join(f"{spec.name} ({spec.kind}, {spec.channels} ch)" for spec in specs) or "nothing"
