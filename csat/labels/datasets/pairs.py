"""Images and masks in two folders, matched by their names: one's own segmentation or nuclei set.

<root>/images/a.png, <root>/masks/a.png            or, with official splits, <root>/<train|val|test>/images/… and masks/…
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np

from csat.errors import DatasetError
from csat.labels.datasets.contract import Decoded, LabelledSet, Sample
from csat.labels.datasets.decode import (
    SPLIT_NAMES,
    find_images,
    log_passed_over,
    missing_layout,
    read_binary,
    read_classes,
    read_image,
    read_instances,
    relative_key,
)
from csat.labels.datasets.name_groups import check_pattern, describe, group_of, warn
from csat.settings import read_settings
from csat.storage import files
from csat.tasks import DatasetInfo, Task
from csat.words import some

TASKS = (Task.SEGMENTATION, Task.NUCLEI)
BINARY, COMPONENTS = "binary", "components"  # forms of masks that do not hold class indices or numbered nuclei


@dataclass(frozen=True, kw_only=True)
class Options:
    """Where images and masks are, and what the masks' values mean."""

    image_dir: str = "images"  # folder of images below the root (or below each split)
    mask_dir: str = "masks"  # folder of masks
    image_suffix: str = ""  # end of an image's name, before its extension, that its mask does not have
    mask_suffix: str = ""  # end of a mask's name, before its extension, that its image does not have
    classes: tuple[str, ...] = ("background", "foreground")  # segmentation: names, index 0 first
    ignore_255: bool = False  # of two classes: 255 does not count, rather than being the foreground; of more it never counts
    instances: Literal["ids", "components"] = "ids"  # nuclei: masks number them, or say yes or no: a piece is one
    group_pattern: str | None = None  # regex searched in each file name: its first (…) is the group; None: each its own
    mpp: float | None = None  # of the images, um/px
    licence: str = "not stated"  # of the images, one line

    def __post_init__(self):
        check_pattern(self.group_pattern)


def read(root: str, *, task: Task, options: Mapping[str, Any]) -> LabelledSet:
    """See `contract`. An image without a mask is an error, as is a mask without an image."""
    chosen = read_settings(Options, options, what="data set 'pairs'")
    root = files.normalise(root)
    splits = {
        uri: SPLIT_NAMES[name.lower()] for uri in files.list_dir(root) if (name := files.base_name(uri)).lower() in SPLIT_NAMES
    }
    samples, passed_over = [], Counter()
    for folder, split in (splits or {root: None}).items():
        images = _by_stem(files.join(folder, chosen.image_dir), chosen.image_suffix, passed_over)
        masks = _by_stem(files.join(folder, chosen.mask_dir), chosen.mask_suffix, passed_over)
        if odd := sorted(images.keys() ^ masks.keys()):
            raise DatasetError(
                f"data set 'pairs': {folder}: {len(images)} images and {len(masks)} masks, of which {len(odd)} have no "
                f"partner: {some(odd)}. Set image_suffix or mask_suffix, or complete the folders"
            )
        samples += [_sample(images[stem], masks[stem], root, split, task, chosen) for stem in images]
    if not samples:
        raise missing_layout(
            "pairs",
            root,
            looked_for=f"{chosen.image_dir}/ and {chosen.mask_dir}/ with images of the same names",
            advice="Say the folders with the options image_dir and mask_dir",
        )
    log_passed_over("pairs", root, passed_over)
    info = DatasetInfo(
        name="pairs",
        task=task,
        classes=chosen.classes if task == Task.SEGMENTATION else (),
        mpp=chosen.mpp,
        licence=chosen.licence,
        source=root,
        group=describe(chosen.group_pattern),
        note=warn(chosen.group_pattern),
    )
    return LabelledSet(info, tuple(sorted(samples, key=lambda sample: sample.key)))


def load(sample: Sample) -> Decoded:
    """The image with its class mask, or with its instances."""
    image = read_image(sample.image, sample.key)
    if sample.form == BINARY:
        mask = read_binary(sample.mask, advice="Name all `classes`, or set `ignore_255: true` if 255 does not count")
        return Decoded(image=image, mask=mask.astype(np.uint8))
    if sample.task == Task.SEGMENTATION:
        return Decoded(image=image, mask=read_classes(sample.mask))
    if sample.form == COMPONENTS:
        nuclei = read_binary(sample.mask, advice="Leave out `instances: components` where masks number the nuclei")
        return Decoded(image=image, instances=cv2.connectedComponents(nuclei.astype(np.uint8), connectivity=8)[1])
    return Decoded(image=image, instances=read_instances(sample.mask))


def _by_stem(folder: str, suffix: str, passed_over: Counter[str]) -> dict[str, str]:
    """Name without suffix and extension → URI."""
    found: dict[str, str] = {}
    for uri in find_images(folder, passed_over):
        stem = relative_key(uri, folder).rpartition(".")[0]
        if not stem.endswith(suffix):
            passed_over[f"name without {suffix}"] += 1
            continue
        stem = stem.removesuffix(suffix)
        if stem in found:
            raise DatasetError(f"data set 'pairs': {found[stem]} and {uri} have one name; which is it? Move one away")
        found[stem] = uri
    return found


def _sample(image: str, mask: str, root: str, split: str | None, task: Task, chosen: Options) -> Sample:
    form = None
    if task == Task.NUCLEI and chosen.instances == "components":
        form = COMPONENTS
    elif task == Task.SEGMENTATION and len(chosen.classes) == 2 and not chosen.ignore_255:
        form = BINARY
    key = relative_key(image, root)
    return Sample(
        key=key,
        layout="pairs",
        image=image,
        group=group_of(key, chosen.group_pattern, "pairs"),
        split=split,
        mask=mask,
        form=form,
        mpp=chosen.mpp,
    )
