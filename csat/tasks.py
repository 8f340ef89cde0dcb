"""What a task asks of a model (its heads) and of the data (its targets): the one place where the two are agreed.

| task | heads (name, kind, channels) | targets |
|---|---|---|
| classification | `label`, logits, classes | `label` int64 [] |
| segmentation | `mask`, logits, classes, dense | `mask` uint8 [H, W], class index or 255 for "does not count" |
| nuclei | `np`, probability, 1 | `np` uint8 [H, W], 0 or 1 |
| | `hv`, regression, 2 | `hv` float16 [2, H, W] |
| with types | `tp`, logits, 1 + types | `tp` uint8 [H, W], 0 background, 255 does not count |

The nuclei heads are HoVer-Net's (Graham et al. 2019), so that a model trained on nuclei is a teacher for RCKD, and a student
that RCKD made has these heads already.
"""

from dataclasses import dataclass
from enum import StrEnum

from csat.responses import Kind, ResponseSpec, Symmetry, TargetSpec

IGNORE = 255  # in a class mask: pixels that neither train nor count


class Task(StrEnum):
    """What is learned from a set."""

    CLASSIFICATION = "classification"  # one class per image
    SEGMENTATION = "segmentation"  # one class per pixel
    NUCLEI = "nuclei"  # instances, and their types where the set has them


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """What is known about a set."""

    name: str
    task: Task
    # classification and segmentation: all classes, index 0 first (a segmentation's background included); nuclei: the types
    # without background (value 1 first), empty where nuclei have no types
    classes: tuple[str, ...]
    mpp: float | None  # of the images as they are distributed; None: not stated, or mixed
    licence: str  # one line; "not stated" where that is so
    source: str  # citation, and where it is downloaded
    group: str  # what a group is: "patient", "slide", "source image", "image (no grouping known)"
    note: str = ""  # traps: touching nuclei merged, groups guessed from names


def heads_of(info: DatasetInfo, *, crop_px: int = 0) -> tuple[ResponseSpec, ...]:
    """The heads that a model needs for a set's task.

    Args:
        info: Of the set: task and classes.
        crop_px: Tile pixels on each side that the model's dense predictions do not cover (HoVer-Net's margin).
    """
    match info.task:
        case Task.CLASSIFICATION:
            size = len(info.classes)
            return (ResponseSpec(name="label", kind=Kind.LOGITS, channels=size, stride_px=None, channel_names=info.classes),)
        case Task.SEGMENTATION:
            size = len(info.classes)
            return (ResponseSpec(name="mask", kind=Kind.LOGITS, channels=size, crop_px=crop_px, channel_names=info.classes),)
    heads = [
        ResponseSpec(name="np", kind=Kind.PROBABILITY, channels=1, crop_px=crop_px, channel_names=("nucleus",)),
        ResponseSpec(name="hv", kind=Kind.REGRESSION, channels=2, crop_px=crop_px, symmetry=Symmetry.HV),
    ]
    if info.classes:
        names = ("background", *info.classes)
        heads.append(ResponseSpec(name="tp", kind=Kind.LOGITS, channels=len(names), crop_px=crop_px, channel_names=names))
    return tuple(heads)


def targets_of(info: DatasetInfo) -> tuple[TargetSpec, ...]:
    """The targets that a tile of this set carries."""
    match info.task:
        case Task.CLASSIFICATION:
            return (TargetSpec(name="label", dtype="int64", is_dense=False),)
        case Task.SEGMENTATION:
            return (TargetSpec(name="mask", dtype="uint8"),)
    targets = [TargetSpec(name="np", dtype="uint8"), TargetSpec(name="hv", dtype="float16", channels=2)]
    return (*targets, TargetSpec(name="tp", dtype="uint8")) if info.classes else tuple(targets)
