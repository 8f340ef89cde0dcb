"""A model is judged on labelled samples: what it says of each whole image is compared with what a person said.

What a metric needs of a sample becomes one row of `Predictions`. How the model sees the image: `csat.prediction.windows`.

Single nuclei are made where the model answered: on the pixels of the image as it was shown, by post-processing whose lengths
follow the resolution there, which a stretched image has another one of than its file. What was said is then compared on the
pixels of the decoded sample: probabilities get there linearly, numbers of nuclei and their types by the nearest pixel.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from csat.errors import SlideError
from csat.evaluation.metrics.classification import count_confidence
from csat.evaluation.metrics.instances import compare_instances
from csat.evaluation.metrics.segmentation import count_pixels
from csat.evaluation.predictions import Predictions
from csat.instances import POST_MPP, instances_from_hv
from csat.labels.augment import resize, resize_labels
from csat.labels.datasets.contract import Decoded, Sample
from csat.labels.decoded import SampleSource
from csat.prediction.answers import Answers
from csat.prediction.windows import Maps, View, see
from csat.tasks import IGNORE, DatasetInfo, Task

TINY = 1e-12
AS_IT_IS = 0.01  # an image this much coarser or finer than a model wants is shown without resampling


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


def judge(
    answers: Answers,
    source: SampleSource,
    samples: Sequence[Sample],
    indices: Sequence[int],
    info: DatasetInfo,
    view: View,
    *,
    with_instances: bool = True,
) -> Predictions:
    """What a model says of samples, compared with what a person said.

    Args:
        answers: The model, which answers what the task asks for.
        source: Gives decoded samples.
        samples: What is judged.
        indices: Of each sample in `source`.
        info: Task and classes.
        view: How it sees them.
        with_instances: Of nuclei: find single nuclei and match them (slow); else only pixels are counted.

    Returns:
        One row per sample that can be decoded, in the order of `samples`; the others are its `unreadable`.
    """
    compare = {
        Task.CLASSIFICATION: _compare_class,
        Task.SEGMENTATION: _compare_mask,
        Task.NUCLEI: _compare_nuclei if with_instances else _compare_nucleus_pixels,
    }[info.task]
    rows: list[tuple[Sample, float, dict[str, np.ndarray]]] = []
    unreadable: list[tuple[str, str]] = []
    for answer in _answers(answers, source, samples, indices, view, unreadable):
        rows.append((answer.sample, *compare(answer, info)))
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
    answers: Answers,
    source: SampleSource,
    samples: Sequence[Sample],
    indices: Sequence[int],
    info: DatasetInfo,
    view: View,
) -> list[dict[str, Any]]:
    """Pictures of samples for a report.

    Returns:
        For each sample `key`, `title` (what was labelled and what was said), `loss`, `image` uint8 [H, W, 3], and `true` and
        `said`: int [H, W] class or instance ids, None for a classification.
    """
    pictures = []
    for answer in _answers(answers, source, samples, indices, view, []):
        sample, decoded = answer.sample, answer.decoded
        picture = {"key": sample.key, "image": decoded.image, "true": None, "said": None}
        if info.task == Task.CLASSIFICATION:
            picture["loss"], arrays = _compare_class(answer, info)
            said = int(arrays["probs"].argmax())
            probability = answer.maps["label"][said]
            picture["title"] = f"labelled {info.classes[sample.label]}, said {info.classes[said]} ({probability:.2f})"
        elif info.task == Task.SEGMENTATION:
            picture["loss"], arrays = _compare_mask(answer, info)
            confusion = arrays["confusion"]
            picture["title"] = f"{np.trace(confusion) / max(confusion.sum(), 1):.0%} of the pixels right"
            picture |= {"true": decoded.mask, "said": answer.over_image("mask").argmax(0)}
        else:
            picture["loss"], arrays = _compare_nucleus_pixels(answer, info)
            tp, fp, fn = arrays["pixels"]
            said = _instances(answer)
            num_true = np.count_nonzero(np.bincount(decoded.instances.ravel())[1:])  # ids have gaps where images were cut
            picture["title"] = f"{num_true} nuclei, said {said.max()}; Dice {2 * tp / max(2 * tp + fp + fn, 1):.2f}"
            picture |= {"true": decoded.instances, "said": answer.nearest(said)}
        pictures.append(picture)
    return pictures


def _answers(
    answers: Answers,
    source: SampleSource,
    samples: Sequence[Sample],
    indices: Sequence[int],
    view: View,
    unreadable: list[tuple[str, str]],
) -> Iterator[Answer]:
    """What was said of each sample that can be decoded, in order; the others are added to `unreadable`."""

    def images() -> Iterator[tuple[tuple[Sample, Decoded], np.ndarray]]:
        for sample, index in zip(samples, indices, strict=True):
            try:
                decoded = source.get(index)
            except SlideError as error:
                unreadable.append((sample.key, f"{error.reason}: {error}"))
            else:
                yield (sample, decoded), _brought_to(view.mpp, sample, decoded)

    for (sample, decoded), seen in see(answers, images(), view):
        yield Answer(sample=sample, decoded=decoded, maps=seen.maps, shown=seen.shown)


def _brought_to(mpp: float | None, sample: Sample, decoded: Decoded) -> np.ndarray:
    """The image at the resolution that the model sees. What was said of it is compared on the decoded sample's pixels."""
    if mpp is None or sample.mpp is None:
        return decoded.image
    scale = sample.mpp / decoded.scale / mpp
    if abs(scale - 1) < AS_IT_IS:
        return decoded.image
    height, width = (max(1, round(edge * scale)) for edge in decoded.image.shape[:2])
    return resize(Decoded(image=decoded.image), height, width).image


def _compare_class(answer: Answer, info: DatasetInfo) -> tuple[float, dict]:
    probs, label = answer.maps["label"] / answer.maps["label"].sum(), answer.sample.label
    return -float(np.log(max(probs[label], TINY))), {"probs": probs, "label": np.int64(label)}


def _compare_mask(answer: Answer, info: DatasetInfo) -> tuple[float, dict]:
    mask, probs = answer.decoded.mask, answer.over_image("mask")
    counted = mask != IGNORE
    true = np.where(counted, mask, 0).astype(np.int64)
    probability = np.take_along_axis(probs, true[None], 0)[0]
    loss = -float(np.log(np.maximum(probability[counted], TINY)).mean()) if counted.any() else 0.0
    return loss, {"confusion": count_pixels(probs.argmax(0), mask, len(info.classes))}


def _compare_nucleus_pixels(answer: Answer, info: DatasetInfo) -> tuple[float, dict]:
    true, probability = answer.decoded.instances > 0, answer.over_image("np")[0]
    said = probability >= 0.5
    pixels = np.array([(said & true).sum(), (said & ~true).sum(), (~said & true).sum()], np.int64)
    right = np.where(true, probability, 1 - probability)
    return -float(np.log(np.maximum(right, TINY)).mean()), {"pixels": pixels}


def _compare_nuclei(answer: Answer, info: DatasetInfo) -> tuple[float, dict]:
    loss, arrays = _compare_nucleus_pixels(answer, info)
    said, decoded = answer.nearest(_instances(answer)), answer.decoded
    probability = answer.over_image("np")[0].ravel()
    is_right = (probability >= 0.5) == (decoded.instances.ravel() > 0)
    arrays["calibration"] = count_confidence(np.maximum(probability, 1 - probability), is_right)
    types = None
    if info.classes and decoded.types is not None:
        types = answer.nearest(answer.maps["tp"].argmax(0).astype(np.uint8)), decoded.types
    counts = compare_instances(said, decoded.instances, mpp=answer.mpp, types=types, num_types=len(info.classes))
    return loss, arrays | counts


def _instances(answer: Answer) -> np.ndarray:
    """Single nuclei on the pixels of the image as it was shown."""
    return instances_from_hv(answer.maps["np"][0], answer.maps["hv"], mpp=answer.shown_mpp)
