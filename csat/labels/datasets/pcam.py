"""PatchCamelyon: is there tumour in the middle 32 px of a 96 px tile of a lymph node (Veeling et al. 2018)?

<root>/camelyonpatch_level_2_split_{train,valid,test}_x.h5     "x": uint8 [n, 96, 96, 3]
<root>/camelyonpatch_level_2_split_{train,valid,test}_y.h5     "y": uint8 [n, 1, 1, 1]
<root>/camelyonpatch_level_2_split_{train,valid,test}_meta.csv optional: column "wsi", one row per tile
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from csat.errors import DatasetError, SlideError
from csat.labels.datasets.contract import Decoded, LabelledSet, Sample
from csat.labels.datasets.decode import SPLIT_NAMES, NoOptions, local_container, missing_layout, relative_key
from csat.settings import read_settings
from csat.storage import files
from csat.storage.tables import read_rows
from csat.tasks import DatasetInfo, Task
from csat.words import text

TASKS = (Task.CLASSIFICATION,)
CLASSES = ("normal", "tumor")
SPLITS = ("train", "valid", "test")
MPP = 0.972  # Camelyon16's 0.243 um/px, four times less fine


def read(root: str, *, task: Task, options: Mapping[str, Any]) -> LabelledSet:
    """See `contract`. Labels are read; of the tiles' files only their presence is seen."""
    read_settings(NoOptions, options, what="data set 'pcam'")
    root = files.normalise(root)
    names = {files.base_name(uri): uri for uri in files.list_dir(root)}
    samples: list[Sample] = []
    has_slides = []
    for split in SPLITS:
        x, y, meta = (f"camelyonpatch_level_2_split_{split}_{what}" for what in ("x.h5", "y.h5", "meta.csv"))
        if (x in names) != (y in names):
            raise DatasetError(
                f"data set 'pcam': {root} holds {x if x in names else y} without {y if x in names else x}; download both "
                "and gunzip them"
            )
        if x not in names:
            continue
        labels = _read_labels(names[y])
        slides = _read_slides(names[meta], len(labels)) if meta in names else None
        has_slides.append(slides is not None)
        for index, label in enumerate(labels):
            key = relative_key(names[x], root, index)
            group = slides[index] if slides else key
            samples.append(
                Sample(
                    key=key,
                    layout="pcam",
                    image=names[x],
                    group=group,
                    split=SPLIT_NAMES[split],
                    label=int(label),
                    index=index,
                    mpp=MPP,
                )
            )
    if not samples:
        raise missing_layout(
            "pcam",
            root,
            looked_for="camelyonpatch_level_2_split_{train,valid,test}_{x,y}.h5",
            advice="Download them from https://github.com/basveeling/pcam or https://zenodo.org/records/2546921, and gunzip",
        )
    info = DatasetInfo(
        name="pcam",
        task=task,
        classes=CLASSES,
        mpp=MPP,
        licence="CC0 1.0",
        source="Veeling et al., MICCAI 2018, arXiv:1806.03962; Ehteshami Bejnordi et al., JAMA 318 (2017); "
        "https://github.com/basveeling/pcam",
        group="slide" if all(has_slides) else "image (no grouping known)",
        note="the set holds duplicate tiles" + ("" if all(has_slides) else "; with the *_meta.csv files slides become groups"),
    )
    return LabelledSet(info, tuple(sorted(samples, key=lambda sample: sample.key)))


def load(sample: Sample) -> Decoded:
    """One tile of the container."""
    with local_container(sample.image) as path:
        try:
            with h5py.File(path) as file:
                tile = file["x"][sample.index]
        except (OSError, KeyError, IndexError, ValueError) as error:  # what h5py raises of a damaged or short file
            raise SlideError("unreadable", f"{sample.key}: {type(error).__name__}: {error}") from error
    if tile.dtype != np.uint8 or tile.ndim != 3 or tile.shape[2] != 3:
        raise SlideError("unreadable", f"{sample.key}: a tile is uint8 [96, 96, 3], not {tile.dtype} {list(tile.shape)}")
    return Decoded(image=tile)


def _read_labels(uri: str) -> np.ndarray:
    """uint8 `[n]`."""
    with local_container(uri) as path:
        labels = _read_dataset(path, "y", uri).reshape(-1)
    if unknown := sorted(set(np.unique(labels).tolist()) - {0, 1}):
        raise DatasetError(f"{uri}: labels are 0 or 1, and there are {unknown[:5]}")
    return labels


def _read_dataset(path: Path, name: str, uri: str) -> np.ndarray:
    try:
        with h5py.File(path) as file:
            if name not in file:
                raise DatasetError(f"{uri}: there is no dataset {name!r}; it holds: {', '.join(file) or 'nothing'}")
            return file[name][()]
    except OSError as error:
        raise DatasetError(f"{uri}: cannot be read as h5 ({error}); is it still gzipped, or cut short?") from error


def _read_slides(uri: str, num_tiles: int) -> list[str]:
    rows = read_rows(uri, needs=["wsi"])
    if len(rows) != num_tiles:
        raise DatasetError(f"{uri}: {len(rows):,} rows for {num_tiles:,} tiles; is it another part's file?")
    return [text(row["wsi"]) for row in rows]
