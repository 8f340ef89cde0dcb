"""The targets of one labelled tile, as `csat.tasks.targets_of` describes them."""

import numpy as np

from csat.instances import hv_targets
from csat.labels.datasets.contract import Decoded
from csat.tasks import IGNORE, DatasetInfo, Task


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
