"""BCSS (Amgad et al. 2019): tissue regions of 151 breast cancers of TCGA, one image of a few thousand px each.

    <root>/images/TCGA-A1-A0SK-DX1_xmin45749_ymin25055_MPP-0.2500.png     (rgbs_colorNormalized in the single download)
    <root>/masks/TCGA-A1-A0SK-DX1_xmin45749_ymin25055_MPP-0.2500.png      codes of gtruth_codes.tsv
    <root>/meta/gtruth_codes.tsv                                          optional; compared with the codes below

Root may be the folder above (0_Public-data-Amgad2019_0.25MPP).
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from csat.errors import DatasetError
from csat.labels.datasets.contract import Decoded, LabelledSet, Sample
from csat.labels.datasets.decode import (
    NoOptions,
    find_images,
    first_folder,
    missing_layout,
    read_classes,
    read_image,
    relative_key,
)
from csat.settings import read_settings
from csat.slides.mpp import STATED
from csat.storage import files
from csat.storage.tables import read_rows
from csat.tasks import IGNORE, DatasetInfo, Task
from csat.words import some, text

TASKS = (Task.SEGMENTATION,)
CLASSES = ("tumor", "stroma", "inflammatory", "necrosis", "other")
# The code of each label is its place; its class follows the baseline of the set's authors. What lies outside the region of
# interest was not labelled and does not count; it is no background.
CODES = {
    "outside_roi": None,
    "tumor": "tumor",
    "stroma": "stroma",
    "lymphocytic_infiltrate": "inflammatory",
    "necrosis_or_debris": "necrosis",
    "glandular_secretions": "other",
    "blood": "other",
    "exclude": "other",
    "metaplasia_NOS": "other",
    "fat": "other",
    "plasma_cells": "inflammatory",
    "other_immune_infiltrate": "inflammatory",
    "mucoid_material": "other",
    "normal_acinus_or_duct": "other",
    "lymphatics": "other",
    "undetermined": "other",
    "nerve": "other",
    "skin_adnexa": "other",
    "blood_vessel": "other",
    "angioinvasion": "tumor",
    "dcis": "tumor",
    "other": "other",
}
CLASS_OF_CODE = np.array([IGNORE if name is None else CLASSES.index(name) for name in CODES.values()], np.uint8)
TEST_INSTITUTES = ("OL", "LL", "E2", "EW", "GM", "S3")  # the second part of the barcode; the split of the authors' baseline
RELEASE = "0_Public-data-Amgad2019_0.25MPP"
IMAGES = ("images", "rgbs_colorNormalized")
NAME = re.compile(r"(TCGA-([A-Z0-9]{2})-[A-Z0-9]{4}).*?(?:_MPP-([0-9.]+?))?\.png", re.IGNORECASE)


def read(root: str, *, task: Task, options: Mapping[str, Any]) -> LabelledSet:
    """See `contract`."""
    read_settings(NoOptions, options, what="data set 'bcss'")
    root = files.normalise(root)
    base = root if first_folder(root, RELEASE) is None else files.join(root, RELEASE)
    images, masks = first_folder(base, *IMAGES), first_folder(base, "masks")
    found = find_images(images) if images is not None and masks is not None else []
    if not found:
        raise missing_layout(
            "bcss",
            base,
            looked_for="images/ (or rgbs_colorNormalized/) and masks/ with TCGA-….png of the same names",
            advice="Download them as https://github.com/PathologyDataScience/BCSS says",
        )
    for place in ("meta/gtruth_codes.tsv", "gtruth_codes.tsv"):
        if files.info(table := files.join(base, place)) is not None:
            _check_codes(table)
    samples = tuple(sorted((_sample(uri, masks, root) for uri in found), key=lambda sample: sample.key))
    mpps = {sample.mpp for sample in samples}
    info = DatasetInfo(
        name="bcss",
        task=task,
        classes=CLASSES,
        mpp=mpps.pop() if len(mpps) == 1 else None,
        licence="CC0 1.0",
        source="Amgad et al., Bioinformatics 35(18), 3461-3467 (2019); https://github.com/PathologyDataScience/BCSS",
        group="patient",
        note="masks hold 22 codes, merged to five classes; pixels outside the region of interest do not count; the images of "
        "the single download are colour-normalised",
    )
    return LabelledSet(info, samples)


def load(sample: Sample) -> Decoded:
    """The image and its merged classes."""
    codes = read_classes(sample.mask)
    if codes.max(initial=0) >= len(CLASS_OF_CODE):
        raise DatasetError(f"{sample.mask}: codes are 0 to {len(CLASS_OF_CODE) - 1}, found {codes.max()}; is it of BCSS?")
    return Decoded(image=read_image(sample.image, sample.key), mask=CLASS_OF_CODE[codes])


def _sample(uri: str, masks: str, root: str) -> Sample:
    name = files.base_name(uri)
    match = NAME.fullmatch(name)
    if match is None:
        raise DatasetError(
            f"data set 'bcss': {uri} does not begin with a patient's barcode; expected a name such as "
            "TCGA-A1-A0SK-DX1_xmin45749_ymin25055_MPP-0.2500.png"
        )
    patient, institute, mpp = match.groups()
    return Sample(
        key=relative_key(uri, root),
        layout="bcss",
        image=uri,
        group=patient.upper(),
        split="test" if institute.upper() in TEST_INSTITUTES else "train",
        mask=files.join(masks, name),
        mpp=None if mpp is None else float(mpp),
        mpp_source=None if mpp is None else STATED,
    )


def _check_codes(table: str) -> None:
    """Refuse masks whose codes mean something else than ours. Raises DatasetError naming the labels that differ."""
    theirs = {text(row["label"]): text(row["GT_code"]) for row in read_rows(table, needs=["label", "GT_code"])}
    ours = {label: str(code) for code, label in enumerate(CODES)}
    if theirs != ours:
        differ = sorted(label for label in theirs.keys() | ours.keys() if theirs.get(label) != ours.get(label))
        listed = (f"{label}: {theirs.get(label, 'missing')} instead of {ours.get(label, 'none')}" for label in differ)
        raise DatasetError(f"{table}: its codes are not those of BCSS ({some(listed)}); is it another release?")
