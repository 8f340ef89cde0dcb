"""A table of one's own (csv, tsv, parquet, xlsx): a row per image, with its label or the files of its masks, group and split.

The layout is called "manifest", as recipes and command lines have it. It has nothing to do with the manifest of tiles
(`csat.tiles.manifest`), which is what that word means everywhere else.

    path,label,group,split                 classification
    path,mask,group,split                  segmentation: class indices per pixel, 255 does not count
    path,mask,types,group,split            nuclei: instance numbers per pixel; optionally the nuclei's types per pixel
    path,label,x,y,group,split             classification of the square around each point, with option `window_px`

Paths are relative to the table, or to option `image_root`. Only the path, and the label or mask that the task needs, must be
there. A row whose split is empty trains, or is drawn for a split that no row names; `group` is filled in every row, or is no
column.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from csat.errors import ConfigError, DatasetError
from csat.labels.augment import window
from csat.labels.datasets.contract import Decoded, LabelledSet, Sample
from csat.labels.datasets.decode import SPLIT_NAMES, missing_layout, read_classes, read_image, read_instances, relative_key
from csat.settings import Place, read_settings
from csat.slides.mpp import GIVEN, is_plausible_mpp
from csat.storage import files
from csat.storage.tables import READERS, Row, read_rows, require_columns
from csat.tasks import DatasetInfo, Task
from csat.words import is_empty, number, text

TASKS = (Task.CLASSIFICATION, Task.SEGMENTATION, Task.NUCLEI)
COLUMNS = ("path", "label", "mask", "types", "group", "split", "mpp", "x", "y")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Columns, and what the table cannot say."""

    path: str = "path"  # column: the image
    label: str = "label"  # column: the class's name (classification)
    mask: str = "mask"  # column: the class mask (segmentation) or the instances (nuclei)
    types: str = "types"  # column: the nuclei's types
    group: str = "group"  # column: patient, slide or source image; where there is none each image is its own group
    split: str = "split"  # column: train, val or test
    mpp: str = "mpp"  # column: um/px
    x: str = "x"  # column: centre of the window, px from the left edge of the image; y from its upper edge
    y: str = "y"
    window_px: int | None = None  # a row is a point, and its sample the square of that edge around it; None: the whole image
    leave_out: tuple[str, ...] = ()  # labels whose rows are no samples
    image_root: Place | None = None  # folder that paths are relative to; None: the table's own
    classes: tuple[str, ...] | None = None  # all classes, index 0 first; None: the label column's values, sorted
    group_name: str = "group"  # what a group is, for the reports: patient, slide, …
    licence: str = "not stated"  # of the images, one line

    def __post_init__(self):
        if self.window_px is not None and self.window_px < 1:
            raise ConfigError(f"data set 'manifest': window_px is an edge of at least 1 px, not {self.window_px}")


def read(root: str, *, task: Task, options: Mapping[str, Any]) -> LabelledSet:
    """See `contract`. `root` is the table, or a folder with exactly one.

    Raises:
        ConfigError: segmentation, or nuclei types, without option `classes`; windows of masks.
        DatasetError: a missing column, an unknown class or split, an empty cell, the same image twice: with line and value.
    """
    chosen = read_settings(Options, options, what="data set 'manifest'")
    table = _find_table(root)
    rows = read_rows(table)
    if not rows:
        raise DatasetError(f"{table}: has no rows below its header")
    columns = tuple(rows[0])
    target = chosen.label if task == Task.CLASSIFICATION else chosen.mask
    named = [getattr(chosen, name) for name in COLUMNS if name in options]  # what the user named must be there
    points = [] if chosen.window_px is None else [chosen.x, chosen.y]
    require_columns(columns, [chosen.path, target, *points, *named], table)
    if task != Task.CLASSIFICATION and (points or chosen.leave_out):
        raise ConfigError(f"{table}: window_px and leave_out are for a classification, and the task is {task}")
    rows = [row for row in rows if not chosen.leave_out or text(row[chosen.label]) not in chosen.leave_out]
    classes = _classes(chosen, task, columns, rows, table)
    if task == Task.NUCLEI and classes:
        require_columns(columns, [chosen.types], table)
    base = files.normalise(chosen.image_root or files.parent(table))
    samples: dict[str, Sample] = {}
    num_of = Counter()  # points of each image so far
    for row in rows:
        cells = _Cells(row, f"{table}, line {row.line}")
        sample = _sample(cells, chosen, task, classes, base)
        if chosen.window_px is not None:
            num_of[sample.key] += 1
            sample = _at_point(sample, cells, chosen, number=num_of[sample.key])
        if sample.key in samples:
            raise DatasetError(f"{table}, line {row.line}: {sample.key} is in the table twice; one image has one row")
        samples[sample.key] = sample
    mpps = {sample.mpp for sample in samples.values()}
    has_groups = chosen.group in columns
    info = DatasetInfo(
        name="manifest",
        task=task,
        classes=classes,
        mpp=mpps.pop() if len(mpps) == 1 else None,
        licence=chosen.licence,
        source=table,
        group=chosen.group_name if has_groups else "image (no grouping known)",
        note="" if has_groups else f"there is no column {chosen.group!r}: images of one patient may fall into several parts",
    )
    return LabelledSet(info, tuple(samples[key] for key in sorted(samples)))


def load(sample: Sample) -> Decoded:
    """The image, or the window of it, with its class mask, or with its instances and their types."""
    if sample.window is not None:
        left, top, edge = sample.window
        seen = window(Decoded(image=_read_shared(sample.image)), top, left, edge, edge)
        return Decoded(image=np.ascontiguousarray(seen.image))
    image = read_image(sample.image, sample.key)
    match sample.task:
        case Task.SEGMENTATION:
            return Decoded(image=image, mask=read_classes(sample.mask))
        case Task.NUCLEI:
            types = None if sample.types is None else read_classes(sample.types)
            return Decoded(image=image, instances=read_instances(sample.mask), types=types)
    return Decoded(image=image)


class _Cells:
    """One row, and where it stands: for messages."""

    def __init__(self, row: Row, where: str):
        self.row, self.where = row, where

    def optional(self, column: str) -> str | None:
        cell = self.row.get(column)
        return None if is_empty(cell) else text(cell)

    def needed(self, column: str) -> str:
        if (cell := self.optional(column)) is None:
            raise DatasetError(f"{self.where}: column {column!r} is empty")
        return cell

    def number(self, column: str) -> float:
        cell = self.needed(column)
        try:
            found = number(cell)
        except ValueError:
            found = math.nan
        if not math.isfinite(found):
            raise DatasetError(f"{self.where}: {cell!r} in column {column!r} is no number of pixels")
        return found


def _find_table(root: str) -> str:
    root = files.normalise(root)
    if files.info(root) is not None:
        return root
    tables = [uri for uri in files.list_dir(root) if uri.lower().endswith(READERS)]
    if len(tables) != 1:
        raise missing_layout(
            "manifest", root, looked_for=f"one table ({' or '.join(READERS)})", advice="Point the path at the table itself"
        )
    return tables[0]


def _classes(chosen: Options, task: Task, columns: Sequence[str], rows: Sequence[Row], table: str) -> tuple[str, ...]:
    if chosen.classes is not None:
        return tuple(chosen.classes)
    if task == Task.CLASSIFICATION:
        return tuple(sorted({text(row[chosen.label]) for row in rows if not is_empty(row[chosen.label])}))
    if task == Task.SEGMENTATION or chosen.types in columns:
        raise ConfigError(
            f"{table}: the names of the classes are not in the table: give option `classes`, "
            + ("index 0 (background) first" if task == Task.SEGMENTATION else "the types without background")
        )
    return ()


def _sample(cells: _Cells, chosen: Options, task: Task, classes: Sequence[str], base: str) -> Sample:
    image = _resolve(base, cells.needed(chosen.path))
    key = relative_key(image, base)
    label = None
    if task == Task.CLASSIFICATION:
        name = cells.needed(chosen.label)
        if name not in classes:
            raise DatasetError(
                f"{cells.where}: unknown class {name!r} in column {chosen.label!r}; classes are: {', '.join(classes)}"
            )
        label = list(classes).index(name)
    split = cells.optional(chosen.split)
    if split is not None and split.lower() not in SPLIT_NAMES:
        raise DatasetError(
            f"{cells.where}: unknown part {split!r} in column {chosen.split!r}; parts are: {', '.join(SPLIT_NAMES)}"
        )
    types = cells.needed(chosen.types) if task == Task.NUCLEI and classes else None
    mpp = _mpp(cells, chosen.mpp)
    return Sample(
        key=key,
        layout="manifest",
        image=image,
        group=cells.needed(chosen.group) if chosen.group in cells.row else key,
        split=None if split is None else SPLIT_NAMES[split.lower()],
        label=label,
        mask=None if task == Task.CLASSIFICATION else _resolve(base, cells.needed(chosen.mask)),
        types=None if types is None else _resolve(base, types),
        mpp=mpp,
        mpp_source=None if mpp is None else GIVEN,
    )


def _at_point(sample: Sample, cells: _Cells, chosen: Options, *, number: int) -> Sample:
    """The square around the point of a row. `number`: of the points of its image, from 1; several may lie at one place."""
    edge = chosen.window_px
    left, top = (round(cells.number(column) - edge / 2) for column in (chosen.x, chosen.y))
    return replace(sample, key=f"{sample.key}@{number:05d}", window=(left, top, edge))


@lru_cache(maxsize=1)
def _read_shared(uri: str) -> np.ndarray:
    """An image whose windows follow each other."""
    image = read_image(uri, uri)
    image.flags.writeable = False
    return image


def _resolve(base: str, name: str) -> str:
    is_absolute = "://" in name or name.startswith(("/", "~"))
    return files.normalise(name if is_absolute else files.join(base, name))


def _mpp(cells: _Cells, column: str) -> float | None:
    cell = cells.optional(column)
    try:
        mpp = None if cell is None else number(cell)
    except ValueError:
        mpp = math.nan
    if mpp is not None and not is_plausible_mpp(mpp):
        raise DatasetError(f"{cells.where}: {cell!r} in column {column!r} is no resolution in um/px")
    return mpp
