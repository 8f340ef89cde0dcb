"""What the layers of a network know before they are fine-tuned: a test sample is called as its nearest training samples are.

Weighted k-nearest neighbours by the cosine of a layer's features, Wu et al. 2018 (arXiv 1805.01978, section 3.4), with the 20
neighbours and the temperature of 0.07 of DINO (arXiv 2104.14294). Nothing is trained and nothing chosen, so layers and starts
are compared alike.

A classification compares tiles, by the mean over a layer's cells. Segmentation and nuclei compare cells: each is what most of
its pixels are. Each image is seen once, as in training but without chance (`fit_tile`): whole, or its middle.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from csat.errors import ConfigError, SlideError
from csat.evaluation.predictions import Predictions
from csat.labels.augment import fit_tile
from csat.labels.datasets.contract import Decoded, Sample
from csat.labels.targets import make_targets
from csat.model.contract import ENCODED, Model
from csat.tasks import DatasetInfo, Task

NUM_NEIGHBOURS = 20
TEMPERATURE = 0.07
TILES_AT_ONCE = 32
CELLS_PER_TILE = 16  # that are compared, spread over the tile
ROWS_AT_ONCE = 512  # of test samples: bounds the memory of their similarities
TINY = 1e-12


@dataclass
class Features:
    """Of one layer: float32 `[N, C]` of length 1, and int64 `[N]` classes, by whole batches."""

    vectors: list[Tensor] = field(default_factory=list)
    labels: list[Tensor] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)  # one for each row

    def whole(self) -> tuple[Tensor, Tensor]:
        return torch.cat(self.vectors), torch.cat(self.labels)


def judge_layers(
    model: Model,
    splits: Mapping[str, Sequence[Sample]],
    decode: Callable[[Sample], Decoded],
    info: DatasetInfo,
    *,
    tile_px: int,
    fit: str,
) -> dict[str, Predictions]:
    """What each layer's nearest neighbours in the training split say of the test split.

    Args:
        model: As it starts; it is set to evaluation.
        splits: With `train` and `test`.
        decode: Gives a sample's pixels; raises SlideError for one that cannot be read, which is left out.
        info: Task and classes.
        tile_px, fit: How the model sees images, as `LabelledConfig` has it.

    Returns:
        Layer, from the first to the last → a classification of tiles or cells.

    Raises:
        ConfigError: the model has no layers that can be tapped, or a split has nothing to compare.
    """
    layers = layers_in_order(model)
    if not layers:
        raise ConfigError(f"{model.noun} has no layers that can be looked at: choose csat, a timm model, fanet or enet")
    model.eval()
    found = {}
    for split in ("train", "test"):
        seen = _tiles(splits[split], decode, tile_px=tile_px, fit=fit)
        found[split] = _features(model, layers, seen, info)
        if not found[split][layers[0]].samples:
            raise ConfigError(f"the {split} part has no labelled image to compare: neighbours need a train and a test part")
    return {name: _as_predictions(found["train"][name], found["test"][name], info) for name in layers}


def layers_in_order(model: Model) -> list[str]:
    """Names of the maps that are compared, finest first; what two names mean is there once."""
    by_stride = sorted(model.layers, key=lambda name: model.layers[name].stride_px)
    return [name for name in by_stride if name != ENCODED or f"stride_{model.layers[name].stride_px}" not in model.layers]


def classes_of(info: DatasetInfo) -> tuple[str, ...]:
    """What is told apart: of nuclei without types, the nuclei from the rest."""
    if info.task != Task.NUCLEI:
        return info.classes
    return ("background", *(info.classes or ("nucleus",)))


def say_by_neighbours(vectors: Tensor, labels: Tensor, asked: Tensor, num_classes: int, k: int = NUM_NEIGHBOURS) -> Tensor:
    """Class probabilities by the nearest of known vectors, each weighted by exp(cosine / TEMPERATURE).

    Args:
        vectors: `[N, C]` of length 1; labels: int64 `[N]`.
        asked: `[M, C]` of length 1.
        num_classes: K.
        k: Neighbours; where there are fewer vectors, all of them.

    Returns:
        float32 `[M, K]`; every row adds up to 1.
    """
    said = torch.zeros(len(asked), num_classes)
    for first in range(0, len(asked), ROWS_AT_ONCE):
        near, which = (asked[first : first + ROWS_AT_ONCE] @ vectors.T).topk(min(k, len(vectors)), dim=1)
        said[first : first + len(near)].scatter_add_(1, labels[which], ((near - near[:, :1]) / TEMPERATURE).exp())
    return said / said.sum(1, keepdim=True)


def _tiles(
    samples: Sequence[Sample], decode: Callable[[Sample], Decoded], *, tile_px: int, fit: str
) -> Iterator[tuple[Sample, Decoded]]:
    for sample in samples:
        try:
            decoded = decode(sample)
        except SlideError:  # counted where all of them were decoded
            continue
        yield sample, fit_tile(decoded, tile_px=tile_px, fit=fit)


@torch.inference_mode()
def _features(
    model: Model, layers: Sequence[str], tiles: Iterable[tuple[Sample, Decoded]], info: DatasetInfo
) -> dict[str, Features]:
    found, tiles = {name: Features() for name in layers}, iter(tiles)
    while batch := list(islice(tiles, TILES_AT_ONCE)):
        pixels = torch.from_numpy(np.stack([tile.image for _, tile in batch])).permute(0, 3, 1, 2)
        maps, _ = model.tap(model.see(pixels), layers)
        truth = torch.from_numpy(np.stack([_truth(tile, sample.label, info) for sample, tile in batch])).long()
        for name, cells in maps.items():
            rows, vectors, labels = _compared(cells.float(), truth, len(classes_of(info)))
            found[name].vectors.append(F.normalize(vectors, dim=1))
            found[name].labels.append(labels)
            found[name].samples += [batch[row][0] for row in rows.tolist()]
    return found


def _truth(tile: Decoded, label: int | None, info: DatasetInfo) -> np.ndarray:
    """The class of the tile, `[]`, or of its pixels, `[H, W]`."""
    targets = make_targets(info, tile, label)
    return targets.get("tp", targets.get("np", targets.get("mask", targets.get("label"))))


def _compared(maps: Tensor, truth: Tensor, num_classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of a batch of maps: for everything that is compared its row in the batch, its features, and its class.

    Args:
        maps: `[B, C, h, w]`.
        truth: int64 `[B]`, or `[B, H, W]` with IGNORE.
        num_classes: K.
    """
    if truth.ndim == 1:
        return torch.arange(len(maps)), maps.mean((2, 3)), truth
    shares = torch.stack([(truth == index).float() for index in range(num_classes)], 1)
    shares = F.adaptive_avg_pool2d(shares, maps.shape[2:]).flatten(2)  # [B, K, cells]
    chosen = torch.linspace(0, shares.shape[2] - 1, min(CELLS_PER_TILE, shares.shape[2])).round().long()
    labels = shares[:, :, chosen].argmax(1)
    is_known = shares[:, :, chosen].sum(1) >= 0.5  # else most of its pixels are IGNORE
    vectors = maps.flatten(2)[:, :, chosen].transpose(1, 2)
    rows = torch.arange(len(maps))[:, None].expand_as(labels)
    return rows[is_known], vectors[is_known], labels[is_known]


def _as_predictions(train: Features, test: Features, info: DatasetInfo) -> Predictions:
    (vectors, labels), (asked, true) = train.whole(), test.whole()
    probs = say_by_neighbours(vectors, labels, asked, len(classes_of(info)))
    numbered = [f"{sample.key}#{number}" for number, sample in enumerate(test.samples)]
    is_cells = info.task != Task.CLASSIFICATION
    return Predictions(
        task=Task.CLASSIFICATION,
        classes=classes_of(info),
        keys=tuple(numbered if is_cells else [sample.key for sample in test.samples]),
        groups=tuple(sample.group for sample in test.samples),
        loss=-probs.gather(1, true[:, None])[:, 0].clamp_min(TINY).log().double().numpy(),
        arrays={"probs": probs.numpy(), "label": true.numpy()},
    )
