"""Images and masks in two folders, matched by their names: one's own segmentation or nuclei set.

<root>/images/a.png, <root>/masks/a.png            or, with official parts, <root>/<train|val|test>/images/… and masks/…
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import cv2
import numpy as np

from csat.data import storage
from csat.data.datasets.contract import IGNORE, DatasetInfo, Decoded, LabelledSet, Sample, Task
from csat.data.datasets.decode import (
    PARTS,
    check_same_size,
    find_images,
    missing_layout,
    read_image,
    read_label_image,
    relative_key,
)
from csat.errors import ConfigError, DatasetError
from csat.settings import read_settings

TASKS = (Task.SEGMENTATION, Task.NUCLEI)
COMPONENTS = 1  # in the place of Sample.index: a binary mask, whose connected components are the nuclei


@dataclass(frozen=True, kw_only=True)
class PairsOptions:
    """Where images and masks are, and what the masks' values mean."""

    image_dir: str = "images"  # folder of images below the root (or below each part)
    mask_dir: str = "masks"  # folder of masks
    image_suffix: str = ""  # end of an image's name, before its extension, that its mask does not have
    mask_suffix: str = ""  # end of a mask's name, before its extension, that its image does not have
    classes: tuple[str, ...] = ("background", "foreground")  # segmentation: names, index 0 first
    instances: Literal["ids", "components"] = "ids"  # nuclei: masks number the nuclei, or each connected piece is one
    group_pattern: str | None = None  # regex searched in each file name: its first (…) is the group; None: each its own
    mpp: float | None = None  # of the images, um/px
    licence: str = field(default="not stated")  # of the images, one line


def read(root: str, *, task: Task, options: Mapping[str, Any]) -> LabelledSet:
    """See `contract`. An image without a mask is an error, as is a mask without an image."""
    chosen = read_settings(PairsOptions, options, what="data set 'pairs'")
    root = storage.normalise(root)
    parts = {uri: PARTS[name.lower()] for uri in storage.list_dir(root) if (name := storage.base_name(uri)).lower() in PARTS}
    samples = []
    for folder, part in (parts or {root: None}).items():
        images = _by_stem(storage.join(folder, chosen.image_dir), chosen.image_suffix)
        masks = _by_stem(storage.join(folder, chosen.mask_dir), chosen.mask_suffix)
        if odd := sorted(images.keys() ^ masks.keys()):
            raise DatasetError(
                f"data set 'pairs': {folder}: {len(images)} images and {len(masks)} masks, of which {len(odd)} have no partner: "
                f"{', '.join(odd[:5])}. Set image_suffix or mask_suffix, or complete the folders"
            )
        samples += [_sample(images[stem], masks[stem], root, part, task, chosen) for stem in images]
    if not samples:
        raise missing_layout(
            "pairs",
            root,
            looked_for=f"{chosen.image_dir}/ and {chosen.mask_dir}/ with images of the same names",
            advice="Say the folders with the options image_dir and mask_dir",
        )
    info = DatasetInfo(
        name="pairs",
        task=task,
        classes=chosen.classes if task == Task.SEGMENTATION else (),
        mpp=chosen.mpp,
        licence=chosen.licence,
        source=root,
        group="image (no grouping known)" if chosen.group_pattern is None else f"file name by {chosen.group_pattern}",
        note="" if chosen.group_pattern else "images of one patient may fall into several parts: set group_pattern",
    )
    return LabelledSet(info, tuple(sorted(samples, key=lambda sample: sample.key)))


def load(sample: Sample) -> Decoded:
    """The image with its class mask, or with its instances."""
    image, mask = read_image(sample.image, sample.key), read_label_image(sample.mask)
    check_same_size(image, mask, sample)
    if sample.index is None:
        return Decoded(image=image, mask=_class_mask(mask, sample))
    if sample.index == COMPONENTS:
        mask = cv2.connectedComponents((mask > 0).astype(np.uint8), connectivity=8)[1]
    return Decoded(image=image, instances=mask.astype(np.int32))


def _class_mask(mask: np.ndarray, sample: Sample) -> np.ndarray:
    """Class indices; a mask of 0 and 255 only is taken as binary."""
    values = np.unique(mask)
    if set(values.tolist()) <= {0, IGNORE}:
        return (mask > 0).astype(np.uint8)
    if values[0] < 0 or values[-1] > IGNORE:
        raise DatasetError(
            f"{sample.mask}: class indices are 0 to 254 (255: does not count), found {values[0]} to {values[-1]}"
        )
    return mask.astype(np.uint8)


def _by_stem(folder: str, suffix: str) -> dict[str, str]:
    stems = {relative_key(uri, folder).rsplit(".", 1)[0]: uri for uri in find_images(folder)}
    return {stem.removesuffix(suffix): uri for stem, uri in stems.items() if stem.endswith(suffix)}


def _sample(image: str, mask: str, root: str, part: str | None, task: Task, chosen: PairsOptions) -> Sample:
    key = relative_key(image, root)
    group = key
    if chosen.group_pattern is not None:
        match = re.search(chosen.group_pattern, storage.base_name(image))
        if match is None:
            raise ConfigError(f"data set 'pairs': group_pattern {chosen.group_pattern!r} finds nothing in {key!r}")
        group = match[1] if match.re.groups else match[0]
    index = None if task == Task.SEGMENTATION else COMPONENTS if chosen.instances == "components" else 0
    return Sample(key=key, layout="pairs", image=image, group=group, split=part, mask=mask, index=index, mpp=chosen.mpp)
