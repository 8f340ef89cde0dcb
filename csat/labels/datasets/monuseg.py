"""MoNuSeg (Kumar et al. 2017, 2020): outlines of nuclei in 51 images of nine organs of TCGA, 1000 px at 40x.

    <root>/MoNuSeg 2018 Training Data/Tissue Images/TCGA-18-5592-01Z-00-DX1.tif, Annotations/TCGA-18-5592-01Z-00-DX1.xml
    <root>/MoNuSegTestData/TCGA-2Z-A9J9-01A-01-TS1.tif, TCGA-2Z-A9J9-01A-01-TS1.xml

The files lie at any depth below these folders, whose names say train or test.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any
from xml.etree import ElementTree

import numpy as np
from skimage.draw import polygon

from csat.errors import DatasetError, SlideError
from csat.labels.datasets.contract import Decoded, LabelledSet, Sample
from csat.labels.datasets.decode import NoOptions, missing_layout, read_image, relative_key, stem_of
from csat.settings import read_settings
from csat.storage import files
from csat.storage.node_cache import fetch_bytes
from csat.tasks import DatasetInfo, Task
from csat.words import some

TASKS = (Task.NUCLEI,)
MPP = 0.25  # 40x
PART = re.compile(r"(?:^|/|MoNuSeg[ _0-9]*)(train|test)", re.IGNORECASE)
PATIENT = re.compile(r"TCGA-[A-Z0-9]{2}-[A-Z0-9]{4}", re.IGNORECASE)


def read(root: str, *, task: Task, options: Mapping[str, Any]) -> LabelledSet:
    """See `contract`. An image without an annotation is an error, as is an annotation without an image."""
    read_settings(NoOptions, options, what="data set 'monuseg'")
    root = files.normalise(root)
    paths = files.list_files(root)
    images = _by_stem(uri for uri in paths if uri.lower().endswith((".tif", ".tiff")))
    outlines = _by_stem(uri for uri in paths if uri.lower().endswith(".xml"))
    if not images:
        raise missing_layout(
            "monuseg",
            root,
            looked_for="MoNuSeg 2018 Training Data/Tissue Images/*.tif with Annotations/*.xml, and MoNuSegTestData with *.tif "
            "and *.xml",
            advice="Unpack both downloads of https://monuseg.grand-challenge.org/Data there",
        )
    if odd := sorted(images.keys() ^ outlines.keys()):
        raise DatasetError(
            f"data set 'monuseg': {root}: {len(images)} tif and {len(outlines)} xml files, of which {len(odd)} have no "
            f"partner: {some(odd)}. Complete the folders"
        )
    info = DatasetInfo(
        name="monuseg",
        task=task,
        classes=(),
        mpp=MPP,
        licence="CC BY-NC-SA 4.0",
        source="Kumar et al., IEEE TMI 36(7) (2017) and 39(5) (2020); https://monuseg.grand-challenge.org/Data",
        group="patient",
        note="outlines overlap: the first one has the pixels, as in the organisers' code",
    )
    return LabelledSet(info, tuple(_sample(images[stem], outlines[stem], root) for stem in sorted(images)))


def load(sample: Sample) -> Decoded:
    """Image and instances: the pixels whose centres an outline encloses."""
    image = read_image(sample.image, sample.key)
    instances = np.zeros(image.shape[:2], np.int32)
    for number, outline in enumerate(_read_outlines(sample.mask), 1):
        # ImageScope's (0, 0) is the corner of the first pixel, whose centre lies at (0.5, 0.5).
        rows, columns = polygon(outline[:, 1] - 0.5, outline[:, 0] - 0.5, instances.shape)
        is_free = instances[rows, columns] == 0
        instances[rows[is_free], columns[is_free]] = number
    return Decoded(image=image, instances=instances)


def _by_stem(uris: Iterable[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for uri in uris:
        if (stem := stem_of(uri)) in found:
            raise DatasetError(f"data set 'monuseg': {found[stem]} and {uri} have one name; move one of them away")
        found[stem] = uri
    return found


def _sample(image: str, outlines: str, root: str) -> Sample:
    key = relative_key(image, root)
    patient = PATIENT.match(files.base_name(image))
    if patient is None:
        raise DatasetError(
            f"data set 'monuseg': {image} does not begin with a patient's barcode; expected a name such as "
            "TCGA-18-5592-01Z-00-DX1.tif"
        )
    split = PART.search(key.rpartition("/")[0])
    return Sample(
        key=key,
        layout="monuseg",
        image=image,
        group=patient[0].upper(),
        split=None if split is None else split[1].lower(),
        mask=outlines,
        mpp=MPP,
    )


def _read_outlines(uri: str) -> list[np.ndarray]:
    """Outlines of an ImageScope annotation: float64 `[corners, 2]` each, x and y in px."""
    data = fetch_bytes(uri)
    try:
        annotations = ElementTree.fromstring(data)
        if annotations.tag != "Annotations":
            raise ValueError(f"its root is <{annotations.tag}>")
        regions = [
            np.array([(float(vertex.attrib["X"]), float(vertex.attrib["Y"])) for vertex in region.iter("Vertex")])
            for region in annotations.iter("Region")
        ]
    except (ElementTree.ParseError, KeyError, ValueError) as error:
        raise SlideError("unreadable", f"{uri}: no ImageScope annotation: {type(error).__name__}: {error}") from error
    return [region for region in regions if len(region) > 2]  # a click leaves a point or a line, which encloses nothing
