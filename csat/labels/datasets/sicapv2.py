"""SICAPv2: Gleason grades of prostate biopsies, 512 px tiles at 10x (Silva-Rodríguez et al. 2020).

    <root>/images/16B0001851_Block_Region_1_0_0_xini_6803_yini_59786.jpg
    <root>/partition/Test/{Train,Test}.xlsx                     image_name, NC, G3, G4, G5, G4C: one of the first four is 1
    <root>/partition/Validation/Val{1,2,3,4}/{Train,Test}.xlsx  four folds of the training part
    <root>/wsi_labels.xlsx                                      slide_id, patient_id, …

Root may be the folder above (SICAPv2). G4C (cribriform) is an attribute of G4, not a class. Only tiles that a partition lists
are used: 12,081 of the 18,783.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from csat.errors import ConfigError, DatasetError
from csat.labels.datasets.contract import Decoded, LabelledSet, Sample
from csat.labels.datasets.decode import first_folder, missing_layout, read_image, relative_key
from csat.settings import read_settings
from csat.storage import files
from csat.storage.tables import Row, read_rows
from csat.tasks import DatasetInfo, Task
from csat.words import is_empty, text

TASKS = (Task.CLASSIFICATION,)
CLASSES = ("NC", "G3", "G4", "G5")
PARTITIONS = ("Test", "Val1", "Val2", "Val3", "Val4")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What this set lets one choose."""

    # Test: train and test, as the authors report; Val1 … Val4: a fold of train as train and val, and test
    partition: str = "Test"

    def __post_init__(self):
        if self.partition not in PARTITIONS:
            raise ConfigError(f"partition is one of {', '.join(PARTITIONS)}, not {self.partition!r}")


def read(root: str, *, task: Task, options: Mapping[str, Any]) -> LabelledSet:
    """See `contract`."""
    chosen = read_settings(Options, options, what="data set 'sicapv2'")
    root = files.normalise(root)
    base = files.parent(first_folder(root, "partition", "SICAPv2/partition") or files.join(root, "partition"))
    tables = {split: files.join(base, "partition", place) for split, place in _places(chosen.partition).items()}
    missing = [table for table in tables.values() if files.info(table) is None]
    if missing or not files.is_dir(files.join(base, "images")):
        raise missing_layout(
            "sicapv2",
            base,
            looked_for=f"images/ and {', '.join(f'partition/{place}' for place in _places(chosen.partition).values())}",
            advice="Unpack SICAPv2.zip of https://data.mendeley.com/datasets/9xxm58dvs3 there",
        )
    patients = _read_patients(files.join(base, "wsi_labels.xlsx"))
    samples = []
    for split, table in tables.items():
        for row in read_rows(table, needs=["image_name", *CLASSES]):
            uri = files.join(base, "images", text(row["image_name"]))
            samples.append(
                Sample(
                    key=relative_key(uri, root),
                    layout="sicapv2",
                    image=uri,
                    group=_group(row, patients, table),
                    split=split,
                    label=_label(row, table),
                )
            )
    info = DatasetInfo(
        name="sicapv2",
        task=task,
        classes=CLASSES,
        mpp=None,
        licence="CC BY 4.0",
        source="Silva-Rodríguez et al., Computer Methods and Programs in Biomedicine 195, 105637 (2020); "
        "https://data.mendeley.com/datasets/9xxm58dvs3",
        group="slide" if patients is None else "patient",
        note="tiles of a slide overlap by half; the resolution is stated as 10x (about 1 um/px): set mpp where one is needed"
        + ("; without wsi_labels.xlsx a drawn validation part may cut patients" if patients is None else ""),
    )
    return LabelledSet(info, tuple(sorted(samples, key=lambda sample: sample.key)))


def load(sample: Sample) -> Decoded:
    """The image."""
    return Decoded(image=read_image(sample.image, sample.key))


def _places(partition: str) -> dict[str, str]:
    """Part → its table below `partition`."""
    if partition == "Test":
        return {"train": "Test/Train.xlsx", "test": "Test/Test.xlsx"}
    fold = f"Validation/{partition}"
    return {"train": f"{fold}/Train.xlsx", "val": f"{fold}/Test.xlsx", "test": "Test/Test.xlsx"}


def _read_patients(uri: str) -> dict[str, str] | None:
    """Slide → patient; None where the set came without the table."""
    if files.info(uri) is None:
        return None
    return {text(row["slide_id"]): text(row["patient_id"]) for row in read_rows(uri, needs=["slide_id", "patient_id"])}


def _group(row: Row, patients: Mapping[str, str] | None, table: str) -> str:
    image_name = text(row["image_name"])
    slide, has_block, _ = image_name.partition("_Block")
    if not has_block:
        raise DatasetError(f"{table}, line {row.line}: {image_name!r} does not name its slide; expected <slide>_Block_….jpg")
    if patients is None:
        return slide
    if slide not in patients:
        raise DatasetError(f"{table}, line {row.line}: slide {slide!r} of {image_name!r} is not in wsi_labels.xlsx")
    return patients[slide]


def _label(row: Row, table: str) -> int:
    marked = [name for name in CLASSES if not is_empty(row[name]) and float(row[name]) == 1]
    if len(marked) != 1:
        raise DatasetError(
            f"{table}, line {row.line}: {row['image_name']} is marked as {', '.join(marked) or 'nothing'}; expected exactly "
            f"one of {', '.join(CLASSES)}"
        )
    return CLASSES.index(marked[0])
