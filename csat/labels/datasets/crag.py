"""CRAG (Graham et al. 2019, MILD-Net): glands of colon adenocarcinoma, 213 images of about 1512 x 1516 px at 20x.

    <root>/CRAG/{train,valid}/Images/train_1.png
    <root>/CRAG/{train,valid}/Annotation/train_1.png     glands, numbered
    <root>/CRAG/{train,valid}/Overlay/                   not used

Root may be the folder CRAG itself. The folder valid (40 images; its readme calls it test) is the published test split.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from csat.labels.datasets.contract import Decoded, LabelledSet, Sample
from csat.labels.datasets.decode import (
    NoOptions,
    find_images,
    first_folder,
    missing_layout,
    read_image,
    read_label_image,
    relative_key,
    stem_of,
)
from csat.settings import read_settings
from csat.storage import files
from csat.tasks import DatasetInfo, Task

TASKS = (Task.SEGMENTATION,)
CLASSES = ("background", "gland")
FOLDERS = {"train": "train", "valid": "test", "test": "test"}  # folder → official split
LABELS = ("Annotation", "Annotations")


def read(root: str, *, task: Task, options: Mapping[str, Any]) -> LabelledSet:
    """See `contract`."""
    read_settings(NoOptions, options, what="data set 'crag'")
    root = files.normalise(root)
    base = root if first_folder(root, "CRAG") is None else files.join(root, "CRAG")
    samples = [sample for folder, split in FOLDERS.items() for sample in _samples(files.join(base, folder), split, root)]
    if not samples:
        raise missing_layout(
            "crag",
            root,
            looked_for="CRAG/{train,valid} with Images/*.png and Annotation/*.png",
            advice="Unpack CRAG_v2.zip of https://warwick.ac.uk/fac/cross_fac/tia/data/mildnet there",
        )
    info = DatasetInfo(
        name="crag",
        task=task,
        classes=CLASSES,
        mpp=None,
        licence="not stated in the download; citation required: verify at the source",
        source="Graham et al., MILD-Net, Medical Image Analysis 52 (2019), arXiv:1806.01963; "
        "https://warwick.ac.uk/fac/cross_fac/tia/data/mildnet",
        group="image (no grouping known)",
        note="the images are of 38 slides, which the files do not name: one patient may be in several parts; the resolution "
        "is stated as 20x (about 0.5 um/px): set mpp where one is needed; touching glands become one area",
    )
    return LabelledSet(info, tuple(sorted(samples, key=lambda sample: sample.key)))


def load(sample: Sample) -> Decoded:
    """The image, and gland or not."""
    image = read_image(sample.image, sample.key)
    return Decoded(image=image, mask=(read_label_image(sample.mask) > 0).astype(np.uint8))


def _samples(folder: str, split: str, root: str) -> list[Sample]:
    labels = first_folder(folder, *LABELS) or files.join(folder, LABELS[0])
    samples = []
    for uri in find_images(files.join(folder, "Images")):
        key = relative_key(uri, root)
        mask = files.join(labels, f"{stem_of(uri)}.png")
        samples.append(Sample(key=key, layout="crag", image=uri, group=key, split=split, mask=mask))
    return samples
