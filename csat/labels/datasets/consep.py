"""CoNSeP (Graham et al. 2019): nuclei of 41 colon images with their types, as downloaded, or cut into patches.

<root>/{Train,Test}/Images/train_1.png     <root>/{Train,Test}/Labels/train_1.mat    (inst_map, type_map)
<root>/{train,test}/images/train_1_000.jpg, inst/train_1_000.png, type/train_1_000.png     (patches: <split>_<image>_<patch>)

Root may be the folder above (CoNSeP).
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.io import loadmat

from csat import nuclei
from csat.errors import SlideError
from csat.labels.datasets.contract import Decoded, LabelledSet, Sample
from csat.labels.datasets.decode import (
    NoOptions,
    find_images,
    first_folder,
    local_container,
    missing_layout,
    read_classes,
    read_image,
    read_instances,
    relative_key,
    stem_of,
)
from csat.settings import read_settings
from csat.storage import files
from csat.tasks import DatasetInfo, Task

TASKS = (Task.NUCLEI, Task.SEGMENTATION)
TYPES = nuclei.CONSEP
MPP = 0.25  # 40x
# The mat files tell seven types apart: other, inflammatory, healthy and malignant epithelium, fibroblast, muscle, endothelium.
# The authors merge both epithelia, and the last three.
MERGED = np.array([0, 1, 2, 3, 3, 4, 4, 4], np.uint8)
SPLITS = ("train", "test")
IMAGE, PATCH = re.compile(r"(?:train|test)_\d+"), re.compile(r"((?:train|test)_\d+)_\d+")  # file names without their ending


def read(root: str, *, task: Task, options: Mapping[str, Any]) -> LabelledSet:
    """See `contract`."""
    read_settings(NoOptions, options, what="data set 'consep'")
    root = files.normalise(root)
    base = root if first_folder(root, "CoNSeP") is None else files.join(root, "CoNSeP")
    samples = [sample for split in SPLITS for sample in (*_patches(base, split, root), *_images(base, split, root))]
    if not samples:
        raise missing_layout(
            "consep",
            root,
            looked_for="Train/Images/train_1.png with Train/Labels/train_1.mat, or train/images/train_1_000.jpg with "
            "train/inst and train/type",
            advice="Point the path at the folder that holds Train and Test",
        )
    info = DatasetInfo(
        name="consep",
        task=task,
        classes=TYPES if task == Task.NUCLEI else ("background", *TYPES),
        mpp=MPP,
        licence="not stated in the download; others list it as Apache-2.0 or CC BY-NC-SA 4.0: verify at the source",
        source="Graham et al., HoVer-Net, Medical Image Analysis 2019; https://warwick.ac.uk/fac/cross_fac/tia/data/hovernet",
        group="image",
        note="the images are of 16 patients, whom the files do not name: one patient may be in several parts; patches cut "
        "nuclei at their borders, and both halves count",
    )
    return LabelledSet(info, tuple(sorted(samples, key=lambda sample: sample.key)))


def load(sample: Sample) -> Decoded:
    """Image, instances and types; for segmentation the types as a class mask."""
    image = read_image(sample.image, sample.key)
    if sample.types is None:
        instances, types = _read_mat(sample)
    else:
        instances, types = read_instances(sample.mask), read_classes(sample.types)
    if sample.task == Task.SEGMENTATION:
        return Decoded(image=image, mask=types)
    return Decoded(image=image, instances=instances, types=types)


def _patches(base: str, split: str, root: str) -> list[Sample]:
    folder = files.join(base, split)
    return [
        Sample(
            key=relative_key(uri, root),
            layout="consep",
            image=uri,
            group=match[1],
            split=split,
            mask=files.join(folder, "inst", f"{match[0]}.png"),
            types=files.join(folder, "type", f"{match[0]}.png"),
            mpp=MPP,
        )
        for uri in find_images(files.join(folder, "images"))
        if (match := PATCH.fullmatch(stem_of(uri)))
    ]


def _images(base: str, split: str, root: str) -> list[Sample]:
    folder = files.join(base, split.capitalize())
    return [
        Sample(
            key=relative_key(uri, root),
            layout="consep",
            image=uri,
            group=stem_of(uri),
            split=split,
            mask=files.join(folder, "Labels", f"{stem_of(uri)}.mat"),
            mpp=MPP,
        )
        for uri in find_images(files.join(folder, "Images"))
        if IMAGE.fullmatch(stem_of(uri))
    ]


def _read_mat(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    with local_container(sample.mask) as path:
        try:
            arrays = loadmat(path, variable_names=("inst_map", "type_map"))
            instances, types = arrays["inst_map"].astype(np.int32), arrays["type_map"].astype(np.int64)
        except Exception as error:  # scipy raises whatever its parser meets: ValueError, TypeError, zlib.error, struct.error
            raise SlideError("unreadable", f"{sample.mask}: no mat file with inst_map and type_map: {error!r}") from error
    if types.size and not 0 <= types.min() <= types.max() < len(MERGED):
        raise SlideError(
            "unreadable", f"{sample.mask}: types are 0 to {len(MERGED) - 1}, found {types.min()} to {types.max()}"
        )
    return instances, MERGED[types]
