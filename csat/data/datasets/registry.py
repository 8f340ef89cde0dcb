"""Which data sets there are. A new one is its file and one line in `DATASETS`."""

import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from csat.data.datasets.contract import Decoded, LabelledSet, Sample, Task
from csat.errors import ConfigError, DatasetError

# name → module of its layout. Several names may share one: `info.name` says which was asked for.
DATASETS: dict[str, str] = {
    "folder": "csat.data.datasets.folder",
    "manifest": "csat.data.datasets.manifest",
    "pairs": "csat.data.datasets.pairs",
    "nct_crc": "csat.data.datasets.nct_crc",
    "pcam": "csat.data.datasets.pcam",
    "bach": "csat.data.datasets.bach",
    "breakhis": "csat.data.datasets.breakhis",
    "lc25000": "csat.data.datasets.lc25000",
    "lc25000_lung": "csat.data.datasets.lc25000_lung",
    "mhist": "csat.data.datasets.mhist",
    "sicapv2": "csat.data.datasets.sicapv2",
    "glas": "csat.data.datasets.glas",
    "crag": "csat.data.datasets.crag",
    "bcss": "csat.data.datasets.bcss",
    "pannuke": "csat.data.datasets.pannuke",
    "consep": "csat.data.datasets.consep",
    "monuseg": "csat.data.datasets.monuseg",
    "nuinsseg": "csat.data.datasets.nuinsseg",
    "dsb2018": "csat.data.datasets.dsb2018",
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
    return found


def load_sample(sample: Sample) -> Decoded:
    """Decode one sample.

    Raises:
        SlideError: it cannot be read.
        DatasetError: image and mask contradict each other.
    """
    return _module(sample.layout).load(sample)


def _module(name: str) -> ModuleType:
    if name not in DATASETS:
        raise ConfigError(f"there is no data set {name!r}; there are: {', '.join(DATASETS)}")
    return importlib.import_module(DATASETS[name])
