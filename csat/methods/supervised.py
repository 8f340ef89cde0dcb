"""Supervised learning from labels, for the three tasks: what fine-tuning does without a teacher.

| task | terms |
|---|---|
| classification | `ce`: cross-entropy, with class weights, label smoothing and mixup where asked for |
| segmentation | `ce`, `dice` over the classes; pixels of value 255 do not count |
| nuclei | `np_bce`, `np_dice`, `hv_mse`, `hv_gradient`, with types `tp_ce`, `tp_dice` |

The terms of nuclei are HoVer-Net's (Graham et al. 2019), weight 1 each: the losses of `csat/losses` with a label in the
teacher's place; they say where they differ from the paper.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from csat.errors import ConfigError
from csat.losses.classes import classes_dice, cross_entropy
from csat.losses.hv import hv_gradient_error
from csat.losses.probability import soft_bce, soft_dice
from csat.losses.regression import squared_error
from csat.methods.contract import Method, Setting, Source, check_weights
from csat.model.contract import Model
from csat.responses import Batch
from csat.tasks import IGNORE, Task
from csat.views.draws import uniforms
from csat.views.grid import align

MIXUP_STREAM = 3  # which of a tile's random streams decides how much of another it takes
OF_CLASSES = {"class_weights": "none", "label_smoothing": 0.0, "mixup": 0.0}  # settings that only a classification has: off
TERMS = {
    Task.CLASSIFICATION: ("ce",),
    Task.SEGMENTATION: ("ce", "dice"),
    Task.NUCLEI: ("np_bce", "np_dice", "hv_mse", "hv_gradient"),
}
TYPE_TERMS = ("tp_ce", "tp_dice")


@dataclass(frozen=True, kw_only=True)
class SupervisedConfig:
    """How labels are learned from."""

    weights: dict[str, float] = field(default_factory=dict)  # by term (ce, dice, np_bce, …); a term not named weighs 1
    class_weights: str = "none"  # of a classification's cross-entropy: none, or balanced (a rare class counts more)
    label_smoothing: float = 0.0  # classification: share of each label that is spread over all classes
    mixup: float = 0.0  # classification: share of tiles that are mixed with another tile of the batch (Zhang et al. 2018)
    seed: int | None = None  # of mixup; None: the run's

    def __post_init__(self):
        if self.class_weights not in ("none", "balanced"):
            raise ConfigError(f"class_weights is none or balanced, not {self.class_weights!r}")
        for name in ("label_smoothing", "mixup"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} must lie in [0, 1), not {getattr(self, name)}")
        check_weights(self.weights)


class Supervised(Method):
    """Learns a task's heads from its targets."""

    Config = SupervisedConfig
    learns_from = Source.LABELS

    def __init__(self, config: SupervisedConfig, model: Model, setting: Setting):
        """
        Args:
            config: The settings.
            model: As `csat.model.registry.build_model` makes it.
            setting: With the data's task and classes, and for balanced weights the samples of each class.

        Raises:
            ConfigError: a weight without a term, or a setting that this task does not have.
        """
        super().__init__(config, model, setting)
        self.model, self.info = model, setting.data
        task, counts = self.info.task, setting.class_counts
        if task != Task.CLASSIFICATION:
            if used := [name for name, off in OF_CLASSES.items() if getattr(config, name) != off]:
                raise ConfigError(f"{', '.join(used)}: for classification, and the task is {task}; leave it out")
        elif config.class_weights == "balanced" and counts is None:
            raise ConfigError("class_weights balanced needs the number of training samples of each class")
        terms = TERMS[task] + (TYPE_TERMS if task == Task.NUCLEI and self.info.classes else ())
        self.weights = self.weigh(terms)
        self.specs = {spec.name: spec for spec in model.responses}
        self.register_buffer("class_weights", _class_weights(config, counts), persistent=False)

    def part(self, turn: str) -> nn.Module:
        return {"student": self.model}[turn]

    def forward(self, batch: Batch, turn: str = "student") -> dict[str, Tensor]:
        """The unweighted terms of a batch: term → float32 `[B]`."""
        images = self.model.see(batch.tiles)
        if self.info.task == Task.CLASSIFICATION:
            return {"ce": self._classify(images, batch)}
        predictions = self.model(images)
        if self.info.task == Task.SEGMENTATION:
            logits, target = self._pair("mask", predictions, batch)
            return {"ce": cross_entropy(logits, target, ignore=IGNORE), "dice": classes_dice(logits, target, ignore=IGNORE)}
        nucleus, is_nucleus = self._pair("np", predictions, batch)
        hv, true_hv = self._pair("hv", predictions, batch)
        is_nucleus, true_hv = is_nucleus[:, None].float(), true_hv.float()
        terms = {
            "np_bce": soft_bce(nucleus, is_nucleus),
            "np_dice": soft_dice(nucleus, is_nucleus),
            "hv_mse": squared_error(hv, true_hv),
            "hv_gradient": hv_gradient_error(hv, true_hv, is_nucleus),
        }
        if self.info.classes:
            logits, target = self._pair("tp", predictions, batch)
            terms["tp_ce"] = cross_entropy(logits, target, ignore=IGNORE)
            terms["tp_dice"] = classes_dice(logits, target, ignore=IGNORE)
        return terms

    def _classify(self, images: Tensor, batch: Batch) -> Tensor:
        label = batch.targets["label"]
        options = {"weights": self.class_weights, "smoothing": self.config.label_smoothing}
        if not (self.training and self.config.mixup and len(label) > 1):
            return cross_entropy(self.model(images)["label"], label, **options)
        # Each tile takes up to half of its neighbour in the batch (differs: evenly distributed, where the paper has a beta
        # distribution): which tile that is depends on the batch, how much of it does not.
        draws = uniforms(batch.positions, 2, seed=self.seed, stream=MIXUP_STREAM)
        share = torch.where(draws[:, 0] < self.config.mixup, 0.5 * draws[:, 1], 0.0)
        images = torch.lerp(images, images.roll(1, 0), share[:, None, None, None])
        logits = self.model(images)["label"]
        own, other = (cross_entropy(logits, each, **options) for each in (label, label.roll(1, 0)))
        return torch.lerp(own, other, share)

    def _pair(self, name: str, predictions: dict[str, Tensor], batch: Batch) -> tuple[Tensor, Tensor]:
        """Prediction and target over the same pixels: the tile less the margin that the model does not cover."""
        spec, crop_px = self.specs[name], self.specs[name].crop_px
        target = batch.targets[name]
        inner = slice(crop_px, self.setting.tile_px - crop_px)
        return align(predictions[name], spec, self.setting.tile_px), target[..., inner, inner]


def _class_weights(config: SupervisedConfig, counts: tuple[int, ...] | None) -> Tensor | None:
    """float `[classes]`: samples / (classes * samples of the class), 1 on average over samples; None: all weigh alike."""
    if config.class_weights == "none":
        return None
    counts = np.array(counts)
    return torch.from_numpy(counts.sum() / (len(counts) * np.maximum(counts, 1))).float()
