"""BACH, the photographs of the ICIAR 2018 challenge: four kinds of breast tissue, 2048 x 1536 px at 0.42 um/px.

    <root>/ICIAR2018_BACH_Challenge/Photos/{Benign,InSitu,Invasive,Normal}/b001.tif

Root may be any of these folders above the classes. The challenge's test photographs have no public labels.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from csat.errors import DatasetError
from csat.labels.datasets.contract import Decoded, LabelledSet, Sample
from csat.labels.datasets.decode import find_images, first_folder, missing_layout, read_image, relative_key
from csat.settings import Place, read_settings
from csat.storage import files
from csat.storage.tables import read_rows
from csat.tasks import DatasetInfo, Task
from csat.words import text

TASKS = (Task.CLASSIFICATION,)
CLASSES = ("Normal", "Benign", "InSitu", "Invasive")
MPP = 0.42


@dataclass(frozen=True, kw_only=True)
class Options:
    """What this set lets one choose."""

    # csv, parquet or xlsx with columns file (n001.tif) and patient; None: each photograph its own
    patients: Place | None = None


def read(root: str, *, task: Task, options: Mapping[str, Any]) -> LabelledSet:
    """See `contract`. A photograph that `patients` does not name is its own patient, as the organisers advise."""
    chosen = read_settings(Options, options, what="data set 'bach'")
    root = files.normalise(root)
    places = ("ICIAR2018_BACH_Challenge/Photos", "Photos", "")
    photos = first_folder(root, *(f"{place}/{CLASSES[0]}".lstrip("/") for place in places))
    images = [
        (label, uri)
        for label, name in enumerate(CLASSES)
        if photos is not None
        for uri in find_images(files.join(files.parent(photos), name))
    ]
    if not images:
        raise missing_layout(
            "bach",
            root,
            looked_for=f"ICIAR2018_BACH_Challenge/Photos with folders {', '.join(CLASSES)} of .tif",
            advice="Unpack ICIAR2018_BACH_Challenge.zip of https://zenodo.org/records/3632035 there",
        )
    patients = {} if chosen.patients is None else _read_patients(chosen.patients, {files.base_name(uri) for _, uri in images})
    samples = (
        Sample(
            key=(key := relative_key(uri, root)),
            layout="bach",
            image=uri,
            group=patients.get(files.base_name(uri), key),
            label=label,
            mpp=MPP,
        )
        for label, uri in images
    )
    info = DatasetInfo(
        name="bach",
        task=task,
        classes=CLASSES,
        mpp=MPP,
        licence="CC BY-NC-ND 4.0",
        source="Aresta et al., Medical Image Analysis 56 (2019), arXiv:1808.04277; https://zenodo.org/records/3632035",
        group="patient" if patients else "image (no grouping known)",
        note=""
        if patients
        else "several photographs are of one patient and fall into several parts; the challenge's page links a partial list "
        "of patients: options patients",
    )
    return LabelledSet(info, tuple(sorted(samples, key=lambda sample: sample.key)))


def load(sample: Sample) -> Decoded:
    """The image."""
    return Decoded(image=read_image(sample.image, sample.key))


def _read_patients(uri: str, names: set[str]) -> dict[str, str]:
    patients = {text(row["file"]): text(row["patient"]) for row in read_rows(uri, needs=["file", "patient"])}
    if not names & set(patients):
        raise DatasetError(
            f"{uri}: names none of the photographs; column file holds {', '.join(sorted(patients)[:3])}, the set "
            f"{', '.join(sorted(names)[:3])}"
        )
    return patients
