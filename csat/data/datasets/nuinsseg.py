"""NuInsSeg (Mahbod et al. 2024): nuclei of 31 human and mouse organs, as downloaded, or as numbered binary masks.

<root>/<organ>/tissue images/human_bladder_01.png, <root>/<organ>/label masks modify/human_bladder_01.tif   (instances)
<root>/images/001.jpg, <root>/masks_binary/001.png                                                           (nucleus or not)
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from csat.data import storage
from csat.data.datasets.contract import DatasetInfo, Decoded, LabelledSet, Sample, Task
from csat.data.datasets.decode import check_same_size, find_images, missing_layout, read_image, read_label_image, relative_key
from csat.data.instances import split_touching
from csat.errors import ConfigError
from csat.settings import read_settings

TASKS = (Task.NUCLEI,)
IMAGES, LABELS = "tissue images", ("label masks modify", "label masks")
# Of the splitting of touching nuclei in binary masks, chosen by eye on this set's own magnification.
SMOOTHING_PX, NECK = 4.0, 0.75


@dataclass(frozen=True, kw_only=True)
class NuInsSegOptions:
    """How images are grouped where organ and slide are not known."""

    block: int = 15  # numbered images: neighbours that are kept together, since they probably share an organ or slide

    def __post_init__(self):
        if self.block < 1:
            raise ConfigError(f"block is a number of images, at least 1, not {self.block}")


def read(root: str, *, task: Task, options: Mapping[str, Any]) -> LabelledSet:
    """See `contract`."""
    chosen = read_settings(NuInsSegOptions, options, what="data set 'nuinsseg'")
    root = storage.normalise(root)
    numbered = find_images(storage.join(root, "images"))
    samples = [_numbered(uri, root, chosen.block) for uri in numbered] if numbered else _organs(root)
    if not samples:
        raise missing_layout(
            "nuinsseg",
            root,
            looked_for="<organ>/tissue images/*.png with <organ>/label masks modify/*.tif, or images/001.jpg with masks_binary/001.png",
            advice="Point the path at the folder that holds the organs' folders",
        )
    info = DatasetInfo(
        name="nuinsseg",
        task=task,
        classes=(),
        mpp=None,
        licence="CC BY 4.0",
        source="Mahbod et al., Scientific Data 2024; https://zenodo.org/records/10518968",
        group=f"block of {chosen.block} neighbouring numbers" if numbered else "organ",
        note="masks are binary: touching nuclei are split by their shape, not by a person" if numbered else "",
    )
    return LabelledSet(info, tuple(sorted(samples, key=lambda sample: sample.key)))


def load(sample: Sample) -> Decoded:
    """Image and instances."""
    image = read_image(sample.image, sample.key)
    mask = read_label_image(sample.mask)
    check_same_size(image, mask, sample)
    is_binary = sample.index == 0
    instances = split_touching(mask > 0, smoothing_px=SMOOTHING_PX, neck=NECK) if is_binary else mask.astype(np.int32)
    return Decoded(image=image, instances=instances)


def _numbered(uri: str, root: str, block: int) -> Sample:
    stem = storage.base_name(uri).rsplit(".", 1)[0]
    place = f"block {int(stem) // block}" if stem.isdigit() else stem
    return Sample(
        key=relative_key(uri, root),
        layout="nuinsseg",
        image=uri,
        group=place,
        mask=storage.join(root, "masks_binary", stem + ".png"),
        index=0,
    )


def _organs(root: str) -> list[Sample]:
    samples = []
    for organ in storage.list_dir(root):
        labels = next((folder for name in LABELS if storage.is_dir(folder := storage.join(organ, name))), None)
        if labels is None:
            continue
        masks = {storage.base_name(uri).rsplit(".", 1)[0]: uri for uri in find_images(labels)}
        for uri in find_images(storage.join(organ, IMAGES)):
            stem = storage.base_name(uri).rsplit(".", 1)[0]
            mask = masks.get(stem, storage.join(labels, stem + ".tif"))
            samples.append(
                Sample(key=relative_key(uri, root), layout="nuinsseg", image=uri, group=storage.base_name(organ), mask=mask)
            )
    return samples
