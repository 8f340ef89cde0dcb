"""PanNuke (Gamper et al. 2020): nuclei with their types in 7,901 images of 19 tissues, 256 px at 40x, in three folds.

    <root>/Fold 1/images/fold1/images.npy     float64 [n, 256, 256, 3], 0 to 255
    <root>/Fold 1/images/fold1/types.npy      str [n], the tissue
    <root>/Fold 1/masks/fold1/masks.npy       float64 [n, 256, 256, 6]: instance numbers per type; the last is background

The three files of a fold lie anywhere below a folder whose name ends in its number (Fold 1, fold1, Part 1). Images and masks
are never read whole: row by row, from the disk.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np

from csat import nuclei
from csat.errors import ConfigError, DatasetError, SlideError
from csat.labels.datasets.contract import Decoded, LabelledSet, Sample
from csat.labels.datasets.decode import local_container, missing_layout, relative_key
from csat.settings import read_settings
from csat.storage import files
from csat.tasks import DatasetInfo, Task

TASKS = (Task.NUCLEI, Task.SEGMENTATION)
TYPES = nuclei.PANNUKE
MPP = 0.25  # 40x
FILES = ("images.npy", "masks.npy", "types.npy")
FOLD = re.compile(r"(?:fold|part)[ _-]?([0-9]+)", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Which fold is which split. The authors' three splits are (train, val, test) 1, 2, 3; 2, 1, 3; and 3, 2, 1."""

    train: tuple[int, ...] = (1,)  # folds; those that no split names are not used
    val: tuple[int, ...] = (2,)  # empty: drawn from train
    test: tuple[int, ...] = (3,)  # empty: drawn from train
    tissues: tuple[str, ...] | None = None  # such as Breast, Colon; None: all 19

    def __post_init__(self):
        folds = [*self.train, *self.val, *self.test]
        if len(set(folds)) < len(folds) or not self.train:
            raise ConfigError(
                f"train, val and test name different folds, and train at least one; got train {list(self.train)}, val "
                f"{list(self.val)}, test {list(self.test)}"
            )


def read(root: str, *, task: Task, options: Mapping[str, Any]) -> LabelledSet:
    """See `contract`. Tissues are read; of images and masks only their shapes."""
    chosen = read_settings(Options, options, what="data set 'pannuke'")
    root = files.normalise(root)
    splits = {fold: split for split in ("train", "val", "test") for fold in getattr(chosen, split)}
    folds = _find_folds(root)
    if missing := [fold for fold in splits if set(folds.get(fold, ())) != set(FILES)]:
        raise missing_layout(
            "pannuke",
            root,
            looked_for=f"{', '.join(FILES)} below folders Fold {', Fold '.join(map(str, splits))}; incomplete: Fold "
            f"{', Fold '.join(map(str, missing))}",
            advice="Unpack the folds of https://warwick.ac.uk/fac/cross_fac/tia/data/pannuke there, or choose others with the "
            "options train, val and test",
        )
    samples = [sample for fold, split in splits.items() for sample in _samples(folds[fold], split, root, chosen.tissues)]
    info = DatasetInfo(
        name="pannuke",
        task=task,
        classes=TYPES if task == Task.NUCLEI else ("background", *TYPES),
        mpp=MPP,
        licence="CC BY-NC-SA 4.0",
        source="Gamper et al., PanNuke Dataset Extension, arXiv:2003.10778; https://warwick.ac.uk/fac/cross_fac/tia/data/pannuke",
        group="image (no grouping known)",
        note="images of one patient or slide may be in several folds; labels are partly a model's, checked by pathologists",
    )
    return LabelledSet(info, tuple(sorted(samples, key=lambda sample: sample.key)))


def load(sample: Sample) -> Decoded:
    """Image, instances and types; for segmentation the types as a class mask.

    Where nuclei of two types overlap, the later type has the pixels, as in the authors' metrics.
    """
    pixels = _read_row(sample.image, sample)
    if pixels.min() < 0 or pixels.max() > 255:
        raise SlideError("unreadable", f"{sample.key}: pixels are 0 to 255, found {pixels.min()} to {pixels.max()}")
    image = np.ascontiguousarray(pixels, np.uint8)
    layers = _read_row(sample.mask, sample)[..., : len(TYPES)].astype(np.int64)
    types = np.zeros(layers.shape[:2], np.uint8)
    number = np.zeros(layers.shape[:2], np.int64)  # of the instance within its type
    for value, layer in enumerate(np.moveaxis(layers, 2, 0), 1):
        types[layer > 0] = value
        number[layer > 0] = layer[layer > 0]
    if sample.task == Task.SEGMENTATION:
        return Decoded(image=image, mask=types)
    # Numbers may repeat in another type's layer: an instance is a pair of type and number.
    pairs = np.where(types > 0, types * (number.max() + 1) + number, 0)
    instances = np.unique(np.append(pairs, 0), return_inverse=True)[1][:-1].reshape(pairs.shape)
    return Decoded(image=image, instances=instances.astype(np.int32), types=types)


def _find_folds(root: str) -> dict[int, dict[str, str]]:
    """Fold → file name → URI."""
    folds: dict[int, dict[str, str]] = {}
    for uri in files.list_files(root):
        name = files.base_name(uri)
        numbers = FOLD.findall(relative_key(files.parent(uri), root))
        if name not in FILES or not numbers:
            continue
        paths = folds.setdefault(int(numbers[-1]), {})
        if name in paths:
            raise DatasetError(f"data set 'pannuke': fold {numbers[-1]} has {paths[name]} and {uri}; move one of them away")
        paths[name] = uri
    return folds


def _samples(paths: dict[str, str], split: str, root: str, tissues: Sequence[str] | None) -> list[Sample]:
    found = _read_tissues(paths["types.npy"])
    shapes = {name: _read_shape(paths[name]) for name in ("images.npy", "masks.npy")}
    for name, channels in (("images.npy", 3), ("masks.npy", len(TYPES) + 1)):
        if shapes[name] != (len(found), *shapes["images.npy"][1:3], channels):
            raise DatasetError(
                f"{paths[name]}: expected an array [{len(found)}, H, W, {channels}], a row for each of types.npy, and masks "
                f"of their images' size; found {list(shapes[name])}"
            )
    if unknown := sorted(set(tissues or ()) - set(found)):
        there = ", ".join(sorted(set(found)))
        raise DatasetError(f"{paths['types.npy']}: there is no tissue {', '.join(unknown)}; it has: {there}")
    samples = []
    for index, tissue in enumerate(found):
        if tissues is None or tissue in tissues:
            key = relative_key(paths["images.npy"], root, index)
            samples.append(
                Sample(
                    key=key,
                    layout="pannuke",
                    image=paths["images.npy"],
                    group=key,
                    split=split,
                    mask=paths["masks.npy"],
                    index=index,
                    mpp=MPP,
                )
            )
    return samples


def _read_tissues(uri: str) -> list[str]:
    try:
        tissues = np.load(BytesIO(files.read_bytes(uri)), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise DatasetError(f"{uri}: cannot be read as an npy of text: {error}") from error
    if tissues.ndim != 1 or tissues.dtype.kind != "U":
        raise DatasetError(f"{uri}: expected the tissues' names, one per image; found {tissues.dtype} {list(tissues.shape)}")
    return tissues.tolist()


def _read_shape(uri: str) -> tuple[int, ...]:
    """Of an npy file, from its header."""
    with files.open_input(uri) as file:
        try:
            version = np.lib.format.read_magic(file)
            read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            return read_header(file)[0]
        except ValueError as error:
            raise DatasetError(f"{uri}: cannot be read as npy: {error}") from error


def _read_row(uri: str, sample: Sample) -> np.ndarray:
    with local_container(uri) as path:
        try:
            return np.array(np.load(path, mmap_mode="r", allow_pickle=False)[sample.index])
        except (ValueError, IndexError, EOFError, OSError) as error:  # of a damaged or short file
            raise SlideError("unreadable", f"{sample.key}: {uri}: {type(error).__name__}: {error}") from error
