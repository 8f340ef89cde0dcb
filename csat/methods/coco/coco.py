"""CoCo DistillNet: a small segmentation network learns how the layers of a large one correlate, beside its labels.

Zou & Sun 2021 (arXiv 2108.12173). One map of the encoder and one of the decoder are tapped in both networks, and
`L = CE + lambda_s CoCo(S_enc, S_dec, PM(T_enc), PM(T_dec)) + lambda_adv L_G`:

| turn | term | weight | loss |
|---|---|---|---|
| student | `ce` | 1 | cross-entropy with the labelled mask; pixels of value 255 do not count |
| student | `coco` | lambda_s | cross-layer correlation of channel-mixed spatial similarity, see `csat/losses/correlation.py` |
| student | `adv` | lambda_adv | `-D(S)`: the critic shall take the student's logits for the teacher's |
| critic | `critic` | 1 | `D(S) - D(T)` of a conditional PatchGAN, on the image and the logits |
| critic | `penalty` | 10 | gradient penalty of WGAN-GP, of the slope in the image and the logits together |

PM are paraphrasers, trained before (`csat/methods/coco/paraphrasing.py`) and frozen. The student takes its turn first, and the
critic learns from the logits of that very pass: the student runs once a step. The critic has Adam (0.9, 0.99) at
3e-5 x (1 - progress)^0.9.

The weights 1.0 and 0.1 are the defaults of the authors' training script; the correlation's formula is ours, so that its weight
need not mean what theirs does. Until November 2026 the defaults here were 0.01 and 0.001, for which no source was found.

Differs, or is decided here:
- The student's optimiser is the run's own (`train.optim`: AdamW, warm-up, cosine); the paper has Adam with weight decay 2e-4
  and the polynomial schedule.
- The teacher's maps travel as responses, and the paraphrasers run beside the student: two maps of 256 x 64 x 64 are 4.2 MB
  for a tile of 256 px, where the tile is 0.2 MB. In the teacher pool they could send factors of 0.4 MB; but then the pool
  would have to be recreated after their training, and students of different widths could not share it.
- Where the student's logits are coarser than the tile (a timm backbone's are at half its resolution) they are raised
  linearly.
"""

import math
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.func import functional_call

from csat.errors import ConfigError
from csat.losses.classes import cross_entropy
from csat.losses.correlation import CELLS, correlation_error
from csat.losses.wgan import PENALTY_WEIGHT, adversarial_loss, critic_loss, gradient_penalty
from csat.methods.coco.first_stage import Paraphrasers
from csat.methods.coco.paraphrasers import LAYERS, make_paraphrasers
from csat.methods.contract import Method, OwnOptimiser, Setting, Source, check_same_classes, pick_responses
from csat.model.contract import Model
from csat.model.networks.critic import WIDTH, PatchCritic
from csat.responses import Batch, Kind, ResponseSpec, TeacherSpec
from csat.settings import Place
from csat.tasks import IGNORE, Task
from csat.views.draws import uniforms
from csat.views.grid import align

MASK = "mask"
LOGITS = "logits"  # what the student's turn keeps for the critic's
SHARE_STREAM = 4  # which of a tile's random streams says where between the two predictions the penalty is taken


@dataclass(frozen=True, kw_only=True)
class CoCoConfig:
    """How much is learned from what. A weight of 0 switches a term off, with everything that only it needs."""

    lambda_s: float = 1.0  # weight of the correlation; 0: no maps are asked of the teacher
    lambda_adv: float = 0.1  # weight of the adversarial term; 0: there is no critic
    use_paraphraser: bool = True  # compare with the paraphrased maps; false: with the teacher's maps as they are
    paraphrasers: Place | None = None  # folder of trained paraphrasers of this teacher and student; None: trained by this run
    paraphraser_epochs: int = 10  # visits of every training image in their training
    paraphraser_lr: float = 3e-4  # its learning rate at the start
    cells: int = CELLS  # per axis, that maps are pooled to before they are compared; both networks' maps need as many
    critic_lr: float = 3e-5  # of the critic, at the start
    critic_width: int = WIDTH  # channels of its first layer; a critic of 64 takes longer than a small student, on 96 px
    seed: int | None = None  # of the points between predictions at which the penalty is taken; None: the run's

    def __post_init__(self):
        for name in ("lambda_s", "lambda_adv"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} must be a number of 0 or more, not {getattr(self, name)}")
        for name in ("paraphraser_lr", "critic_lr"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} must be above 0, not {getattr(self, name)}")
        for name in ("paraphraser_epochs", "cells", "critic_width"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")

    @property
    def has_paraphrasers(self) -> bool:
        return self.lambda_s > 0 and self.use_paraphraser


class CoCo(Method):
    """Learns a segmentation from labels and from a teacher's maps and logits."""

    Config = CoCoConfig
    learns_from = Source.RESPONSES | Source.LABELS
    changed_defaults = MappingProxyType({"lambda_s": (0.01, 1.0), "lambda_adv": (0.001, 0.1)})

    def __init__(self, config: CoCoConfig, model: Model, setting: Setting):
        """
        Args:
            config: The settings.
            model: As `csat.model.registry.build_model` makes it, with the layers `encoder` and `decoder`.
            setting: With a teacher, and the data's task and classes.

        Raises:
            ConfigError: another task, a model without tapped maps, a tile too small for the cells, other classes than the
                teacher's.
            TeacherError: as `wanted`.
        """
        super().__init__(config, model, setting)
        info = setting.data
        if info.task != Task.SEGMENTATION:
            raise ConfigError(f"method coco learns a segmentation, and the task is {info.task}: choose another method")
        if not model.layers.keys() >= set(LAYERS):
            raise ConfigError(
                f"method coco compares an encoder's and a decoder's map, and a {type(model).__name__} has none to tap: set "
                "model.name to fanet, mobile_unet, enet, erfnet or a timm backbone"
            )
        self.model, self.tile_px = model, setting.tile_px
        self.weights = {"ce": 1.0}
        self.spec = ResponseSpec(name=MASK, kind=Kind.LOGITS, channels=len(info.classes))
        self.paraphrasers, self.critic = nn.ModuleDict(), None
        specs = {spec.name: spec for spec in self.responses}
        if config.lambda_s:
            self.weights["coco"] = config.lambda_s
            self._check_cells(specs)
        if config.has_paraphrasers:
            theirs = [specs[name].channels for name in LAYERS]
            self.paraphrasers = make_paraphrasers(theirs, [model.layers[name].channels for name in LAYERS])
        if config.lambda_adv:
            remedy = "choose a teacher of these classes, or method.options.lambda_adv 0"
            check_same_classes(specs[MASK], info.classes, remedy=remedy)
            self.turns = ("student", "critic")
            self.weights |= {"adv": config.lambda_adv, "critic": 1.0, "penalty": PENALTY_WEIGHT}
            self.critic = PatchCritic(len(info.classes), width=config.critic_width)
            self.own_optimisers = {"critic": OwnOptimiser(lr=config.critic_lr, betas=(0.9, 0.99))}

    @classmethod
    def wanted(cls, config: CoCoConfig, teacher: TeacherSpec) -> tuple[ResponseSpec, ...]:
        """The maps where they are compared, and the logits where there is a critic.

        Raises:
            TeacherError: the teacher lacks one; names it and what the teacher gives.
        """
        wanted = [(name, Kind.FEATURES, True) for name in LAYERS if config.lambda_s]
        wanted += [(MASK, Kind.LOGITS, True)] if config.lambda_adv else []
        hint = "A run of fanet gives all with teacher.options.taps true; without lambda_s no maps are needed, without "
        return pick_responses("coco", wanted, teacher, hint=hint + "lambda_adv no logits")

    def first_stage(self) -> Paraphrasers | None:
        """The paraphrasers, where paraphrased maps are compared."""
        if not self.config.has_paraphrasers:
            return None
        return Paraphrasers(
            self.paraphrasers,
            self.setting,
            epochs=self.config.paraphraser_epochs,
            lr=self.config.paraphraser_lr,
            given=self.config.paraphrasers,
        )

    def part(self, turn: str) -> nn.Module:
        return {"student": self.model, "critic": self.critic}[turn]

    def train(self, mode: bool = True) -> "CoCo":
        super().train(mode)
        self.paraphrasers.eval()
        return self

    def forward(self, batch: Batch, turn: str = "student") -> dict[str, Tensor]:
        """The unweighted terms of a turn: term → float32 `[B]`.

        Args:
            batch: Tiles, the teacher's responses, and the target `mask`; for the critic as the student's turn left it.
            turn: "student" or "critic".
        """
        images = batch.tiles.float() / 255
        if turn == "critic":
            return self._criticise(images, batch.kept[LOGITS], batch)
        maps, predictions = self.model.tap(self.model.see(batch.tiles), LAYERS)
        logits = align(predictions[MASK], self.spec, self.tile_px)  # for each pixel of the tile
        terms = {"ce": cross_entropy(logits, batch.targets[MASK], ignore=IGNORE)}
        if "coco" in self.weights:
            terms["coco"] = correlation_error(*maps.values(), *self._factors(batch), cells=self.config.cells)
        if self.critic is not None:
            batch.kept[LOGITS] = logits.detach()
            # The gradient passes through the critic and not into it.
            fixed = {name: parameter.detach() for name, parameter in self.critic.named_parameters()}
            terms["adv"] = adversarial_loss(functional_call(self.critic, fixed, (images, logits)))
        return terms

    def _criticise(self, images: Tensor, student: Tensor, batch: Batch) -> dict[str, Tensor]:
        teacher = align(self.responses_in(batch)[MASK].float(), self.spec, self.tile_px)
        share = uniforms(batch.positions, 1, seed=self.seed, stream=SHARE_STREAM)[:, 0]
        return {
            "critic": critic_loss(self.critic(images, student), self.critic(images, teacher)),
            "penalty": gradient_penalty(self.critic, images, student, teacher, share),
        }

    @torch.no_grad()
    def _factors(self, batch: Batch) -> list[Tensor]:
        """What the student's two maps are compared with."""
        responses = self.responses_in(batch)
        maps = {name: responses[name].float() for name in LAYERS}
        return [self.paraphrasers[name].paraphrase(maps[name]) if self.paraphrasers else maps[name] for name in LAYERS]

    def _check_cells(self, specs: dict[str, ResponseSpec]) -> None:
        """Every map must have as many cells as are compared."""
        sizes = [self.tile_px // self.model.layers[name].stride_px for name in LAYERS] + [
            specs[name].shape(self.tile_px)[-1] for name in LAYERS
        ]
        if min(sizes) < self.config.cells:
            raise ConfigError(
                f"method coco compares {self.config.cells} x {self.config.cells} cells, and a tile of {self.tile_px} px has "
                f"maps of {min(sizes)} x {min(sizes)}: set method.options.cells {min(sizes)}, or a larger data.tile_px"
            )
