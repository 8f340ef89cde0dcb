"""Attention across resolutions: a classifier at low resolution learns where a teacher at full resolution looks, beside labels.

del Amor et al. 2024, "Attention to detail: inter-resolution knowledge distillation" (arXiv 2401.06010). Teacher and student
are classifiers on one layer of a backbone (`csat/model/tapped.py`); the student sees 1/2 … 1/8 of the pixels
(`model.downsample`). `L = CE + alpha_kd KD + alpha_fm FM + alpha_at AT`:

| term | weight | loss |
|---|---|---|
| `ce` | 1 | cross-entropy with the label |
| `kd` | alpha_kd | cross-entropy with the teacher's probabilities, softened by the temperature |
| `fm` | alpha_fm | root mean square of the difference of the layer's maps |
| `at` | alpha_at | root mean square of the difference of the attention maps, all classes normalised together |

The attention maps follow from gradients, and the student learns through them (second derivatives). There is a map for every
class, whatever the labels are: a batch of one class only is nothing special.

The defaults are what the authors' code ran in its one example, for a quarter of the resolution: alpha_kd 0, alpha_fm 0.1,
alpha_at 10. KD is off there. (Until November 2026 alpha_kd was 1 here.)

Differs, or is decided here:
- The student sees its small image as it is, and costs less. `model.options.upsample` enlarges it again, as the paper does.
  Without, its maps are smaller than the teacher's, and are interpolated.
- Enlarging keeps pixels where they lie. Theirs puts corner on corner (align_corners), which shifts the image's edges by half
  of a small pixel against the teacher's, whose pixels were averaged in squares.
- Images are normalised as the backbone's weights expect (for VGG16 ImageNet's mean and standard deviation). Theirs stay in
  [0, 1], with weights that were trained on normalised ones.
- An epoch of oversampled data (`data.sampling`) grows, so that each image is still seen once. Theirs stops after as many
  images as the set has.
"""

import math
from dataclasses import dataclass
from types import MappingProxyType

from torch import Tensor, nn

from csat.errors import ConfigError
from csat.losses.attention import attention_distance, attention_maps
from csat.losses.classes import cross_entropy
from csat.losses.distribution import softened_cross_entropy
from csat.losses.rms import rms_distance
from csat.methods.contract import Method, Setting, Source, check_same_classes, pick_responses
from csat.model.contract import Model
from csat.model.parts import BACKBONE
from csat.responses import Batch, Kind, ResponseSpec, TeacherSpec
from csat.tasks import Task

LABEL, FEATURES = "label", "features"
FORMS = {"at_plus": "at+", "at": "at"}  # variant → form of the maps
CAMS = {variant: f"cam_{variant}" for variant in FORMS}  # variant → the response with the teacher's maps


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """How much is learned from what. A weight of 0 switches a term off, with the response that only it needs."""

    variant: str = "at_plus"  # of the attention maps: at_plus, at, or none (no attention term)
    alpha_kd: float = 0.0  # weight of the teacher's probabilities; off, as in the authors' example
    alpha_fm: float = 0.1  # weight of the teacher's map; not 0 only where both layers have as many channels
    alpha_at: float = 10.0  # weight of the attention maps
    temperature: float = 1.0  # of the teacher's probabilities, above 1 softens
    seed: int | None = None  # unused: this method draws nothing at random

    def __post_init__(self):
        if self.variant not in (*FORMS, "none"):
            raise ConfigError(f"variant is one of {', '.join(FORMS)} or none, not {self.variant!r}")
        for name in ("alpha_kd", "alpha_fm", "alpha_at"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} must be a number of 0 or more, not {getattr(self, name)}")
        if not 0 < self.temperature < math.inf:
            raise ConfigError(f"temperature must be positive, not {self.temperature}")
        if not (self.alpha_kd or self.alpha_fm or self.has_attention):
            raise ConfigError(
                "alpha_kd and alpha_fm are 0 and there is no attention term: nothing would be learned from the teacher. Set "
                "alpha_kd (0 by default) to 1, or train without a teacher (teacher=null method.name=supervised)"
            )

    @property
    def has_attention(self) -> bool:
        return self.variant != "none" and self.alpha_at > 0


class Attention(Method):
    """Learns classes from labels and from a teacher's logits, map and attention maps."""

    Config = AttentionConfig
    learns_from = Source.RESPONSES | Source.LABELS
    changed_defaults = MappingProxyType({"alpha_kd": (1.0, 0.0)})

    def __init__(self, config: AttentionConfig, model: Model, setting: Setting):
        """
        Args:
            config: The settings.
            model: As `csat.model.registry.build_model` makes it with the option `layer`: a `TappedClassifier`.
            setting: With a teacher, and the data's task and classes.

        Raises:
            ConfigError: another task, a single class, a model without a tapped layer or one that does not train, other
                classes or another number of channels than the teacher's.
            TeacherError: as `wanted`.
        """
        super().__init__(config, model, setting)
        info = setting.data
        if info.task != Task.CLASSIFICATION:
            raise ConfigError(f"method attention learns a classification, and the task is {info.task}: choose another method")
        if len(info.classes) < 2:
            raise ConfigError(
                f"method attention tells classes apart, and the data have one: {', '.join(info.classes) or 'none'}. Add "
                "images of another class"
            )
        layer = model.layers.get(FEATURES)
        if layer is None or not layer.has_verdict:
            raise ConfigError(
                f"method attention compares the maps of a layer, and a {type(model).__name__} has none named: set "
                "model.name vgg16 model.options.layer features.28, or another timm backbone with one of its layers"
            )
        if BACKBONE in model.frozen and (config.alpha_fm or config.has_attention):
            raise ConfigError(
                "model.freeze backbone keeps the layer as it is whose maps method attention compares: nothing would be "
                "learned from them. Set model.freeze none, or learn from the teacher's probabilities alone: "
                "method.options.alpha_kd 1, method.options.alpha_fm 0 and method.options.alpha_at 0"
            )
        self.model, self.info = model, info
        alphas = {"kd": config.alpha_kd, "fm": config.alpha_fm, "at": config.alpha_at if config.has_attention else 0.0}
        self.weights = {"ce": 1.0} | {name: float(alpha) for name, alpha in alphas.items() if alpha}
        for spec in self.responses:
            self._check_channels(spec)

    @classmethod
    def wanted(cls, config: AttentionConfig, teacher: TeacherSpec) -> tuple[ResponseSpec, ...]:
        """Logits, the layer's map and the attention maps, each where its weight is not 0.

        Raises:
            TeacherError: the teacher lacks one; names it and what the teacher gives.
        """
        wanted = [(LABEL, Kind.LOGITS, False)] if config.alpha_kd else []
        wanted += [(FEATURES, Kind.FEATURES, True)] if config.alpha_fm else []
        wanted += [(CAMS[config.variant], Kind.ATTENTION, True)] if config.has_attention else []
        hint = "A run of finetune.py with model.options.layer gives all with teacher.options.features true "
        return pick_responses("attention", wanted, teacher, hint=hint + "teacher.options.cam true")

    def part(self, turn: str) -> nn.Module:
        return {"student": self.model}[turn]

    def forward(self, batch: Batch, turn: str = "student") -> dict[str, Tensor]:
        """The unweighted terms of a batch: term → float32 `[B]`. Gradients must be enabled where there is an attention term.

        Args:
            batch: Tiles, the teacher's responses, and the target `label`.
            turn: "student", the only one.
        """
        responses = self.responses_in(batch)
        maps, predictions = self.model.tap(self.model.see(batch.tiles), [FEATURES])
        features, logits = maps[FEATURES], predictions[LABEL]
        terms = {"ce": cross_entropy(logits, batch.targets[LABEL])}
        if "kd" in self.weights:
            terms["kd"] = softened_cross_entropy(logits, responses[LABEL], self.config.temperature)
        if "fm" in self.weights:
            terms["fm"] = rms_distance(features, responses[FEATURES])
        if "at" in self.weights:
            maps = attention_maps(features, logits, FORMS[self.config.variant], keep_graph=True)
            terms["at"] = attention_distance(maps, responses[CAMS[self.config.variant]])
        return terms

    def _check_channels(self, spec: ResponseSpec) -> None:
        """Maps are compared channel with channel, and classes with classes."""
        if spec.name == FEATURES:
            channels = self.model.layers[FEATURES].channels
            if spec.channels != channels:
                raise ConfigError(
                    f"the teacher's layer has {spec.channels} channels and the student's {channels}, and fm "
                    "compares them one by one: choose layers of as many (model.options.layer), or "
                    "method.options.alpha_fm 0"
                )
        else:
            check_same_classes(spec, self.info.classes, remedy="choose a teacher of these classes")
