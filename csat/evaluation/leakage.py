"""Has a model seen, before it is trained, images that it will be judged on?

What a model that starts from a run has seen: the tiles of a pretraining, the training split of a fine-tuning, whatever that
run itself started from, and what its teacher was trained on: a teacher tells its student of the labels that it knows.

Images are recognised by the last parts of their path, so that a set that moved or was copied is recognised too; groups
(patients) by their name where it is one that nobody else would choose, else by name and folder: every set has a "patient 4".
"""

import io
import logging
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import yaml

from csat.errors import DatasetError, StorageError
from csat.labels.sets import LabelledData
from csat.runs.students import manifest_of
from csat.shipped import is_shipped
from csat.storage import files
from csat.tiles.manifest import read_manifest
from csat.words import some

logger = logging.getLogger(__name__)

EXPORTED = "exported"  # the folder of a run's model
JUDGED = ("val", "test")
NUM_READERS = 16  # shards of a manifest read at once: they are waited for, not computed
FOLDER_PARTS = 2  # of a path, that stand for a set where a name alone says too little
LEAST_DIGITS = 6  # in a name that is nobody else's: TCGA-06-0125


@dataclass(frozen=True)
class Seen:
    """What one earlier run was trained on.

    Attributes:
        where: For the message: "in the pretraining runs/a".
        remedy: How to train that run instead.
        images: As `_image_key` has them.
        groups: As `_group_key` has them.
    """

    where: str
    remedy: str
    images: frozenset[str] = field(repr=False)
    groups: frozenset[str] = field(repr=False)


def check_leakage(initial: str | None, data: LabelledData, *, teacher: str | None = None) -> None:
    """Compare what the initial run, and the teacher's, have seen with the validation and test splits.

    Args:
        initial: Run folder that the model starts from; None: it starts from no run.
        data: With its splits.
        teacher: Run folder of the teacher, or its file of weights; None: no teacher, or one without weights.

    Raises:
        DatasetError: which run saw how many images, or groups; some of them, and what to do.
    """
    runs = [(initial, "")] if initial else []
    if teacher is not None and (is_shipped(teacher) or _run_folder(teacher) is not None):
        runs.append((teacher, ", the teacher"))
    if not runs:
        return
    judged = [sample for split in JUDGED for sample in data.splits[split]]
    image_of = {_image_key(sample.image, sample.key): sample.image for sample in judged}
    group_of = {_group_key(sample.group, sample.image): sample.group for sample in judged}
    lines = []
    for seen in [seen for run, role in runs for seen in seen_by(run, role=role)]:
        images = [image_of[key] for key in sorted(image_of.keys() & seen.images)]
        groups = sorted({group_of[key] for key in group_of.keys() & seen.groups})
        if images:
            lines.append(f"{len(images)} images were {seen.where}: {some(images)}. {seen.remedy}")
        elif groups:
            lines.append(f"other images of {len(groups)} groups were {seen.where}: {some(groups)}. {seen.remedy}")
    if lines:
        raise DatasetError(
            "the model would be judged on what it has seen:\n  "
            + "\n  ".join(lines)
            + "\nOr say accept_leakage true, and report it"
        )


def seen_by(run: str, *, role: str = "") -> list[Seen]:
    """What a run has seen, and what the runs behind it have.

    Args:
        run: Folder of a pretraining or a fine-tuning, or the exported model in it; local or in a bucket.
        role: What it is to the model that is judged, for the message, such as ", the teacher".
    """
    return list(_follow(run, role=role, visited=set()))


def _follow(place: str, *, role: str, visited: set[str]) -> Iterator[Seen]:
    folder = _run_folder(place)
    if is_shipped(place):
        _warn(f"{place}{role} comes with the package: its card says what it was trained on, which is not compared")
        return
    if folder is None:
        _warn(f"{place}{role} is no run folder (or no longer there): what it was trained on cannot be compared")
        return
    if folder in visited:
        return
    visited.add(folder)
    if files.exists(files.join(manifest_of(folder), "index.json")):
        yield Seen(
            f"in the pretraining {folder}{role}",
            "Pretrain on the training part only: prepare_only true writes it as pretrain.csv",
            *_keys(_read_manifest(manifest_of(folder))),
        )
    if files.exists(files.join(folder, "samples.csv")):
        yield Seen(
            f"in the training part of the fine-tuning {folder}{role}",
            "Train that run on the same parts: the same sets and data.split, or a split column",
            *_keys(_read_samples(files.join(folder, "samples.csv"))),
        )
    config = yaml.safe_load(files.read_bytes(files.join(folder, "config.yaml"))) or {}
    for before, what in _behind(config):
        yield from _follow(before, role=f", {what} {folder}{role}", visited=visited)


@cache
def _warn(message: str) -> None:
    """Once: a sweep asks of each of its cells."""
    logger.warning(message)


def _behind(config: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The runs that a run was built on, with what they were to it."""
    initial = (config.get("model") or {}).get("from_run")
    if initial:
        yield initial, "from which started"
    for teacher in (config.get("teacher") or {}, *(config.get("teachers") or {}).values()):
        place = teacher.get("weights")
        # A file of weights is a run's where it lies in one: the published form of a HoVer-Net that was trained here.
        if place and (teacher.get("name") == "run" or _run_folder(place) is not None):
            yield place, "the teacher of"


def _run_folder(place: str) -> str | None:
    """The run folder that a place is, or whose `exported/` it is or lies in; None where there is none."""
    try:
        folder = files.normalise(place)
        if files.base_name(files.parent(folder)) == EXPORTED:
            folder = files.parent(folder)
        if files.base_name(folder) == EXPORTED:
            folder = files.parent(folder)
        return folder if files.exists(files.join(folder, "config.yaml")) else None
    except StorageError as error:
        logger.warning("cannot look at %s: %s", place, error)
        return None


def _read_manifest(uri: str) -> pa.Table:
    """Each trained slide or image once: a table of image, sample, group (null where it is not known)."""
    manifest = read_manifest(uri)

    def read(shard: str) -> pa.Table:
        store, path = files.arrow_filesystem(files.join(uri, shard))
        table = pq.read_table(path, columns=["slide", "patient"], filesystem=store)
        return table.group_by(["slide", "patient"], use_threads=False).aggregate([])

    with ThreadPoolExecutor(NUM_READERS) as pool:
        table = (
            pa.concat_tables(pool.map(read, manifest.shards)) if manifest.shards else pa.table({"slide": [], "patient": []})
        )
    return pa.table({"image": table["slide"], "sample": table["slide"], "group": table["patient"]})


def _read_samples(uri: str) -> pa.Table:
    """The training samples of a fine-tuning that could be read: image, sample, group."""
    names = ["image", "part", "sample", "group", "reason"]
    table = pyarrow.csv.read_csv(
        io.BytesIO(files.read_bytes(uri)),
        parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(
            include_columns=names, include_missing_columns=True, column_types=dict.fromkeys(names, pa.string())
        ),
    )
    is_seen = pc.and_(pc.equal(table["part"], "train"), pc.equal(pc.fill_null(table["reason"], ""), ""))
    return table.filter(is_seen).select(["image", "sample", "group"])


def _keys(table: pa.Table) -> tuple[frozenset[str], frozenset[str]]:
    images, samples, groups = (table[name].to_pylist() for name in ("image", "sample", "group"))
    return (
        frozenset(map(_image_key, images, samples)),
        frozenset(_group_key(group, image) for group, image in zip(groups, images, strict=True) if group),
    )


def _image_key(image: str, sample: str) -> str:
    """Set, folder and file in most layouts; with the place in the file where one file holds many images."""
    _, hash_sign, index = sample.rpartition("/")[2].partition("#")
    return "/".join(image.rsplit("/", FOLDER_PARTS + 1)[-FOLDER_PARTS - 1 :]) + hash_sign + index


def _group_key(group: str, image: str) -> str:
    """A group's name, without the set's before it; with the folder of its images where others have such names too."""
    name = group.rpartition("/")[2]
    return name if _is_unique(name) else "/".join(image.rsplit("/", FOLDER_PARTS + 1)[-FOLDER_PARTS - 1 : -1]) + "|" + name


@lru_cache(maxsize=2**16)
def _is_unique(name: str) -> bool:
    """Whether a name is hardly another group's: TCGA-V5-A7RE and B14-22549 are, "patient 4" and "train_10" are not."""
    words = re.findall(r"[^\W_]+", name)
    is_plain = all(re.fullmatch(r"[^\W\d_]*\d{0,4}", word) for word in words)
    return not is_plain or sum(character.isdigit() for character in name) >= LEAST_DIGITS
