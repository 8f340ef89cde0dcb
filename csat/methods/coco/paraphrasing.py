"""The stage before CoCo: paraphrasers learn, without labels, to say a teacher's maps in as many channels as the student has.

Zou & Sun 2021 (arXiv 2108.12173), after factor transfer (Kim et al. 2018, arXiv 1802.04977): one autoencoder per tapped layer
(`csat/model/networks/paraphraser.py`) is trained to reconstruct the teacher's map, by SGD with momentum 0.9, weight decay
2e-4 and a learning rate of 3e-4 x (1 - progress)^0.9, and then frozen. The terms are `encoder` and `decoder`, the mean
squared errors of the two reconstructions. With them go, for the reader and with weight 0, `encoder_missed` and
`decoder_missed`: these errors as shares of the map's variance over the tile. Paraphrasers at 1 or above have learned nothing
that a student could follow.

It is a method like any other, so it has the loop's checkpoints, its resumption and its DDP;
`csat/methods/coco/first_stage.py` says what a run does with it.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from csat.methods.coco.paraphrasers import LAYERS
from csat.methods.contract import Method, OwnOptimiser, Setting
from csat.responses import Batch, ResponseSpec, TeacherSpec

LR = 3e-4
WEIGHT_DECAY = 2e-4
SMALLEST_VARIANCE = 1e-8  # of a map that is the same everywhere


@dataclass(frozen=True, kw_only=True)
class ParaphrasingConfig:
    """How they are trained."""

    lr: float = LR  # at the start


class Paraphrasing(Method):
    """Trains the paraphrasers of a teacher's two tapped maps."""

    Config = ParaphrasingConfig

    def __init__(self, config: ParaphrasingConfig, model: nn.ModuleDict, setting: Setting):
        """
        Args:
            config: The settings.
            model: Of `make_paraphrasers`; from here on they train.
            setting: With a teacher.

        Raises:
            ConfigError: the teacher lacks one of the maps.
        """
        super().__init__(config, model, setting)
        self.student = model.requires_grad_(True)
        self.weights = dict.fromkeys(LAYERS, 1.0) | dict.fromkeys(map(missed, LAYERS), 0.0)
        self.own_optimisers = {"student": OwnOptimiser(kind="sgd", lr=config.lr, momentum=0.9, weight_decay=WEIGHT_DECAY)}

    @classmethod
    def wanted(cls, config: ParaphrasingConfig, teacher: TeacherSpec) -> tuple[ResponseSpec, ...]:
        """The two maps. Raises ConfigError where the teacher lacks one."""
        return tuple(teacher.response(name) for name in LAYERS)

    def part(self, turn: str) -> nn.Module:
        return {"student": self.student}[turn]

    def forward(self, batch: Batch, turn: str = "student") -> dict[str, Tensor]:
        """The unweighted terms, float32 `[B]`."""
        terms = {}
        for name, response in self.responses_in(batch).items():
            features = response.float()
            terms[name] = self.student[name].reconstruction_error(features)
            variance = features.var((2, 3), correction=0).mean(1).clamp(min=SMALLEST_VARIANCE)
            terms[missed(name)] = terms[name].detach() / variance
        return terms


def missed(layer: str) -> str:
    """Name of the term that says how much of a layer's variance the paraphraser misses."""
    return f"{layer}_missed"
