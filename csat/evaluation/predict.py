"""A model over labelled samples: each image is seen whole, and what was said of it becomes one row of `Predictions`.

With `fit` "resize" the model sees the image once, stretched to its tile. With "crop" it sees windows at the image's own
resolution: of each window only the inner part is used, and windows are placed so that the inner parts cover the image (the
overlap-tile strategy of Ronneberger et al. 2015, section 2); beyond the image's edge the window sees the mirror image. A
classification is the mean of its windows' probabilities.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from csat.data.augment_joint import fit_tile
from csat.data.datasets.contract import IGNORE, DatasetInfo, Decoded, Sample, Task
from csat.data.decoded import SampleSource
from csat.data.instances import instances_from_hv
from csat.data.transforms import align, apply_d4, downsample, invert_d4
from csat.errors import SlideError
from csat.evaluation.instances import compare_by_type, compare_instances
from csat.evaluation.predictions import Predictions
from csat.evaluation.segmentation import count_pixels
from csat.responses import Kind, ResponseSpec

MARGIN_SHARE = 1 / 8  # of a window's edge, on each side, that is seen and not used
POST_MPP = 0.25  # um/px that the numbers of HoVer-Net's post-processing were chosen for
SOBEL_PX, MIN_AREA_PX = 21, 10  # at POST_MPP
TINY = 1e-12

Maps = dict[str, np.ndarray]  # name → float32 [C, H, W] over the image, or [C]


@dataclass(frozen=True, kw_only=True)
class View:
    """How a model sees images."""

    tile_px: int  # edge of the square that it sees
    fit: str = "resize"  # resize or crop, as `LabelledConfig` has it
    mpp: float | None = None  # resolution of the decoded images where it was asked for, um/px; None: each sample's own
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
    for sample, decoded, maps in _look(model, source, samples, indices, view, device, unreadable):
        loss, arrays = judge(maps, decoded, sample, info, view)
        rows.append((sample, loss, arrays))
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
    for sample, decoded, maps in _look(model, source, samples, indices, view, device, []):
        picture = {"key": sample.key, "image": decoded.image, "true": None, "said": None}
        if info.task == Task.CLASSIFICATION:
            said = int(maps["label"].argmax())
            picture["title"] = f"labelled {info.classes[sample.label]}, said {info.classes[said]} ({maps['label'][said]:.2f})"
            picture["loss"] = _judge_class(maps, decoded, sample, info, view)[0]
        elif info.task == Task.SEGMENTATION:
            picture["loss"], arrays = _judge_mask(maps, decoded, sample, info, view)
            confusion = arrays["confusion"]
            picture["title"] = f"{np.trace(confusion) / max(confusion.sum(), 1):.0%} of the pixels right"
            picture |= {"true": decoded.mask, "said": maps["mask"].argmax(0)}
        else:
            picture["loss"], arrays = _judge_nucleus_pixels(maps, decoded, sample, info, view)
            tp, fp, fn = arrays["pixels"]
            said = _instances(maps, sample, view)
            num_true = np.count_nonzero(np.bincount(decoded.instances.ravel())[1:])  # ids have gaps where images were cut
            picture["title"] = f"{num_true} nuclei, said {said.max()}; Dice {2 * tp / max(2 * tp + fp + fn, 1):.2f}"
            picture |= {"true": decoded.instances, "said": said}
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
) -> Iterator[tuple[Sample, Decoded, Maps]]:
    """Each sample with its activated predictions over the whole image, in order. Tiles of several samples share a batch."""
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

    def result(self) -> tuple[Sample, Decoded, Maps]:
        assert self.is_done
        shown = self.shown.shape[:2]
        maps = {
            name: values
            if values.ndim == 1 or shown == (self.height, self.width)
            else _stretch(values, self.height, self.width)
            for name, values in self._maps.items()
        }
        return self.sample, self.decoded, maps


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


def _stretch(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """`[C, h, w]` to `[C, height, width]`, linearly."""
    return np.stack([cv2.resize(channel, (width, height), interpolation=cv2.INTER_LINEAR) for channel in values])


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


def _judge_class(maps: Maps, decoded: Decoded, sample: Sample, info: DatasetInfo, view: View) -> tuple[float, dict]:
    probs = maps["label"] / maps["label"].sum()
    return -float(np.log(max(probs[sample.label], TINY))), {"probs": probs, "label": np.int64(sample.label)}


def _judge_mask(maps: Maps, decoded: Decoded, sample: Sample, info: DatasetInfo, view: View) -> tuple[float, dict]:
    counted = decoded.mask != IGNORE
    true = np.where(counted, decoded.mask, 0).astype(np.int64)
    probability = np.take_along_axis(maps["mask"], true[None], 0)[0]
    loss = -float(np.log(np.maximum(probability[counted], TINY)).mean()) if counted.any() else 0.0
    return loss, {"confusion": count_pixels(maps["mask"].argmax(0), decoded.mask, len(info.classes))}


def _judge_nucleus_pixels(maps: Maps, decoded: Decoded, sample: Sample, info: DatasetInfo, view: View) -> tuple[float, dict]:
    true, probability = decoded.instances > 0, maps["np"][0]
    said = probability >= 0.5
    pixels = np.array([(said & true).sum(), (said & ~true).sum(), (~said & true).sum()], np.int64)
    right = np.where(true, probability, 1 - probability)
    return -float(np.log(np.maximum(right, TINY)).mean()), {"pixels": pixels}


def _judge_nuclei(maps: Maps, decoded: Decoded, sample: Sample, info: DatasetInfo, view: View) -> tuple[float, dict]:
    loss, arrays = _judge_nucleus_pixels(maps, decoded, sample, info, view)
    said = _instances(maps, sample, view)
    arrays |= compare_instances(said, decoded.instances, mpp=view.mpp or sample.mpp)
    if info.classes:
        types = maps["tp"].argmax(0).astype(np.uint8)
        arrays["match_by_type"] = compare_by_type(said, types, decoded.instances, decoded.types, len(info.classes))
    return loss, arrays


def _instances(maps: Maps, sample: Sample, view: View) -> np.ndarray:
    """Single nuclei, by post-processing whose lengths follow the resolution."""
    scale = POST_MPP / (view.mpp or sample.mpp or POST_MPP)
    sobel_px = min(31, max(3, 2 * round((SOBEL_PX * scale - 1) / 2) + 1))
    return instances_from_hv(maps["np"][0], maps["hv"], sobel_px=sobel_px, min_area_px=max(1, round(MIN_AREA_PX * scale**2)))
