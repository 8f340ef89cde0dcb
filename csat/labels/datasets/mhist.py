"""MHIST: colorectal polyps, hyperplastic (HP) or sessile serrated (SSA) by the majority of seven pathologists, 224 px.

<root>/annotations.csv    Image Name, Majority Vote Label, Number of Annotators who Selected SSA (Out of 7), Partition
<root>/images/MHIST_aaa.png
"""

from collections.abc import Mapping
from typing import Any

from csat.errors import DatasetError
from csat.labels.datasets.contract import Decoded, LabelledSet, Sample
from csat.labels.datasets.decode import SPLIT_NAMES, NoOptions, missing_layout, read_image, relative_key
from csat.settings import read_settings
from csat.storage import files
from csat.storage.tables import read_rows
from csat.tasks import DatasetInfo, Task

TASKS = (Task.CLASSIFICATION,)
CLASSES = ("HP", "SSA")
IMAGE, LABEL, PART = "Image Name", "Majority Vote Label", "Partition"


def read(root: str, *, task: Task, options: Mapping[str, Any]) -> LabelledSet:
    """See `contract`."""
    read_settings(NoOptions, options, what="data set 'mhist'")
    root = files.normalise(root)
    table, images = files.join(root, "annotations.csv"), files.join(root, "images")
    if files.info(table) is None or not files.is_dir(images):
        raise missing_layout(
            "mhist",
            root,
            looked_for="annotations.csv and images/MHIST_aaa.png",
            advice="Ask for the set at https://bmirds.github.io/MHIST, and unpack images.zip beside annotations.csv",
        )
    samples = []
    for row in read_rows(table, needs=[IMAGE, LABEL, PART]):
        for column, known in ((LABEL, CLASSES), (PART, SPLIT_NAMES)):
            if row[column] not in known:
                raise DatasetError(
                    f"{table}, line {row.line}: {column} is {row[column]!r}; expected one of: {', '.join(known)}"
                )
        uri = files.join(images, row[IMAGE])
        samples.append(
            Sample(
                key=(key := relative_key(uri, root)),
                layout="mhist",
                image=uri,
                group=key,
                split=SPLIT_NAMES[row[PART]],
                label=CLASSES.index(row[LABEL]),
            )
        )
    info = DatasetInfo(
        name="mhist",
        task=task,
        classes=CLASSES,
        mpp=None,
        licence="MHIST Dataset Research Use Agreement (signed on request, research only); verify before use",
        source="Wei et al., AIME 2021, arXiv:2101.12355; https://bmirds.github.io/MHIST",
        group="image (no grouping known)",
        note="the files do not name their patients: a drawn validation part may share them with training; the resolution is "
        "stated as 8x (about 1.25 um/px): set mpp where one is needed",
    )
    return LabelledSet(info, tuple(sorted(samples, key=lambda sample: sample.key)))


def load(sample: Sample) -> Decoded:
    """The image."""
    return Decoded(image=read_image(sample.image, sample.key))
