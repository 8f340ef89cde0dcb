"""Whatever answers tiles, behind one contract: a trained model, an ONNX file, a teacher.

Judging and predicting know nothing else of a model than `Answers`. What it says is finished: probabilities are between 0 and
1, and a dense answer has a value for every pixel of the tile less the margin that the model leaves out. Who opens one:
`csat.prediction.opening` (what was trained or exported here), `teachers.answers` (those and every teacher).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from csat.model.contract import Model
from csat.panel import plain_names
from csat.precision import BFLOAT16, check_precision, resolve_precision
from csat.responses import Kind, ResponseSpec
from csat.tasks import Task
from csat.views.grid import align

BACKGROUND = 1  # channels of `tp` before the first type
# Pixels that a trained model is shown at once on a CPU, whatever batch arrives: as many as leave their maps in its cache. Two
# processes of a thread each: csat answers 1.3 times as many tiles of 256 px in twos as in thirty-twos, 1.15 times those of 128
# px in fours, csat_nano 1.15 times in eights, resnet18 1.1 times in twos (EPYC, two cores).
AT_ONCE_PX = 2**17


@dataclass(frozen=True, kw_only=True)
class About:
    """Who answers: for accounts, cards and tables."""

    name: str  # what a person calls it: the run's folder, the teacher's name
    source: str = ""  # URI, or where its weights came from
    licence: str = "unknown"  # of the weights, the images and the teachers behind them
    sha256: str = ""  # of the weights; of a teacher without any, of its settings


class Answers(Protocol):
    """A loaded model, ready to be shown tiles.

    Attributes:
        specs: What it says of a tile, finished. Of kind PROBABILITY (one channel in [0, 1], or several that sum to 1),
            REGRESSION (`hv`), ATTENTION, or FEATURES (an embedding). Dense ones have `stride_px` 1 and lack `crop_px` pixels
            on each side; the others have `stride_px` None.
        tile_px: Edge of the tiles that it is shown.
        mpp: um/px of the tiles; None: it has no resolution of its own.
        task: What it can be judged on; None: it only answers maps or embeddings.
        classes: Classification, segmentation: all classes, in the order of the channels. Nuclei: the types, without the
            background; empty where it tells none apart.
        about: Who it is.
    """

    specs: tuple[ResponseSpec, ...]
    tile_px: int
    mpp: float | None
    task: Task | None
    classes: tuple[str, ...]
    about: About

    def answer(self, tiles: np.ndarray) -> dict[str, np.ndarray]:
        """What it says of tiles: the same of a tile, but for rounding, whatever batch it is in.

        Args:
            tiles: uint8 `[B, tile_px, tile_px, 3]`, RGB, B >= 1.

        Returns:
            name → float32 `[B, C, n, n]` with n = tile_px - 2 * crop_px, or `[B, C]`.
        """


class ModelAnswers:
    """A model of this project; see `Answers`.

    Args:
        model: In evaluation mode; it is moved to the device.
        tile_px: Edge of the tiles.
        device: Where it runs.
        precision: float32, bfloat16 (autocast), or best: see `csat.precision`.
        metadata: Of its exported folder, as far as there is one: mpp, task, classes.
        about: Who it is.
    """

    def __init__(
        self,
        model: Model,
        *,
        tile_px: int,
        device: torch.device | str = "cpu",
        precision: str = "float32",
        metadata: Mapping[str, Any] | None = None,
        about: About | None = None,
    ):
        metadata = metadata or {}
        self.device = torch.device(device)
        check_precision("precision", precision)
        self.model, self.precision = model.to(self.device), resolve_precision(precision, str(device))
        self.raw = [spec for spec in model.responses if is_answer(spec)]
        plain = plain_names(spec.name for spec in self.raw)  # several teachers' answers go by what they mean
        self.specs = tuple(replace(finished(spec), name=plain[spec.name]) for spec in self.raw)
        self.tile_px, self.mpp = tile_px, metadata.get("mpp")
        self.task, self.classes = task_of(self.specs), classes_of(self.specs)
        self.about = about or About(name=type(model).__name__)

    def answer(self, tiles: np.ndarray) -> dict[str, np.ndarray]:
        size = max(1, len(tiles))
        if self.device.type == "cpu":
            size = max(1, AT_ONCE_PX // (self.tile_px // self.model.downsample) ** 2)
        said = [self._answer(tiles[start : start + size]) for start in range(0, max(1, len(tiles)), size)]
        return said[0] if len(said) == 1 else {name: np.concatenate([each[name] for each in said]) for name in said[0]}

    @torch.inference_mode()
    def _answer(self, tiles: np.ndarray) -> dict[str, np.ndarray]:
        images = torch.tensor(tiles).to(self.device).permute(0, 3, 1, 2)  # a copy: tiles may be read-only
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == BFLOAT16):
            said = self.model(self.model.see(images))
        pairs = zip(self.specs, self.raw, strict=True)
        return {spec.name: finish(said[raw.name], raw, self.tile_px).cpu().numpy() for spec, raw in pairs}


def is_answer(spec: ResponseSpec) -> bool:
    """Whether a response is shown to others: not the maps of features that a student learned of its teacher."""
    return not (spec.is_dense and spec.kind == Kind.FEATURES)


def finished(spec: ResponseSpec) -> ResponseSpec:
    """What is said of a response once it is finished: at every pixel, and probabilities in the place of logits."""
    kind = Kind.PROBABILITY if spec.kind == Kind.LOGITS else spec.kind
    return replace(spec, kind=kind, stride_px=1 if spec.is_dense else None)


def finish(prediction: Tensor, spec: ResponseSpec, tile_px: int) -> Tensor:
    """A model's raw prediction, finished.

    Args:
        prediction: `[B, C, h, w]` over the whole tile, or `[B, C]`.
        spec: As the model has it.
        tile_px: Edge of the tile.

    Returns:
        float32 `[B, C, n, n]` over the tile less the response's crop, or `[B, C]`.
    """
    return activate(align(prediction, finished(spec), tile_px).float(), spec)


def activate(values: Tensor, spec: ResponseSpec) -> Tensor:
    """Probabilities of logits, over the channels; what is none stays as it is."""
    if spec.kind == Kind.PROBABILITY and spec.channels == 1:
        return values.sigmoid()
    return values.softmax(1) if spec.kind in (Kind.PROBABILITY, Kind.LOGITS) else values


def task_of(specs: Sequence[ResponseSpec]) -> Task | None:
    """What answers of these names can be judged on, see `csat.tasks.heads_of`."""
    names = {spec.name for spec in specs}
    if {"np", "hv"} <= names:
        return Task.NUCLEI
    return Task.SEGMENTATION if "mask" in names else Task.CLASSIFICATION if "label" in names else None


def classes_of(specs: Sequence[ResponseSpec]) -> tuple[str, ...]:
    """Names of the classes that answers of a task tell apart. Where nobody has named them, they are numbered."""
    by_name = {spec.name: spec for spec in specs}
    match task_of(specs):
        case Task.NUCLEI if "tp" in by_name:
            return _channel_names(by_name["tp"], "type")[BACKGROUND:]
        case Task.SEGMENTATION:
            return _channel_names(by_name["mask"], "class")
        case Task.CLASSIFICATION:
            return _channel_names(by_name["label"], "class")
    return ()


def _channel_names(spec: ResponseSpec, what: str) -> tuple[str, ...]:
    return spec.channel_names or tuple(f"{what} {index}" for index in range(spec.channels))
