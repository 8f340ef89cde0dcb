"""GlaS / Warwick-QU (Sirinukunwattana et al. 2017): glands of colon tissue, and whether the tissue is benign or malignant.

<root>/train_1.bmp, train_1_anno.bmp, testA_1.bmp, …, Grade.csv        (as downloaded; masks number the glands)
<root>/images/train_1.jpg, masks_binary/train_1.png, grade.csv          (gland or not)

The official parts cut patients: 9 of the 16 have images in train and in test. So the parts are not used, unless `official_parts`
says so (to compare with published figures); a run then stops, since it would be judged on patients that it has seen.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from csat.data import storage
from csat.data.datasets.contract import DatasetInfo, Decoded, LabelledSet, Sample, Task
from csat.data.datasets.decode import check_same_size, find_images, missing_layout, read_image, read_label_image, relative_key
from csat.data.datasets.tables import read_rows, text
from csat.errors import DatasetError
from csat.settings import read_settings

TASKS = (Task.SEGMENTATION, Task.CLASSIFICATION)
GRADES = ("benign", "malignant")
MPP = 0.62  # 20x
PATIENT = ("patient", "patient id")  # columns of the two tables
GRADE = ("grade", "grade (glas)")


@dataclass(frozen=True, kw_only=True)
class GlasOptions:
    """How the set is divided."""

    official_parts: bool = False  # train, and testA with testB; they cut patients. False: parts of whole patients are drawn
    patients_as_groups: bool = True  # false: each image its own group, which official_parts needs; the test then leaks


def read(root: str, *, task: Task, options: Mapping[str, Any]) -> LabelledSet:
    """See `contract`."""
    chosen = read_settings(GlasOptions, options, what="data set 'glas'")
    root = storage.normalise(root)
    images = [uri for uri in find_images(storage.join(root, "images")) or find_images(root) if "_anno." not in uri]
    table = next((uri for name in ("grade.csv", "Grade.csv") if storage.info(uri := storage.join(root, name))), None)
    if not images or table is None:
        raise missing_layout(
            "glas",
            root,
            looked_for="train_1.bmp with train_1_anno.bmp and Grade.csv, or images/, masks_binary/ and grade.csv",
            advice="Point the path at the folder that holds the table of grades",
        )
    rows = _rows(table)
    samples = [_sample(uri, root, task, rows, chosen, table) for uri in images]
    info = DatasetInfo(
        name="glas",
        task=task,
        classes=GRADES if task == Task.CLASSIFICATION else ("background", "gland"),
        mpp=MPP,
        licence="research only, no commercial use, citation required",
        source="Sirinukunwattana et al., Medical Image Analysis 2017; Warwick-QU, https://warwick.ac.uk/TIAlab/GlaScontest",
        group="patient" if chosen.patients_as_groups else "image (patients are cut)",
        note="16 patients: every figure rests on few of them; some have benign and malignant images",
    )
    return LabelledSet(info, tuple(sorted(samples, key=lambda sample: sample.key)))


def load(sample: Sample) -> Decoded:
    """The image, for segmentation with its gland mask."""
    image = read_image(sample.image, sample.key)
    if sample.mask is None:
        return Decoded(image=image)
    mask = read_label_image(sample.mask)
    check_same_size(image, mask, sample)
    return Decoded(image=image, mask=(mask > 0).astype(np.uint8))


def _rows(table: str) -> dict[str, tuple[str, str]]:
    """Image name → (patient, grade)."""
    rows = {}
    for row in read_rows(table):
        cells = {name.strip().lower(): text(cell) for name, cell in row.items()}
        patient, grade = (next((cells[name] for name in names if name in cells), None) for names in (PATIENT, GRADE))
        if "name" not in cells or patient is None or grade is None:
            raise DatasetError(f"{table}: expected the columns name, patient and grade; its columns are: {', '.join(row)}")
        rows[cells["name"]] = patient, grade.lower()
    return rows


def _sample(uri: str, root: str, task: Task, rows: dict[str, tuple[str, str]], chosen: GlasOptions, table: str) -> Sample:
    stem = storage.base_name(uri).rsplit(".", 1)[0]
    if stem not in rows:
        raise DatasetError(f"{table}: has no row for the image {stem}")
    patient, grade = rows[stem]
    if grade not in GRADES:
        raise DatasetError(f"{table}: the grade of {stem} is {grade!r}; grades are: {', '.join(GRADES)}")
    is_original = storage.base_name(storage.parent(uri)) != "images"
    mask = storage.join(root, f"{stem}_anno.bmp") if is_original else storage.join(root, "masks_binary", f"{stem}.png")
    part = "train" if stem.startswith("train") else "test"
    return Sample(
        key=relative_key(uri, root),
        layout="glas",
        image=uri,
        group=f"patient {patient}" if chosen.patients_as_groups else stem,
        split=part if chosen.official_parts else None,
        label=GRADES.index(grade) if task == Task.CLASSIFICATION else None,
        mask=mask if task == Task.SEGMENTATION else None,
        mpp=MPP,
    )
