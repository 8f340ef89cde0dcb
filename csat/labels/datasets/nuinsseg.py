"""NuInsSeg (Mahbod et al. 2024): nuclei of 31 human and mouse organs, as downloaded, or as numbered binary masks.

<root>/<organ>/tissue images/human_bladder_01.png, <root>/<organ>/label masks modify/human_bladder_01.tif   (instances)
<root>/images/001.jpg, <root>/masks_binary/001.png                                                           (nucleus or not)

Each organ is one slide. Of the instances as downloaded the "modify" ones count: overlaps belong to one nucleus there.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from csat.errors import ConfigError
from csat.instances import split_touching
from csat.labels.datasets.contract import Decoded, LabelledSet, Sample
from csat.labels.datasets.decode import (
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
IMAGES, LABELS = "tissue images", "label masks modify"
BINARY = "binary"  # form of masks that say nucleus or not
BINARY_NOTE = (
    "; masks are binary: touching nuclei are split by their shape, not by a person; slides are not known, and a block may end "
    "within one"
)
# Of the splitting of touching nuclei in binary masks. Chosen where instances are known: of CoNSeP enlarged twice (to nuclei of
# this set's size) and of DSB 2018 it recovers them with a panoptic quality of 0.82 and 0.88; without splitting, 0.66 and 0.74.
# Of this set it makes about 26,600 nuclei from 21,000 connected pieces; its authors drew more than 30,000.
SMOOTHING_PX, NECK = 1.0, 0.85


@dataclass(frozen=True, kw_only=True)
class Options:
    """How images are grouped where organ and slide are not known."""

    block: int = 15  # numbered images: neighbours that are kept together, since they probably share an organ or slide

    def __post_init__(self):
        if self.block < 1:
            raise ConfigError(f"block is a number of images, at least 1, not {self.block}")


def read(root: str, *, task: Task, options: Mapping[str, Any]) -> LabelledSet:
    """See `contract`."""
    chosen = read_settings(Options, options, what="data set 'nuinsseg'")
    root = files.normalise(root)
    numbered = find_images(files.join(root, "images"))
    samples = [_numbered(uri, root, chosen.block) for uri in numbered] if numbered else _organs(root)
    if not samples:
        raise missing_layout(
            "nuinsseg",
            root,
            looked_for=f"<organ>/{IMAGES}/*.png with <organ>/{LABELS}/*.tif, or images/001.jpg with masks_binary/001.png",
            advice="Point the path at the folder that holds the organs' folders (human bladder, …)",
        )
    info = DatasetInfo(
        name="nuinsseg",
        task=task,
        classes=(),
        mpp=None,
        licence="CC BY 4.0",
        source="Mahbod et al., Scientific Data 2024; https://zenodo.org/records/10518968",
        group=f"block of {chosen.block} neighbouring numbers" if numbered else "organ (one slide each)",
        note="the magnification is stated, 40x, and the resolution is not" + (BINARY_NOTE if numbered else ""),
    )
    return LabelledSet(info, tuple(sorted(samples, key=lambda sample: sample.key)))


def load(sample: Sample) -> Decoded:
    """Image and instances."""
    image = read_image(sample.image, sample.key)
    if sample.form == BINARY:
        nuclei = read_binary(sample.mask, advice="Numbered masks belong into the folders of their organs, see the layout")
        return Decoded(image=image, instances=split_touching(nuclei, smoothing_px=SMOOTHING_PX, neck=NECK))
    return Decoded(image=image, instances=read_instances(sample.mask))


def _numbered(uri: str, root: str, block: int) -> Sample:
    stem = stem_of(uri)
    place = f"block {int(stem) // block}" if stem.isdigit() else stem
    return Sample(
        key=relative_key(uri, root),
        layout="nuinsseg",
        image=uri,
        group=place,
        mask=files.join(root, "masks_binary", stem + ".png"),
        form=BINARY,
    )


def _organs(root: str) -> list[Sample]:
    folder = root if first_folder(root, "NuInsSeg") is None else files.join(root, "NuInsSeg")
    return [
        Sample(
            key=relative_key(uri, root),
            layout="nuinsseg",
            image=uri,
            group=files.base_name(organ),
            mask=files.join(organ, LABELS, f"{stem_of(uri)}.tif"),
        )
        for organ in files.list_dir(folder)
        if files.is_dir(files.join(organ, LABELS))
        for uri in find_images(files.join(organ, IMAGES))
    ]
