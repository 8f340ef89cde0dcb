"""Which data sets there are. A new one is its file and one line in `DATASETS`."""

import importlib
from collections.abc import Mapping
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np

from csat.errors import ConfigError, DatasetError
from csat.labels.datasets.contract import Decoded, LabelledSet, Sample
from csat.labels.datasets.decode import NoOptions, check_numbered, check_same_size
from csat.settings import places_in
from csat.tasks import IGNORE, Task
from csat.words import some

# name → module of its layout. Several names may share one: `info.name` says which was asked for.
DATASETS: dict[str, str] = {
    "folder": "csat.labels.datasets.folder",
    "manifest": "csat.labels.datasets.manifest",
    "pairs": "csat.labels.datasets.pairs",
    "nct_crc": "csat.labels.datasets.nct_crc",
    "pcam": "csat.labels.datasets.pcam",
    "bach": "csat.labels.datasets.bach",
    "breakhis": "csat.labels.datasets.breakhis",
    "lc25000": "csat.labels.datasets.lc25000",
    "lc25000_lung": "csat.labels.datasets.lc25000_lung",
    "mhist": "csat.labels.datasets.mhist",
    "sicapv2": "csat.labels.datasets.sicapv2",
    "glas": "csat.labels.datasets.glas",
    "crag": "csat.labels.datasets.crag",
    "bcss": "csat.labels.datasets.bcss",
    "pannuke": "csat.labels.datasets.pannuke",
    "consep": "csat.labels.datasets.consep",
    "monuseg": "csat.labels.datasets.monuseg",
    "nuinsseg": "csat.labels.datasets.nuinsseg",
    "dsb2018": "csat.labels.datasets.dsb2018",
}


def read_dataset(
    name: str, root: str, *, task: Task | str | None = None, options: Mapping[str, Any] | None = None
) -> LabelledSet:
    """A set's samples, without decoding any.

    Args:
        name: Key of `DATASETS`.
        root: Folder or file, local or remote.
        task: One of those that the set serves; None: its first.
        options: What the layout lets one choose, such as the names of a manifest's columns.

    Raises:
        ConfigError: an unknown set, task or option.
        DatasetError: the layout does not fit; says what was looked for and what was found.
    """
    module = _module(name)
    try:
        task = module.TASKS[0] if task is None else Task(task)
    except ValueError as error:
        raise ConfigError(f"there is no task {task!r}; there are: {', '.join(Task)}") from error
    if task not in module.TASKS:
        raise ConfigError(f"data set {name!r} serves {', '.join(module.TASKS)}, not {task}")
    found = module.read(root, task=task, options=dict(options or {}))
    if not found.samples:
        raise DatasetError(f"data set {name!r}: no samples in {root}")
    if task == Task.CLASSIFICATION:  # the defaults of a sample
        return found
    samples = (replace(sample, task=task, num_classes=len(found.info.classes)) for sample in found.samples)
    return LabelledSet(found.info, tuple(samples))


def with_places(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a layout with every path absolute, see `csat.settings`; of a name that is no layout, as they are."""
    return places_in(getattr(_module(name), "Options", NoOptions), options) if name in DATASETS else dict(options)


def load_sample(sample: Sample) -> Decoded:
    """Decode one sample.

    Raises:
        SlideError: it cannot be read.
        DatasetError: image and mask contradict each other; a mask names a class that the set does not have, is stored with
            loss, or does not number its nuclei.
    """
    decoded = _module(sample.layout).load(sample)
    for labels in (decoded.mask, decoded.instances, decoded.types):
        if labels is not None:
            check_same_size(decoded.image, labels, sample)
    if decoded.mask is not None:
        _check_values(decoded.mask[decoded.mask != IGNORE], sample.num_classes - 1, sample.mask or sample.image, sample)
    if decoded.instances is not None:
        check_numbered(decoded.instances, sample)
    if decoded.types is not None:
        _check_values(decoded.types, sample.num_classes, sample.types or sample.mask or sample.image, sample)
    return decoded


def _check_values(labels: np.ndarray, largest: int, uri: str, sample: Sample) -> None:
    if labels.max(initial=0) > largest:
        unknown = some(np.unique(labels[labels > largest]).tolist())
        raise DatasetError(
            f"sample {sample.key}: its labels hold {unknown} ({uri}), and the set's classes are 0 to {largest}. Name all "
            "classes in the set's options, or correct the file"
        )


def _module(name: str) -> ModuleType:
    if name not in DATASETS:
        raise ConfigError(f"there is no data set {name!r}; there are: {', '.join(DATASETS)}")
    return importlib.import_module(DATASETS[name])
