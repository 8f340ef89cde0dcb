"""The lung part of LC25000 with its source images known: a table of files, labels and groups beside the class folders.

<root>/labels.csv              file,label,source_group
<root>/lung_aca/lungaca335.jpeg
"""

from collections.abc import Mapping
from typing import Any

from csat.errors import DatasetError
from csat.labels.datasets.contract import Decoded, LabelledSet, Sample
from csat.labels.datasets.decode import NoOptions, missing_layout, read_image, relative_key
from csat.settings import read_settings
from csat.storage import files
from csat.storage.tables import read_rows
from csat.tasks import DatasetInfo, Task
from csat.words import text

TASKS = (Task.CLASSIFICATION,)
CLASSES = ("lung_aca", "lung_n", "lung_scc")


def read(root: str, *, task: Task, options: Mapping[str, Any]) -> LabelledSet:
    """See `contract`."""
    read_settings(NoOptions, options, what="data set 'lc25000_lung'")
    root = files.normalise(root)
    table = files.join(root, "labels.csv")
    if files.info(table) is None:
        raise missing_layout(
            "lc25000_lung",
            root,
            looked_for=f"labels.csv (file, label, source_group) and folders {', '.join(CLASSES)}",
            advice="For the set as it is downloaded, with folders only, use the layout lc25000",
        )
    samples = []
    for row in read_rows(table, needs=["file", "label", "source_group"]):
        if row["label"] not in CLASSES:
            raise DatasetError(
                f"{table}, line {row.line}: the label of {row['file']} is {row['label']!r}; classes are: {', '.join(CLASSES)}"
            )
        uri = files.join(root, row["file"])
        samples.append(
            Sample(
                key=relative_key(uri, root),
                layout="lc25000_lung",
                image=uri,
                group=text(row["source_group"]),
                label=CLASSES.index(row["label"]),
            )
        )
    info = DatasetInfo(
        name="lc25000_lung",
        task=task,
        classes=CLASSES,
        mpp=None,
        licence="not stated",
        source="Borkowski et al., arXiv:1912.12142; https://github.com/tampapath/lung_colon_image_set; groups: Batchkala et "
        "al., DEMI at MICCAI 2024",
        group="source image",
        note="groups are images, not patients: images of one patient may be in several",
    )
    return LabelledSet(info, tuple(sorted(samples, key=lambda sample: sample.key)))


def load(sample: Sample) -> Decoded:
    """The image."""
    return Decoded(image=read_image(sample.image, sample.key))
