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

import numpy as np

from csat.data.datasets.contract import IGNORE, DatasetInfo, Decoded, Task
from csat.data.instances import hv_targets
from csat.responses import Kind, ResponseSpec, Symmetry, TargetSpec


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


def make_targets(info: DatasetInfo, decoded: Decoded, label: int | None) -> dict[str, np.ndarray]:
    """The targets of one tile, from its (augmented) arrays: name → array of the shape and dtype that `targets_of` says.

    Where the set has types and this sample's are not known, its nuclei do not count for them.
    """
    match info.task:
        case Task.CLASSIFICATION:
            return {"label": np.int64(label)}
        case Task.SEGMENTATION:
            return {"mask": decoded.mask}
    targets = {
        "np": (decoded.instances > 0).astype(np.uint8),
        "hv": hv_targets(decoded.instances).astype(np.float16),
    }
    if info.classes:
        is_unknown = decoded.types is None
        targets["tp"] = np.where(decoded.instances > 0, IGNORE, 0).astype(np.uint8) if is_unknown else decoded.types
    return targets
