"""Metrics of nuclei: pixels, the aggregated Jaccard index, panoptic quality, detection.

Pooled: counts are summed over images before the ratio. Averaging images instead, or counting absent types as 0, moves PQ a
lot: figures of other papers compare only where their protocol is this one.
"""

import numpy as np
from scipy.spatial import cKDTree

from csat.data.instances import relabel
from csat.evaluation.bootstrap import nan_mean, ratio

# Metric → the protocol. A name that ends in / is followed by a type.
METRICS = {
    "dice": "of nucleus pixels; pooled over all images",
    "aji": "Kumar et al. 2017: each true nucleus takes the said one of highest IoU; unmatched area counts as union; pooled",
    "dq": "detection quality: F1 of nuclei matched by IoU > 0.5 (so each at most once), Kirillov et al. 2019; pooled",
    "sq": "segmentation quality: mean IoU of the matched nuclei; pooled",
    "pq": "panoptic quality, dq × sq; pooled",
    "detection_f1": "F1 of centroids within 3 um (12 px at 0.25 um/px), matched one to one, nearest first; pooled",
    "mpq": "mean over types of pooled pq; a type that is neither labelled nor said is left out (PanNuke's mPQ+ convention)",
    "pq/": "panoptic quality of the nuclei of one type; pooled",
}
CENTROID_UM = 3.0
MATCH_IOU = 0.5


def compare_instances(said: np.ndarray, true: np.ndarray, *, mpp: float | None) -> dict[str, np.ndarray]:
    """Counts of one image.

    Args:
        said, true: int `[H, W]`, 0 background.
        mpp: um/px, for the distance of centroids; None: 0.25.

    Returns:
        `aji` int64 [2] (intersection, union), `match` float64 [4] (TP, FP, FN, sum of IoU), `detection` int64 [3] (TP, FP,
        FN).
    """
    said, true = relabel(said), relabel(true)
    overlap = _overlaps(said, true)
    return {
        "aji": _aji(overlap),
        "match": _match(overlap),
        "detection": _detect(said, true, CENTROID_UM / (mpp or 0.25)),
    }


def compare_by_type(
    said: np.ndarray, said_types: np.ndarray, true: np.ndarray, true_types: np.ndarray, num_types: int
) -> np.ndarray:
    """float64 `[T, 4]`: `match` among the nuclei of each type. Types are uint8 `[H, W]`, 0 background; one per nucleus."""
    said, true = relabel(said), relabel(true)
    said_kinds, true_kinds = _majority(said, said_types, num_types), _majority(true, true_types, num_types)
    rows = np.zeros((num_types, 4))
    for index in range(num_types):
        ours, theirs = np.where(said_kinds == index + 1, said, 0), np.where(true_kinds == index + 1, true, 0)
        rows[index] = _match(_overlaps(relabel(ours), relabel(theirs)))
    return rows


def instance_figures(sums: dict[str, np.ndarray], types: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Metric → `[...]` from sums of counts by name (see `predictions.ARRAYS`), with any leading axes."""
    tp, fp, fn = np.moveaxis(sums["pixels"], -1, 0)
    figures = {"dice": ratio(2 * tp, 2 * tp + fp + fn)}
    if "match" not in sums:
        return figures
    figures["aji"] = ratio(sums["aji"][..., 0], sums["aji"][..., 1])
    figures |= dict(zip(("dq", "sq", "pq"), _panoptic(sums["match"]), strict=True))
    found, extra, lost = np.moveaxis(sums["detection"], -1, 0)
    figures["detection_f1"] = ratio(2 * found, 2 * found + extra + lost)
    if types and "match_by_type" in sums:
        by_type = _panoptic(sums["match_by_type"])[2]
        figures["mpq"] = nan_mean(by_type, axis=-1)
        figures |= {f"pq/{name}": by_type[..., index] for index, name in enumerate(types)}
    return figures


def _panoptic(match: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    tp, fp, fn, iou = np.moveaxis(match, -1, 0)
    dq = ratio(tp, tp + fp / 2 + fn / 2)
    sq = ratio(iou, tp)
    return dq, sq, ratio(iou, tp + fp / 2 + fn / 2)


def _overlaps(said: np.ndarray, true: np.ndarray) -> np.ndarray:
    """int64 `[true + 1, said + 1]` pixels shared; row and column 0 are background."""
    shape = int(true.max(initial=0)) + 1, int(said.max(initial=0)) + 1
    return np.bincount(true.ravel().astype(np.int64) * shape[1] + said.ravel(), minlength=shape[0] * shape[1]).reshape(shape)


def _iou(overlap: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    shared = overlap[1:, 1:]
    true, said = overlap[1:].sum(1), overlap[:, 1:].sum(0)
    union = true[:, None] + said[None] - shared
    return shared / np.maximum(union, 1), shared, union, said


def _aji(overlap: np.ndarray) -> np.ndarray:
    iou, shared, union, said = _iou(overlap)
    true = overlap[1:].sum(1)
    if not said.size or not true.size:
        return np.array([0, true.sum() + said.sum()], np.int64)
    best = iou.argmax(1)
    has_any = shared.max(1) > 0
    rows = np.arange(len(best))
    used = np.unique(best[has_any])
    intersection = shared[rows, best][has_any].sum()
    unions = union[rows, best][has_any].sum() + true[~has_any].sum()
    return np.array([intersection, unions + said.sum() - said[used].sum()], np.int64)


def _match(overlap: np.ndarray) -> np.ndarray:
    iou = _iou(overlap)[0]
    is_match = iou > MATCH_IOU
    tp = is_match.sum()
    return np.array([tp, iou.shape[1] - tp, iou.shape[0] - tp, iou[is_match].sum()], np.float64)


def _detect(said: np.ndarray, true: np.ndarray, radius_px: float) -> np.ndarray:
    ours, theirs = _centroids(said), _centroids(true)
    if not len(ours) or not len(theirs):
        return np.array([0, len(ours), len(theirs)], np.int64)
    near = cKDTree(ours).sparse_distance_matrix(cKDTree(theirs), radius_px, output_type="coo_matrix")
    taken_ours, taken_theirs = set(), set()
    for index in np.argsort(near.data, kind="stable"):
        a, b = int(near.row[index]), int(near.col[index])
        if a not in taken_ours and b not in taken_theirs:
            taken_ours.add(a)
            taken_theirs.add(b)
    found = len(taken_ours)
    return np.array([found, len(ours) - found, len(theirs) - found], np.int64)


def _centroids(instances: np.ndarray) -> np.ndarray:
    """float64 `[N, 2]`: (y, x) of nuclei numbered 1 … N."""
    rows, columns = np.nonzero(instances)
    ids = instances[rows, columns]
    counts = np.bincount(ids)[1:]
    return np.stack([np.bincount(ids, each)[1:] / counts for each in (rows, columns)], 1) if len(ids) else np.zeros((0, 2))


def _majority(instances: np.ndarray, types: np.ndarray, num_types: int) -> np.ndarray:
    """`[H, W]`: each instance's type, the most frequent of its pixels, background aside; 0 where there is none."""
    size = int(instances.max(initial=0)) + 1
    counted = (types > 0) & (types <= num_types)
    votes = np.zeros((size, num_types + 1), np.int64)
    np.add.at(votes, (instances[counted], types[counted].astype(np.int64)), 1)
    votes[0] = 0
    return np.where(votes.any(1), votes.argmax(1), 0)[instances]
