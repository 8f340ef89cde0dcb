"""A folder per class, as ImageFolder has it: `<class>/…/image`, or `<train|val|test>/<class>/…/image` with official splits."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from csat.errors import DatasetError
from csat.labels.datasets.contract import Decoded, LabelledSet, Sample
from csat.labels.datasets.decode import SPLIT_NAMES, find_images, log_passed_over, missing_layout, read_image, relative_key
from csat.labels.datasets.name_groups import check_pattern, describe, group_of, warn
from csat.settings import read_settings
from csat.storage import files
from csat.tasks import DatasetInfo, Task
from csat.words import some

TASKS = (Task.CLASSIFICATION,)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a folder of classes lets one choose."""

    group_pattern: str | None = None  # regex searched in each file name: its first (…) is the group; None: each image its own
    classes: tuple[str, ...] | None = None  # the class folders in the order of their indices; None: as found, sorted

    def __post_init__(self):
        check_pattern(self.group_pattern)


def read(root: str, *, task: Task, options: Mapping[str, Any]) -> LabelledSet:
    """See `contract`. Images outside a class folder are an error, as are splits beside classes."""
    chosen = read_settings(Options, options, what="data set 'folder'")
    root = files.normalise(root)
    passed_over = Counter()
    images = {relative_key(uri, root): uri for uri in find_images(root, passed_over)}
    tops = _folders(root, images)
    official = {top for top in tops if top.lower() in SPLIT_NAMES}
    if not tops or not images:
        raise missing_layout(
            "folder",
            root,
            looked_for="one folder per class with images in it, or train/val/test folders of class folders",
            advice="Point the path at the folder that holds the class folders",
        )
    if official and official != tops:
        raise DatasetError(
            f"data set 'folder': {root} holds parts ({', '.join(sorted(official))}) beside other folders "
            f"({', '.join(sorted(tops - official))}): are those classes or parts? Move one kind away, or rename it"
        )
    depth = 2 if official else 1
    if loose := [key for key in images if key.count("/") < depth]:
        raise DatasetError(
            f"data set 'folder': {len(loose)} images lie outside a class folder: {some(loose)}. Expected "
            f"{'part/class/image' if official else 'class/image'} below {root}"
        )
    found = {folder for split in official for folder in _folders(files.join(root, split), ())} if official else tops
    classes = chosen.classes or tuple(sorted(found | {key.split("/")[depth - 1] for key in images}))
    samples = tuple(
        Sample(
            key=key,
            layout="folder",
            image=uri,
            group=group_of(key, chosen.group_pattern, "folder"),
            split=SPLIT_NAMES[key.split("/")[0].lower()] if official else None,
            label=_label(key.split("/")[depth - 1], classes, key),
        )
        for key, uri in sorted(images.items())
    )
    log_passed_over("folder", root, passed_over)
    info = DatasetInfo(
        name="folder",
        task=task,
        classes=classes,
        mpp=None,
        licence="not stated",
        source=root,
        group=describe(chosen.group_pattern),
        note=warn(chosen.group_pattern),
    )
    return LabelledSet(info, samples)


def load(sample: Sample) -> Decoded:
    """The image."""
    return Decoded(image=read_image(sample.image, sample.key))


def _folders(root: str, keys: Sequence[str] | Mapping[str, str]) -> set[str]:
    """Names of the folders directly below `root`: those that the keys show, and those without images."""
    shown = {key.split("/")[0] for key in keys if "/" in key}
    for uri in files.list_dir(root):
        if (name := files.base_name(uri)) not in shown and files.is_dir(uri):
            shown.add(name)
    return shown


def _label(name: str, classes: Sequence[str], key: str) -> int:
    if name not in classes:
        raise DatasetError(f"data set 'folder': {key} is in class folder {name!r}; the classes are: {', '.join(classes)}")
    return classes.index(name)
