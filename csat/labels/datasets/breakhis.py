"""BreakHis: breast tumours photographed at four magnifications, 700 x 460 px (Spanhol et al. 2016).

    <root>/…/histology_slides/breast/{benign,malignant}/SOB/<subtype>/<slide>/40X/SOB_B_A-14-22549AB-40-001.png

The file name says everything (biopsy, class, subtype, patient, magnification, number), so it is found at any depth below root.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from csat.errors import ConfigError, DatasetError
from csat.labels.datasets.contract import Decoded, LabelledSet, Sample
from csat.labels.datasets.decode import find_images, missing_layout, read_image, relative_key
from csat.settings import read_settings
from csat.storage import files
from csat.tasks import DatasetInfo, Task

TASKS = (Task.CLASSIFICATION,)
BINARY = {"B": "benign", "M": "malignant"}
SUBTYPES = {
    "A": "adenosis",
    "F": "fibroadenoma",
    "PT": "phyllodes_tumor",
    "TA": "tubular_adenoma",
    "DC": "ductal_carcinoma",
    "LC": "lobular_carcinoma",
    "MC": "mucinous_carcinoma",
    "PC": "papillary_carcinoma",
}
# um/px by magnification: the effective pixel size that Spanhol et al. state (6.5 um pixels, 3.3x relay lens, and objectives of
# 4x, 10x, 20x and 40x: the magnification's name is the eyepiece's times the objective's).
MPP = {40: 0.49, 100: 0.20, 200: 0.10, 400: 0.05}
NAME = re.compile(r"SOB_([BM])_([A-Z]+)-(\d+-(\d+)[A-Z]*)-(40|100|200|400)-(\d+)\.png", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What this set lets one choose."""

    magnification: int = 40  # 40, 100, 200 or 400: the four are photographs of the same tissue, and one is used
    classes: str = "binary"  # binary (benign, malignant) or subtypes (eight)
    merge_blocks: bool = False  # 14-22549AB and 14-22549CD count as one patient

    def __post_init__(self):
        if self.magnification not in MPP:
            raise ConfigError(f"magnification is one of {', '.join(map(str, MPP))}, not {self.magnification}")
        if self.classes not in ("binary", "subtypes"):
            raise ConfigError(f"classes is binary or subtypes, not {self.classes!r}")


def read(root: str, *, task: Task, options: Mapping[str, Any]) -> LabelledSet:
    """See `contract`."""
    chosen = read_settings(Options, options, what="data set 'breakhis'")
    root = files.normalise(root)
    found = [(uri, match) for uri in find_images(root) if (match := NAME.fullmatch(files.base_name(uri)))]
    if not found:
        raise missing_layout(
            "breakhis",
            root,
            looked_for="histology_slides/breast/{benign,malignant}/SOB/<subtype>/<slide>/<magnification>X/"
            "SOB_B_A-14-22549AB-40-001.png, at any depth",
            advice="Unpack BreaKHis_v1.tar.gz there",
        )
    classes = tuple((BINARY if chosen.classes == "binary" else SUBTYPES).values())
    samples = tuple(
        Sample(
            key=relative_key(uri, root),
            layout="breakhis",
            image=uri,
            group=_patient(match, merge_blocks=chosen.merge_blocks),
            label=classes.index(_class(match, chosen.classes)),
            mpp=MPP[chosen.magnification],
        )
        for uri, match in found
        if int(match[5]) == chosen.magnification
    )
    if not samples:
        there = ", ".join(sorted({f"{match[5]}X" for _, match in found}))
        raise DatasetError(f"data set 'breakhis': no image at {chosen.magnification}X below {root}; there are: {there}")
    info = DatasetInfo(
        name="breakhis",
        task=task,
        classes=classes,
        mpp=MPP[chosen.magnification],
        licence="CC BY 4.0",
        source="Spanhol et al., IEEE Transactions on Biomedical Engineering 63(7), 1455-1462 (2016); "
        "https://web.inf.ufpr.br/vri/databases/breast-cancer-histopathological-database-breakhis/",
        group="patient",
        note="patient 14-13412 is in the set twice, as ductal and as lobular carcinoma; patients that differ in their letters "
        "alone (14-22549AB, 14-22549CD) may be blocks of one: merge_blocks true treats them so",
    )
    return LabelledSet(info, tuple(sorted(samples, key=lambda sample: sample.key)))


def load(sample: Sample) -> Decoded:
    """The image."""
    return Decoded(image=read_image(sample.image, sample.key))


def _patient(match: re.Match, *, merge_blocks: bool) -> str:
    return f"{match[3].split('-')[0]}-{match[4]}" if merge_blocks else match[3].upper()


def _class(match: re.Match, kind: str) -> str:
    if kind == "binary":
        return BINARY[match[1].upper()]
    subtype = match[2].upper()
    if subtype not in SUBTYPES:
        raise DatasetError(f"data set 'breakhis': {match[0]}: there is no subtype {subtype!r}; known: {', '.join(SUBTYPES)}")
    return SUBTYPES[subtype]
