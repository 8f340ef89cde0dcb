"""Data Science Bowl 2018 (BBBC038): nuclei, as downloaded (one mask file per nucleus) or merged to one label image.

<root>/<id>/images/<id>.png, <root>/<id>/masks/*.png     (stage1_train; the folder above it does too)
<root>/images/<id>.png, <root>/inst/<id>.png             (merged: instance numbers)
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from csat.errors import SlideError
from csat.labels.datasets.contract import Decoded, LabelledSet, Sample
from csat.labels.datasets.decode import (
    check_same_size,
    find_images,
    first_folder,
    missing_layout,
    read_binary,
    read_image,
    read_instances,
    relative_key,
    stem_of,
)
from csat.settings import read_settings
from csat.storage import files
from csat.tasks import DatasetInfo, Task

TASKS = (Task.NUCLEI,)
FILE_PER_NUCLEUS = "file per nucleus"  # form of labels that are a folder
STAINED_CHROMA = 4.0  # mean of (largest - smallest of R, G, B) from which an image counts as stained; fluorescence is grey


@dataclass(frozen=True, kw_only=True)
class Options:
    """What of the set is used."""

    stained_only: bool = True  # leave out fluorescence: images without colour (of the original layout, which mixes them)


def read(root: str, *, task: Task, options: Mapping[str, Any]) -> LabelledSet:
    """See `contract`. Images of the original layout (670 small ones) are decoded here, to tell which are stained."""
    chosen = read_settings(Options, options, what="data set 'dsb2018'")
    root = files.normalise(root)
    samples = [_merged(uri, root) for uri in find_images(files.join(root, "images"))]
    if not samples:
        images = find_images(first_folder(root, "stage1_train") or root)
        samples = [_original(uri, root) for uri in images if files.base_name(files.parent(uri)) == "images"]
        if chosen.stained_only:
            samples = [sample for sample in samples if _may_be_stained(sample)]
    if not samples:
        raise missing_layout(
            "dsb2018",
            root,
            looked_for="<id>/images/<id>.png with <id>/masks/*.png, or images/*.png with inst/*.png"
            + (", stained" if chosen.stained_only else ""),
            advice="Point the path at stage1_train; set stained_only: false to use fluorescence too",
        )
    info = DatasetInfo(
        name="dsb2018",
        task=task,
        classes=(),
        mpp=None,
        licence="CC0 1.0",
        source="Caicedo et al., Nature Methods 2019; https://bbbc.broadinstitute.org/BBBC038",
        group="image (no grouping known)",
        note="magnifications are mixed and not stated (by the size of nuclei, two that differ twofold); neighbouring fields "
        "of one slide may be in several parts",
    )
    return LabelledSet(info, tuple(sorted(samples, key=lambda sample: sample.key)))


def load(sample: Sample) -> Decoded:
    """Image and instances. Where mask files overlap, the later name has the pixels."""
    image = read_image(sample.image, sample.key)
    if sample.form != FILE_PER_NUCLEUS:
        return Decoded(image=image, instances=read_instances(sample.mask))
    paths = find_images(sample.mask)
    if not paths:
        raise SlideError("missing", f"{sample.key}: there is no mask in {sample.mask}")
    instances = np.zeros(image.shape[:2], np.int32)
    for number, uri in enumerate(paths, 1):
        nucleus = read_binary(uri, advice="Merged masks, which number the nuclei, belong into inst/, see the layout")
        check_same_size(image, nucleus, sample)
        instances[nucleus] = number
    return Decoded(image=image, instances=instances)


def _merged(uri: str, root: str) -> Sample:
    return Sample(
        key=relative_key(uri, root),
        layout="dsb2018",
        image=uri,
        group=stem_of(uri),
        mask=files.join(root, "inst", f"{stem_of(uri)}.png"),
    )


def _original(uri: str, root: str) -> Sample:
    return Sample(
        key=relative_key(uri, root),
        layout="dsb2018",
        image=uri,
        group=stem_of(uri),
        mask=files.join(files.parent(files.parent(uri)), "masks"),
        form=FILE_PER_NUCLEUS,
    )


def _may_be_stained(sample: Sample) -> bool:
    try:
        image = read_image(sample.image, sample.key)
    except SlideError:
        return True  # `load` will say so, and the sample is counted
    chroma = image.max(axis=2).astype(np.int16) - image.min(axis=2)
    return float(chroma.mean()) > STAINED_CHROMA
