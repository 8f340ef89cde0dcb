"""Metrics of nuclei: pixels, the aggregated Jaccard index, panoptic quality, detection.

Pooled: counts are summed over images before the ratio. Averaging images instead, or counting absent types as 0, moves PQ a
lot: figures of other papers compare only where their protocol is this one.
"""

import numpy as np

from csat.evaluation.metrics.bootstrap import nan_mean, ratio
from csat.evaluation.metrics.classification import calibration_error
from csat.evaluation.metrics.pairing import (
    Overlaps,
    centroids_of,
    find_overlaps,
    pair_by_least_distance,
    pair_by_most_overlap,
    pair_nearest_first,
)
from csat.instances import relabel

# Metric → the protocol. A name that ends in / is followed by a type.
METRICS = {
    "dice": "of nucleus pixels; pooled over all images",
    "ece": "expected calibration error of nucleus or not, by pixel, 15 equal bins of the confidence in the more likely of the "
    "two (Guo et al. 2017); lower is better; pooled",
    "aji": "Kumar et al. 2017: each true nucleus takes the said one of highest IoU; unmatched area counts as union; pooled",
    "aji_plus": "AJI+ of HoVer-Net's code: as aji, of the one-to-one pairing of the largest sum of IoU; pooled",
    "dq": "detection quality: F1 of nuclei matched by IoU > 0.5 (so each at most once), Kirillov et al. 2019; pooled",
    "sq": "segmentation quality: mean IoU of the matched nuclei; pooled",
    "pq": "panoptic quality, dq × sq; pooled",
    "detection_f1": "F1 of centroids within 3 um (12 px at 0.25 um/px), matched one to one, nearest first; pooled",
    "hovernet_fd": "HoVer-Net's F_d: F1 of centroids paired one to one by the least sum of distances over the whole image, of "
    "which pairs within 3 um (12 px at 0.25 um/px) count; lower than detection_f1 where nuclei are missed or made up; pooled",
    "mpq": "mean over types of pooled pq; a type that is neither labelled nor said is left out (PanNuke's mPQ+ convention)",
    "pq/": "panoptic quality of the nuclei of one type; pooled",
    "hovernet_fc/": "HoVer-Net's F_c of one type, of the pairs of hovernet_fd: 2 TP / (2 TP + 2 FP + 2 FN + FP_d + FN_d); "
    "TP, FP, FN by the types of the paired, FP_d and FN_d the unpaired nuclei of the type; pooled",
}
CENTROID_UM = 3.0
MATCH_IOU = 0.5
DETECTIONS = {"detection_f1": "detection", "hovernet_fd": "hovernet"}  # metric → its counts
FC_WEIGHTS = 2, 2, 1, 1  # of FP, FN, FP_d, FN_d: the authors' compute_stats.py


def compare_instances(
    said: np.ndarray,
    true: np.ndarray,
    *,
    mpp: float | None,
    types: tuple[np.ndarray, np.ndarray] | None = None,
    num_types: int = 0,
) -> dict[str, np.ndarray]:
    """Counts of one image.

    Args:
        said, true: int `[H, W]`, 0 background.
        mpp: um/px, for the distance of centroids; None: 0.25.
        types: uint8 `[H, W]` of the said and of the true nuclei, 0 background; a nucleus has the type of most of its pixels.
            None: this image's are not known, and it counts for none of them.
        num_types: T; 0 where the set has none.

    Returns:
        `aji`, `aji_plus` int64 [2] (intersection, union), `match` float64 [4] (TP, FP, FN, sum of IoU), `detection` and
        `hovernet` int64 [3] (TP, FP, FN). Where the set has types `match_by_type` float64 [T, 4] and `hovernet_by_type` int64
        [T, 5] (TP, FP, FN among the paired, FP, FN of the unpaired).
    """
    said, true = relabel(said), relabel(true)
    overlaps = find_overlaps(said, true)
    centroids, radius_px = (centroids_of(said), centroids_of(true)), CENTROID_UM / (mpp or 0.25)
    paired = pair_by_least_distance(*centroids, radius_px)
    numbers = len(overlaps.said_px), len(overlaps.true_px)
    counts = {
        "aji": _aji(overlaps),
        "aji_plus": _jaccard(overlaps, pair_by_most_overlap(overlaps)),
        "match": _match(overlaps),
        "detection": _found(len(pair_nearest_first(*centroids, radius_px)), *numbers),
        "hovernet": _found(len(paired), *numbers),
    }
    if num_types:
        counts |= {"match_by_type": np.zeros((num_types, 4)), "hovernet_by_type": np.zeros((num_types, 5), np.int64)}
    if types is not None:
        kinds = [_majority(*each, num_types) for each in zip((said, true), types, strict=True)]
        for index in range(num_types):
            counts["match_by_type"][index] = _match(overlaps, *kinds, index + 1)
            counts["hovernet_by_type"][index] = _found_as(paired, *kinds, index + 1)
    return counts


def instance_figures(sums: dict[str, np.ndarray], types: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Metric → `[...]` from sums of counts by name (see `predictions.ARRAYS`), with any leading axes.

    Predictions of earlier versions lack some of the counts, and so have fewer figures.
    """
    tp, fp, fn = np.moveaxis(sums["pixels"], -1, 0)
    figures = {"dice": ratio(2 * tp, 2 * tp + fp + fn)}
    if "calibration" in sums:
        figures["ece"] = calibration_error(sums["calibration"])
    if "match" not in sums:
        return figures
    figures |= {name: ratio(sums[name][..., 0], sums[name][..., 1]) for name in ("aji", "aji_plus") if name in sums}
    figures |= dict(zip(("dq", "sq", "pq"), _panoptic(sums["match"]), strict=True))
    figures |= {name: _f1(sums[key]) for name, key in DETECTIONS.items() if key in sums}
    if types and "match_by_type" in sums:
        by_type = _panoptic(sums["match_by_type"])[2]
        figures["mpq"] = nan_mean(by_type, axis=-1)
        figures |= {f"pq/{name}": by_type[..., index] for index, name in enumerate(types)}
    if types and "hovernet_by_type" in sums:
        by_type = _f1_of_type(sums["hovernet_by_type"])
        figures |= {f"hovernet_fc/{name}": by_type[..., index] for index, name in enumerate(types)}
    return figures


def _panoptic(match: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    tp, fp, fn, iou = np.moveaxis(match, -1, 0)
    dq = ratio(tp, tp + fp / 2 + fn / 2)
    sq = ratio(iou, tp)
    return dq, sq, ratio(iou, tp + fp / 2 + fn / 2)


def _f1(counts: np.ndarray) -> np.ndarray:
    found, extra, lost = np.moveaxis(counts, -1, 0)
    return ratio(2 * found, 2 * found + extra + lost)


def _f1_of_type(counts: np.ndarray) -> np.ndarray:
    right, *wrong = np.moveaxis(counts, -1, 0)
    return ratio(2 * right, 2 * right + sum(weight * each for weight, each in zip(FC_WEIGHTS, wrong, strict=True)))


def _aji(overlaps: Overlaps) -> np.ndarray:
    """Each true nucleus with the said one of highest IoU, the first of equals."""
    order = np.lexsort((overlaps.said, -overlaps.iou, overlaps.true))
    is_best = np.diff(overlaps.true[order], prepend=-1) > 0
    return _jaccard(overlaps, order[is_best])


def _jaccard(overlaps: Overlaps, rows: np.ndarray) -> np.ndarray:
    """int64 [2]: intersection and union of these pairs; nuclei that are in none of them add to the union."""
    alone = overlaps.true_px.sum() - overlaps.true_px[np.unique(overlaps.true[rows])].sum()
    alone += overlaps.said_px.sum() - overlaps.said_px[np.unique(overlaps.said[rows])].sum()
    return np.array([overlaps.shared_px[rows].sum(), overlaps.union_px[rows].sum() + alone], np.int64)


def _match(
    overlaps: Overlaps, said_kinds: np.ndarray | None = None, true_kinds: np.ndarray | None = None, kind: int | None = None
) -> np.ndarray:
    """float64 [4]: TP, FP, FN, sum of IoU; of the nuclei of one type where `kind` says so."""
    iou = overlaps.iou
    is_match = iou > MATCH_IOU
    num_said, num_true = len(overlaps.said_px), len(overlaps.true_px)
    if kind is not None:
        is_match &= (said_kinds[overlaps.said] == kind) & (true_kinds[overlaps.true] == kind)
        num_said, num_true = (said_kinds == kind).sum(), (true_kinds == kind).sum()
    tp = is_match.sum()
    return np.array([tp, num_said - tp, num_true - tp, iou[is_match].sum()], np.float64)


def _found(num_pairs: int, num_said: int, num_true: int) -> np.ndarray:
    return np.array([num_pairs, num_said - num_pairs, num_true - num_pairs], np.int64)


def _found_as(paired: np.ndarray, said_kinds: np.ndarray, true_kinds: np.ndarray, kind: int) -> np.ndarray:
    """int64 [5]: of one type TP, FP, FN among pairs (said, true), and FP, FN that are in none."""
    said, true = said_kinds[paired[:, 0]] == kind, true_kinds[paired[:, 1]] == kind
    alone = (said_kinds == kind).sum() - said.sum(), (true_kinds == kind).sum() - true.sum()
    return np.array([(said & true).sum(), (said & ~true).sum(), (~said & true).sum(), *alone], np.int64)


def _majority(instances: np.ndarray, types: np.ndarray, num_types: int) -> np.ndarray:
    """int64 `[N]`: type of each nucleus, the most frequent of its pixels, background aside; 0 where there is none."""
    size = int(instances.max(initial=0)) + 1
    counted = (types > 0) & (types <= num_types)
    keys = instances[counted].astype(np.int64) * (num_types + 1) + types[counted]
    votes = np.bincount(keys, minlength=size * (num_types + 1)).reshape(size, num_types + 1)[1:]
    return votes.argmax(1)  # 0 where all votes are 0: nobody votes for the background
