"""Small data sets on disk, written as their users download them, and what every layout is asked."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from csat.errors import DatasetError, SlideError
from csat.labels.datasets.contract import Decoded, LabelledSet, Sample
from csat.labels.datasets.registry import load_sample, read_dataset

HEIGHT, WIDTH = 20, 24  # not square: exchanged axes show


def picture(seed: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """uint8 `[H, W, 3]`, another for each seed."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write(path: Path, pixels: np.ndarray) -> Path:
    """An image or a mask, encoded as its name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def break_image(path: Path) -> None:
    """Keep the head, lose the pixels: as a download that was cut short."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 3])


def only(found: LabelledSet, name: str) -> Sample:
    """The one sample whose key ends so."""
    samples = [sample for sample in found.samples if sample.key.endswith(name)]
    assert len(samples) == 1, (name, [sample.key for sample in found.samples])
    return samples[0]


def load_all(found: LabelledSet) -> tuple[dict[str, Decoded], dict[str, SlideError]]:
    """Key → what was decoded, and key → why not."""
    decoded, failed = {}, {}
    for sample in found.samples:
        try:
            decoded[sample.key] = load_sample(sample)
        except SlideError as error:
            failed[sample.key] = error
    return decoded, failed


def check_set(found: LabelledSet, *, name: str, classes: tuple[str, ...], licence: str, mpp: float | None) -> None:
    """What is stated of the set, and what holds for the samples of all sets."""
    info = found.info
    assert (info.name, info.classes, info.licence, info.mpp) == (name, classes, licence, mpp)
    assert info.source and info.group
    keys = [sample.key for sample in found.samples]
    assert keys == sorted(set(keys))
    assert {sample.layout for sample in found.samples} == {name}
    assert all(sample.mpp == mpp for sample in found.samples)


def check_misfit(name: str, root: Path, *words: str, **options) -> None:
    """A folder that does not fit is refused, naming the set, the folder and these words."""
    with pytest.raises(DatasetError) as caught:
        read_dataset(name, str(root), options=options)
    message = str(caught.value)
    for word in (f"data set {name!r}", str(root), "looked for", *words):
        assert word in message, (word, message)


def check_one_unreadable(found: LabelledSet, broken: Path) -> None:
    """Of several images a broken one is found when it is decoded, and only then; the others are good."""
    decoded, failed = load_all(found)
    assert len(found.samples) == len(decoded) + 1 and len(failed) == 1
    ((key, error),) = failed.items()
    assert key.endswith(broken.name) and error.reason == "unreadable" and broken.name in str(error)
