"""GlaS / Warwick-QU (Sirinukunwattana et al. 2017): glands of colon tissue, and whether the tissue is benign or malignant.

<root>/train_1.bmp, train_1_anno.bmp, testA_1.bmp, …, Grade.csv        (as downloaded; masks number the glands)
<root>/images/train_1.jpg, masks_binary/train_1.png, grade.csv          (gland or not)

Root may be the folder above, which holds what the zip unpacks to. The official splits cut patients: of the 16, eight have
images in train and in test A. So the splits are not used, unless `official_parts` says so (to compare with published figures);
a run then stops, since it would be judged on patients that it has seen.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from csat.errors import DatasetError
from csat.labels.datasets.contract import Decoded, LabelledSet, Sample
from csat.labels.datasets.decode import find_images, missing_layout, read_image, read_label_image, relative_key, stem_of
from csat.settings import read_settings
from csat.storage import files
from csat.storage.tables import read_rows
from csat.tasks import DatasetInfo, Task
from csat.words import text

TASKS = (Task.SEGMENTATION, Task.CLASSIFICATION)
GRADES = ("benign", "malignant")
MPP = 0.62  # 20x
FOLDERS = ((), ("Warwick_QU_Dataset",), ("Warwick QU Dataset (Released 2016_07_08)",))  # what the zips unpack to
TABLES = ("Grade.csv", "grade.csv")
PATIENT = ("patient", "patient id")  # columns of the two tables
GRADE = ("grade", "grade (glas)")


@dataclass(frozen=True, kw_only=True)
class Options:
    """How the set is divided."""

    official_parts: bool = False  # train, and testA with testB; they cut patients. False: splits of whole patients are drawn
    patients_as_groups: bool = True  # false: each image its own group, which official_parts needs; the test then leaks


def read(root: str, *, task: Task, options: Mapping[str, Any]) -> LabelledSet:
    """See `contract`."""
    chosen = read_settings(Options, options, what="data set 'glas'")
    root = files.normalise(root)
    places = (files.join(root, *folder, table) for folder in FOLDERS for table in TABLES)
    table = next((uri for uri in places if files.info(uri) is not None), None)
    folder = root if table is None else files.parent(table)
    images = find_images(files.join(folder, "images")) or find_images(folder)
    images = [uri for uri in images if not stem_of(uri).endswith("_anno")]
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
        note="16 patients: every figure rests on few of them, and five have benign and malignant images",
    )
    return LabelledSet(info, tuple(sorted(samples, key=lambda sample: sample.key)))


def load(sample: Sample) -> Decoded:
    """The image, for segmentation with its gland mask."""
    image = read_image(sample.image, sample.key)
    if sample.mask is None:
        return Decoded(image=image)
    return Decoded(image=image, mask=(read_label_image(sample.mask) > 0).astype(np.uint8))


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


def _sample(uri: str, root: str, task: Task, rows: dict[str, tuple[str, str]], chosen: Options, table: str) -> Sample:
    stem = stem_of(uri)
    if stem not in rows:
        raise DatasetError(f"{table}: has no row for the image {stem}")
    patient, grade = rows[stem]
    if grade not in GRADES:
        raise DatasetError(f"{table}: the grade of {stem} is {grade!r}; grades are: {', '.join(GRADES)}")
    folder = files.parent(uri)
    if files.base_name(folder) == "images":
        mask = files.join(files.parent(folder), "masks_binary", f"{stem}.png")
    else:
        mask = files.join(folder, f"{stem}_anno.bmp")
    split = "train" if stem.startswith("train") else "test"
    return Sample(
        key=relative_key(uri, root),
        layout="glas",
        image=uri,
        group=f"patient {patient}" if chosen.patients_as_groups else stem,
        split=split if chosen.official_parts else None,
        label=GRADES.index(grade) if task == Task.CLASSIFICATION else None,
        mask=mask if task == Task.SEGMENTATION else None,
        mpp=MPP,
    )
