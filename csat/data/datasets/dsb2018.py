"""Data Science Bowl 2018 (BBBC038): nuclei, as downloaded (one mask file per nucleus) or merged to one label image.

<root>/<id>/images/<id>.png, <root>/<id>/masks/*.png     (stage1_train; the folder above it does too)
<root>/images/<id>.png, <root>/inst/<id>.png             (merged: instance numbers)
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from csat.data import storage
from csat.data.datasets.contract import DatasetInfo, Decoded, LabelledSet, Sample, Task
from csat.data.datasets.decode import (
    check_same_size,
    find_images,
    first_folder,
    missing_layout,
    read_image,
    read_label_image,
    relative_key,
)
from csat.errors import DatasetError
from csat.settings import read_settings

TASKS = (Task.NUCLEI,)


@dataclass(frozen=True, kw_only=True)
class DSBOptions:
    """What of the set is used."""

    stained_only: bool = True  # leave out fluorescence: images without colour (of the original layout, which mixes them)


def read(root: str, *, task: Task, options: Mapping[str, Any]) -> LabelledSet:
    """See `contract`."""
    chosen = read_settings(DSBOptions, options, what="data set 'dsb2018'")
    root = storage.normalise(root)
    merged = find_images(storage.join(root, "images"))
    if merged:
        samples = [
            _sample(uri, root, storage.join(root, "inst", storage.base_name(uri).rsplit(".", 1)[0] + ".png")) for uri in merged
        ]
    else:
        folder = first_folder(root, "stage1_train") or root
        images = [uri for uri in find_images(folder) if storage.base_name(storage.parent(uri)) == "images"]
        samples = [_sample(uri, root, storage.join(storage.parent(storage.parent(uri)), "masks")) for uri in images]
        if chosen.stained_only:
            samples = [sample for sample in samples if _is_stained(read_image(sample.image, sample.key))]
    if not samples:
        raise missing_layout(
            "dsb2018",
            root,
            looked_for="<id>/images/<id>.png with <id>/masks/*.png, or images/*.png with inst/*.png",
            advice="Point the path at stage1_train; set stained_only: false to use fluorescence too",
        )
    info = DatasetInfo(
        name="dsb2018",
        task=task,
        classes=(),
        mpp=None,
        licence="CC0",
        source="Caicedo et al., Nature Methods 2019; https://bbbc.broadinstitute.org/BBBC038",
        group="image (no grouping known)",
        note="magnification is mixed and not stated; neighbouring fields of one slide may be in several parts",
    )
    return LabelledSet(info, tuple(sorted(samples, key=lambda sample: sample.key)))


def load(sample: Sample) -> Decoded:
    """Image and instances."""
    image = read_image(sample.image, sample.key)
    if storage.is_dir(sample.mask):
        instances = np.zeros(image.shape[:2], np.int32)
        for number, uri in enumerate(find_images(sample.mask), 1):
            nucleus = read_label_image(uri)
            check_same_size(image, nucleus, sample)
            instances[nucleus > 0] = number
        if not instances.any():
            raise DatasetError(f"{sample.key}: no nucleus in {sample.mask}")
    else:
        instances = read_label_image(sample.mask).astype(np.int32)
        check_same_size(image, instances, sample)
    return Decoded(image=image, instances=instances)


def _sample(uri: str, root: str, mask: str) -> Sample:
    return Sample(
        key=relative_key(uri, root),
        layout="dsb2018",
        image=uri,
        group=storage.base_name(uri).rsplit(".", 1)[0],
        mask=mask,
    )


def _is_stained(image: np.ndarray) -> bool:
    chroma = image.max(axis=2).astype(np.int16) - image.min(axis=2)
    return float(chroma.mean()) > 4.0
