"""NCT-CRC-HE-100K (train) and CRC-VAL-HE-7K (test): nine tissues of the colon, 224 px tiles at 0.5 um/px (Kather et al. 2019).

    <root>/NCT-CRC-HE-100K/ADI/ADI-AAAFLCLY.tif      or NCT-CRC-HE-100K-NONORM
    <root>/CRC-VAL-HE-7K/ADI/ADI-TCGA-AAICEQFN.tif

Root may also be one of these folders itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from csat.errors import DatasetError
from csat.labels.datasets.contract import Decoded, LabelledSet, Sample
from csat.labels.datasets.decode import find_images, missing_layout, read_image, relative_key
from csat.settings import read_settings
from csat.storage import files
from csat.tasks import DatasetInfo, Task

TASKS = (Task.CLASSIFICATION,)
CLASSES = ("ADI", "BACK", "DEB", "LYM", "MUC", "MUS", "NORM", "STR", "TUM")
TRAIN = ("NCT-CRC-HE-100K", "NCT-CRC-HE-100K-NONORM")
TEST = "CRC-VAL-HE-7K"
MPP = 0.5


@dataclass(frozen=True, kw_only=True)
class Options:
    """What this set lets one choose."""

    normalised: bool | None = None  # train on the stain-normalised tiles or on NONORM; None: on those that are there


def read(root: str, *, task: Task, options: Mapping[str, Any]) -> LabelledSet:
    """See `contract`. Both variants of the 100,000 tiles are never read together: they show the same tissue."""
    chosen = read_settings(Options, options, what="data set 'nct_crc'")
    root = files.normalise(root)
    folders = {name: files.join(root, name) for name in (*TRAIN, TEST)}
    if files.base_name(root) in folders:
        folders = {files.base_name(root): root}
    folders = {name: folder for name, folder in folders.items() if files.is_dir(folder)}
    folders = _one_variant(folders, chosen.normalised)
    samples = sorted(
        (
            Sample(
                key=(key := relative_key(uri, root)),
                layout="nct_crc",
                image=uri,
                group=key,
                split="test" if name == TEST else "train",
                label=label,
                mpp=MPP,
            )
            for name, folder in folders.items()
            for label, tissue in enumerate(CLASSES)
            for uri in find_images(files.join(folder, tissue))
        ),
        key=lambda sample: sample.key,
    )
    if not samples:
        raise missing_layout(
            "nct_crc",
            root,
            looked_for=f"{' or '.join(TRAIN)}, and {TEST}, with folders {', '.join(CLASSES)} of .tif",
            advice="Unpack the zips of https://zenodo.org/records/1214456 there, without renaming their folders",
        )
    info = DatasetInfo(
        name="nct_crc",
        task=task,
        classes=CLASSES,
        mpp=MPP,
        licence="CC BY 4.0",
        source="Kather et al., PLoS Medicine 16(1) e1002730 (2019); https://zenodo.org/records/1214456",
        group="image (no grouping known)",
        note="the files do not name their patients: a validation part drawn from the 100K shares patients with training and "
        "flatters; the 7K are of other patients",
    )
    return LabelledSet(info, tuple(samples))


def load(sample: Sample) -> Decoded:
    """The image."""
    return Decoded(image=read_image(sample.image, sample.key))


def _one_variant(folders: dict[str, str], normalised: bool | None) -> dict[str, str]:
    there = [name for name in TRAIN if name in folders]
    if normalised is not None:
        there = [TRAIN[0] if normalised else TRAIN[1]]
        if there[0] not in folders:
            raise DatasetError(
                f"data set 'nct_crc': there is no {there[0]}; found {', '.join(folders) or 'no part of the set'}"
            )
    if len(there) > 1:
        raise DatasetError(
            f"data set 'nct_crc': {' and '.join(there)} hold the same tiles with and without stain normalisation. Say which: "
            "options normalised: true or false"
        )
    return {name: folder for name, folder in folders.items() if name in (*there, TEST)}
