"""CoNSeP (Graham et al. 2019): nuclei of 41 colon images with their types, as downloaded, or cut into patches.

<root>/{Train,Test}/Images/train_1.png     <root>/{Train,Test}/Labels/train_1.mat    (inst_map, type_map)
<root>/{train,test}/images/train_1_000.jpg, inst/train_1_000.png, type/train_1_000.png     (patches: <part>_<image>_<patch>)
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.io import loadmat

from csat.data import storage
from csat.data.datasets.contract import DatasetInfo, Decoded, LabelledSet, Sample, Task
from csat.data.datasets.decode import (
    NoOptions,
    check_same_size,
    find_images,
    local_container,
    missing_layout,
    read_image,
    read_label_image,
    relative_key,
)
from csat.errors import SlideError
from csat.settings import read_settings

TASKS = (Task.NUCLEI, Task.SEGMENTATION)
TYPES = ("other", "inflammatory", "epithelial", "spindle")
MPP = 0.25  # 40x
# The mat files tell seven types apart; HoVer-Net merges them: healthy and malignant epithelium; fibroblast, muscle, endothelium.
MERGED = np.array([0, 1, 2, 3, 3, 4, 4, 4], np.uint8)


def read(root: str, *, task: Task, options: Mapping[str, Any]) -> LabelledSet:
    """See `contract`."""
    read_settings(NoOptions, options, what="data set 'consep'")
    root = storage.normalise(root)
    samples = [sample for part in ("train", "test") for sample in _patches(root, part, task) or _images(root, part, task)]
    if not samples:
        raise missing_layout(
            "consep",
            root,
            looked_for="Train/Images/*.png with Train/Labels/*.mat, or train/images with train/inst and train/type",
            advice="Point the path at the folder that holds Train and Test",
        )
    info = DatasetInfo(
        name="consep",
        task=task,
        classes=TYPES if task == Task.NUCLEI else ("background", *TYPES),
        mpp=MPP,
        licence="Apache-2.0 as others list it; verify at the source",
        source="Graham et al., HoVer-Net, Medical Image Analysis 2019; https://warwick.ac.uk/fac/cross_fac/tia/data/hovernet",
        group="image",
        note="patches cut nuclei at their borders, and both halves count",
    )
    return LabelledSet(info, tuple(sorted(samples, key=lambda sample: sample.key)))


def load(sample: Sample) -> Decoded:
    """Image, instances and types; or (`index` is 0) the types as a class mask."""
    image = read_image(sample.image, sample.key)
    if sample.types is None:
        instances, types = _read_mat(sample)
    else:
        instances, types = read_label_image(sample.mask).astype(np.int32), read_label_image(sample.types).astype(np.uint8)
    for labels in (instances, types):
        check_same_size(image, labels, sample)
    if sample.index == 0:
        return Decoded(image=image, mask=types)
    return Decoded(image=image, instances=instances, types=types)


def _patches(root: str, part: str, task: Task) -> list[Sample]:
    folder = storage.join(root, part)
    names = [storage.base_name(uri) for uri in find_images(storage.join(folder, "images"))]
    return [
        Sample(
            key=f"{part}/images/{name}",
            layout="consep",
            image=storage.join(folder, "images", name),
            group=name.rsplit("_", 1)[0],
            split=part,
            mask=storage.join(folder, "inst", name.rsplit(".", 1)[0] + ".png"),
            types=storage.join(folder, "type", name.rsplit(".", 1)[0] + ".png"),
            index=0 if task == Task.SEGMENTATION else None,
            mpp=MPP,
        )
        for name in names
        if "_" in name
    ]


def _images(root: str, part: str, task: Task) -> list[Sample]:
    folder = storage.join(root, part.capitalize())
    return [
        Sample(
            key=relative_key(uri, root),
            layout="consep",
            image=uri,
            group=storage.base_name(uri).rsplit(".", 1)[0],
            split=part,
            mask=storage.join(folder, "Labels", storage.base_name(uri).rsplit(".", 1)[0] + ".mat"),
            index=0 if task == Task.SEGMENTATION else None,
            mpp=MPP,
        )
        for uri in find_images(storage.join(folder, "Images"))
    ]


def _read_mat(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    with local_container(sample.mask) as path:
        try:
            arrays = loadmat(path, variable_names=("inst_map", "type_map"))
            instances, types = arrays["inst_map"].astype(np.int32), arrays["type_map"].astype(np.int64)
        except (KeyError, ValueError, TypeError, OSError, NotImplementedError) as error:
            raise SlideError("unreadable", f"{sample.mask}: no mat file with inst_map and type_map: {error}") from error
    if types.min() < 0 or types.max() >= len(MERGED):
        raise SlideError(
            "unreadable", f"{sample.mask}: types are 0 to {len(MERGED) - 1}, found {types.min()} to {types.max()}"
        )
    return instances, MERGED[types]
