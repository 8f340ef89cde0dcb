"""A model over labelled samples: each image is seen whole, and what was said of it becomes one row of `Predictions`.

With `fit` "resize" the model sees the image once, stretched to its tile. With "crop" it sees windows at the image's own
resolution: of each window only the inner part is used, and windows are placed so that the inner parts cover the image (the
overlap-tile strategy of Ronneberger et al. 2015, section 2); beyond the image's edge the window sees the mirror image. A
classification is the mean of its windows' probabilities.

Single nuclei are made where the model answered: on the pixels of the image as it was shown, by post-processing whose lengths
follow the resolution there, which a stretched image has another one of than its file. What was said is then compared on the
pixels of the decoded sample: probabilities get there linearly, numbers of nuclei and their types by the nearest pixel.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from csat.errors import SlideError
from csat.evaluation.metrics.instances import compare_instances
from csat.evaluation.metrics.segmentation import count_pixels
from csat.evaluation.predictions import Predictions
from csat.instances import POST_MPP, instances_from_hv
from csat.labels.augment import fit_tile, resize_labels
from csat.labels.datasets.contract import Decoded, Sample
from csat.labels.decoded import SampleSource
from csat.responses import Kind, ResponseSpec
from csat.tasks import IGNORE, DatasetInfo, Task
from csat.views.grid import align, downsample
from csat.views.symmetries import apply_d4, invert_d4

MARGIN_SHARE = 1 / 8  # of a window's edge, on each side, that is seen and not used
TINY = 1e-12

Maps = dict[str, np.ndarray]  # name → float32 [C, H, W] over the image, or [C]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a model said of one sample.

    Attributes:
        maps: Activated predictions on the pixels of the image as it was shown.
        shown: Height and width of that.
    """

    sample: Sample
    decoded: Decoded
    maps: Maps
    shown: tuple[int, int]

    def over_image(self, name: str) -> np.ndarray:
        """float32 `[C, H, W]` on the decoded sample's pixels, linearly."""
        height, width = self.decoded.image.shape[:2]
        if self.shown == (height, width):
            return self.maps[name]
        return np.stack([cv2.resize(channel, (width, height), interpolation=cv2.INTER_LINEAR) for channel in self.maps[name]])

    def nearest(self, labels: np.ndarray) -> np.ndarray:
        """Of `[h, w]` as the image was shown, on the decoded sample's pixels."""
        return resize_labels(labels, *self.decoded.image.shape[:2])

    @property
    def mpp(self) -> float:
        """um/px of the decoded sample; a file that does not state its own is taken to have `POST_MPP`."""
        return (self.sample.mpp or POST_MPP) / self.decoded.scale

    @property
    def shown_mpp(self) -> float:
        """um/px of `maps`; where the image was stretched unevenly, the edge of a square of the same area as a pixel."""
        height, width = self.decoded.image.shape[:2]
        return self.mpp * ((height * width) / (self.shown[0] * self.shown[1])) ** 0.5


@dataclass(frozen=True, kw_only=True)
class View:
    """How a model sees images."""

    tile_px: int  # edge of the square that it sees
    fit: str = "resize"  # resize or crop, as `LabelledConfig` has it
    views: int = 1  # symmetries of the square that predictions are averaged over: 1 or 8
    precision: str = "float32"  # float32 or bfloat16 (autocast)
    batch_size: int = 32  # tiles at once


def predict(
    model: nn.Module,
    source: SampleSource,
    samples: Sequence[Sample],
    indices: Sequence[int],
    info: DatasetInfo,
    view: View,
    *,
    device: torch.device,
    with_instances: bool = True,
) -> Predictions:
    """What a model says of samples, compared with what a person said.

    Args:
        model: As `csat.model.registry.build_model` makes it, on `device`, in evaluation mode.
        source: Gives decoded samples.
        samples: What is judged.
        indices: Of each sample in `source`.
        info: Task and classes.
        view: How it sees them.
        with_instances: Of nuclei: find single nuclei and match them (slow); else only pixels are counted.

    Returns:
        One row per sample that can be decoded, in the order of `samples`; the others are its `unreadable`.
    """
    judge = {
        Task.CLASSIFICATION: _judge_class,
        Task.SEGMENTATION: _judge_mask,
        Task.NUCLEI: _judge_nuclei if with_instances else _judge_nucleus_pixels,
    }[info.task]
    rows: list[tuple[Sample, float, dict[str, np.ndarray]]] = []
    unreadable: list[tuple[str, str]] = []
    for answer in _look(model, source, samples, indices, view, device, unreadable):
        rows.append((answer.sample, *judge(answer, info)))
    names = rows[0][2] if rows else {}
    return Predictions(
        task=info.task,
        classes=info.classes,
        keys=tuple(sample.key for sample, _, _ in rows),
        groups=tuple(sample.group for sample, _, _ in rows),
        loss=np.array([loss for _, loss, _ in rows], np.float64),
        arrays={name: np.stack([arrays[name] for _, _, arrays in rows]) for name in names},
        views=view.views,
        unreadable=tuple(unreadable),
    )


def show(
    model: nn.Module,
    source: SampleSource,
    samples: Sequence[Sample],
    indices: Sequence[int],
    info: DatasetInfo,
    view: View,
    *,
    device: torch.device,
) -> list[dict[str, Any]]:
    """Pictures of samples for a report.

    Returns:
        For each sample `key`, `title` (what was labelled and what was said), `loss`, `image` uint8 [H, W, 3], and `true` and
        `said`: int [H, W] class or instance ids, None for a classification.
    """
    pictures = []
    for answer in _look(model, source, samples, indices, view, device, []):
        sample, decoded = answer.sample, answer.decoded
        picture = {"key": sample.key, "image": decoded.image, "true": None, "said": None}
        if info.task == Task.CLASSIFICATION:
            picture["loss"], arrays = _judge_class(answer, info)
            said = int(arrays["probs"].argmax())
            probability = answer.maps["label"][said]
            picture["title"] = f"labelled {info.classes[sample.label]}, said {info.classes[said]} ({probability:.2f})"
        elif info.task == Task.SEGMENTATION:
            picture["loss"], arrays = _judge_mask(answer, info)
            confusion = arrays["confusion"]
            picture["title"] = f"{np.trace(confusion) / max(confusion.sum(), 1):.0%} of the pixels right"
            picture |= {"true": decoded.mask, "said": answer.over_image("mask").argmax(0)}
        else:
            picture["loss"], arrays = _judge_nucleus_pixels(answer, info)
            tp, fp, fn = arrays["pixels"]
            said = _instances(answer)
            num_true = np.count_nonzero(np.bincount(decoded.instances.ravel())[1:])  # ids have gaps where images were cut
            picture["title"] = f"{num_true} nuclei, said {said.max()}; Dice {2 * tp / max(2 * tp + fp + fn, 1):.2f}"
            picture |= {"true": decoded.instances, "said": answer.nearest(said)}
        pictures.append(picture)
    return pictures


# ------------------------------------------------------------------------------------------------------------ seeing images


def _look(
    model: nn.Module,
    source: SampleSource,
    samples: Sequence[Sample],
    indices: Sequence[int],
    view: View,
    device: torch.device,
    unreadable: list[tuple[str, str]],
) -> Iterator[Answer]:
    """What was said of each sample, in order. Tiles of several samples share a batch."""
    waiting: list[_Image] = []
    queue: list[tuple[_Image, tuple[int, int]]] = []
    margin_px = max([spec.crop_px for spec in _answers(model)] + [int(view.tile_px * MARGIN_SHARE)])
    for sample, index in zip(samples, indices, strict=True):
        try:
            image = _Image(sample, source.get(index), _answers(model), view, margin_px)
        except SlideError as error:
            unreadable.append((sample.key, f"{error.reason}: {error}"))
            continue
        waiting.append(image)
        queue += [(image, window) for window in image.windows]
        while len(queue) >= view.batch_size:
            _run(model, queue[: view.batch_size], view, device)
            del queue[: view.batch_size]
            while waiting and waiting[0].is_done:
                yield waiting.pop(0).result()
    if queue:
        _run(model, queue, view, device)
    for image in waiting:
        yield image.result()


def _answers(model: nn.Module) -> list[ResponseSpec]:
    """What a model says of an image: not the maps that a student learned of its teacher."""
    return [spec for spec in model.responses if spec.kind != Kind.FEATURES]


class _Image:
    """One sample, the windows through which it is seen, and what was said of them so far."""

    def __init__(self, sample: Sample, decoded: Decoded, responses: Sequence[ResponseSpec], view: View, margin_px: int):
        self.sample, self.decoded, self.view, self.responses = sample, decoded, view, responses
        self.height, self.width = decoded.image.shape[:2]
        tile_px, crop_px = view.tile_px, max(spec.crop_px for spec in responses)
        if view.fit == "resize":
            self.shown = fit_tile(Decoded(image=decoded.image), tile_px=tile_px, fit="resize").image
        else:
            self.shown = decoded.image
        height, width = self.shown.shape[:2]
        self.windows = [
            (top, left)
            for top in _starts(height, tile_px, crop_px, margin_px)
            for left in _starts(width, tile_px, crop_px, margin_px)
        ]
        self.margin_px = margin_px
        self._left = len(self.windows)
        self._maps: Maps = {
            spec.name: np.zeros((spec.channels, *((height, width) if spec.is_dense else ())), np.float32) for spec in responses
        }

    @property
    def is_done(self) -> bool:
        return self._left == 0

    def tile(self, window: tuple[int, int]) -> np.ndarray:
        """uint8 `[tile_px, tile_px, 3]`; what lies beyond the image is its mirror image."""
        rows, columns = (
            _mirrored(start, self.view.tile_px, size) for start, size in zip(window, self.shown.shape[:2], strict=True)
        )
        return self.shown[rows[:, None], columns[None]]

    def add(self, window: tuple[int, int], said: Maps) -> None:
        """Take one window's predictions: name → `[C, n, n]` over the tile less the response's crop, or `[C]`."""
        self._left -= 1
        for spec in self.responses:
            if not spec.is_dense:
                self._maps[spec.name] += said[spec.name] / len(self.windows)
                continue
            (top, above), (left, before) = (
                self._used(start, size, spec.crop_px) for start, size in zip(window, self.shown.shape[:2], strict=True)
            )
            values = said[spec.name][:, above[0] : above[1], before[0] : before[1]]
            self._maps[spec.name][:, top : top + values.shape[1], left : left + values.shape[2]] = values

    def _used(self, start: int, size: int, crop_px: int) -> tuple[int, tuple[int, int]]:
        """Along one axis: where in the image the window's inner part begins, and its range in the prediction."""
        tile_px = self.view.tile_px
        inset = self.margin_px if size > tile_px - 2 * crop_px else crop_px
        first, last = max(0, start + inset), min(size, start + tile_px - inset)
        return first, (first - start - crop_px, last - start - crop_px)

    def result(self) -> Answer:
        assert self.is_done
        return Answer(sample=self.sample, decoded=self.decoded, maps=self._maps, shown=self.shown.shape[:2])


def _starts(size: int, tile_px: int, crop_px: int, margin_px: int) -> list[int]:
    """First pixels of the windows along one axis; negative where a window begins before the image."""
    if size <= tile_px - 2 * crop_px:
        return [-((tile_px - size) // 2)]
    inner_px = tile_px - 2 * margin_px
    count = -(-size // inner_px)
    return np.linspace(-margin_px, size + margin_px - tile_px, count).round().astype(int).tolist()


def _mirrored(start: int, length: int, size: int) -> np.ndarray:
    """int64 `[length]`: pixels of an axis from `start` on, mirrored at both ends as often as needed."""
    place = np.arange(start, start + length) % (2 * size)
    return np.where(place < size, place, 2 * size - 1 - place)


@torch.inference_mode()
def _run(model: nn.Module, queue: Sequence[tuple[_Image, tuple[int, int]]], view: View, device: torch.device) -> None:
    """Show a batch of windows to the model and hand its answers to their images."""
    tiles = torch.from_numpy(np.stack([image.tile(window) for image, window in queue])).to(device).permute(0, 3, 1, 2)
    said: dict[str, Tensor] = {}
    for index in range(view.views):
        turn = torch.full((len(tiles),), index, dtype=torch.uint8, device=device)
        back = torch.full_like(turn, invert_d4(index))
        with torch.autocast(device.type, torch.bfloat16, enabled=view.precision == "bfloat16"):
            raw = model(downsample(apply_d4(tiles, turn).float() / 255, model.downsample))
        for spec in _answers(model):
            values = _activate(align(raw[spec.name], spec, view.tile_px).float(), spec)
            if spec.is_dense and index:
                values = apply_d4(values, back, spec.symmetry)
            said[spec.name] = said.get(spec.name, 0) + values / view.views
    arrays = {name: values.cpu().numpy() for name, values in said.items()}
    for row, (image, window) in enumerate(queue):
        image.add(window, {name: values[row] for name, values in arrays.items()})


def _activate(values: Tensor, spec: ResponseSpec) -> Tensor:
    if spec.kind == Kind.PROBABILITY and spec.channels == 1:
        return values.sigmoid()
    return values.softmax(1) if spec.kind in (Kind.PROBABILITY, Kind.LOGITS) else values


# ------------------------------------------------------------------------------------------------------------ judging them


def _judge_class(answer: Answer, info: DatasetInfo) -> tuple[float, dict]:
    probs, label = answer.maps["label"] / answer.maps["label"].sum(), answer.sample.label
    return -float(np.log(max(probs[label], TINY))), {"probs": probs, "label": np.int64(label)}


def _judge_mask(answer: Answer, info: DatasetInfo) -> tuple[float, dict]:
    mask, probs = answer.decoded.mask, answer.over_image("mask")
    counted = mask != IGNORE
    true = np.where(counted, mask, 0).astype(np.int64)
    probability = np.take_along_axis(probs, true[None], 0)[0]
    loss = -float(np.log(np.maximum(probability[counted], TINY)).mean()) if counted.any() else 0.0
    return loss, {"confusion": count_pixels(probs.argmax(0), mask, len(info.classes))}


def _judge_nucleus_pixels(answer: Answer, info: DatasetInfo) -> tuple[float, dict]:
    true, probability = answer.decoded.instances > 0, answer.over_image("np")[0]
    said = probability >= 0.5
    pixels = np.array([(said & true).sum(), (said & ~true).sum(), (~said & true).sum()], np.int64)
    right = np.where(true, probability, 1 - probability)
    return -float(np.log(np.maximum(right, TINY)).mean()), {"pixels": pixels}


def _judge_nuclei(answer: Answer, info: DatasetInfo) -> tuple[float, dict]:
    loss, arrays = _judge_nucleus_pixels(answer, info)
    said, decoded = answer.nearest(_instances(answer)), answer.decoded
    types = None
    if info.classes and decoded.types is not None:
        types = answer.nearest(answer.maps["tp"].argmax(0).astype(np.uint8)), decoded.types
    counts = compare_instances(said, decoded.instances, mpp=answer.mpp, types=types, num_types=len(info.classes))
    return loss, arrays | counts


def _instances(answer: Answer) -> np.ndarray:
    """Single nuclei on the pixels of the image as it was shown."""
    return instances_from_hv(answer.maps["np"][0], answer.maps["hv"], mpp=answer.shown_mpp)
