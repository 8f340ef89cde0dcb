"""Which said nucleus is which true one: by the pixels that they share, or by the distance of their centroids.

Nothing here has a cell for every said nucleus with every true one, but `pair_by_least_distance`, which bounds them: a slide's
region with 20,000 of each would need gigabytes.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array
from scipy.sparse.csgraph import min_weight_full_bipartite_matching
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist

MOST_DISTANCES = 4_000_000  # of one assignment: 32 MB, some seconds; published images have at most a few hundred nuclei


@dataclass(frozen=True, kw_only=True)
class Overlaps:
    """The pairs of a true and a said nucleus that share pixels, in order of the true, then of the said one.

    Attributes:
        true, said: int64 `[P]`, which nuclei, from 0.
        shared_px: int64 `[P]`.
        true_px, said_px: int64 `[T]`, `[S]`: areas of all nuclei.
    """

    true: np.ndarray
    said: np.ndarray
    shared_px: np.ndarray
    true_px: np.ndarray
    said_px: np.ndarray

    @property
    def union_px(self) -> np.ndarray:
        """int64 `[P]`."""
        return self.true_px[self.true] + self.said_px[self.said] - self.shared_px

    @property
    def iou(self) -> np.ndarray:
        """float64 `[P]`, above 0."""
        return self.shared_px / self.union_px


def find_overlaps(said: np.ndarray, true: np.ndarray) -> Overlaps:
    """Of two instance maps, int `[H, W]`, whose nuclei are numbered 1 … N (`relabel`)."""
    true_px, said_px = (np.bincount(each.ravel(), minlength=1)[1:] for each in (true, said))
    both = (true > 0) & (said > 0)
    keys = (true[both].astype(np.int64) - 1) * max(len(said_px), 1) + said[both] - 1
    pairs, shared_px = np.unique(keys, return_counts=True)
    rows, columns = np.divmod(pairs, max(len(said_px), 1))
    return Overlaps(true=rows, said=columns, shared_px=shared_px, true_px=true_px, said_px=said_px)


def pair_by_most_overlap(overlaps: Overlaps) -> np.ndarray:
    """The one-to-one pairing of the largest sum of IoU: int64, which rows of `overlaps`, in no order."""
    num_true, num_said, num_pairs = len(overlaps.true_px), len(overlaps.said_px), len(overlaps.true)
    if not num_pairs:
        return np.zeros(0, np.int64)
    # Every true nucleus has a partner of its own for when it stays alone; all costs lie above 0, which would be no pair.
    alone = np.arange(num_true)
    costs = np.concatenate([2 - overlaps.iou, np.full(num_true, 2.0)])
    places = np.concatenate([overlaps.true, alone]), np.concatenate([overlaps.said, num_said + alone])
    rows, columns = min_weight_full_bipartite_matching(csr_array((costs, places), shape=(num_true, num_said + num_true)))
    keys = overlaps.true * num_said + overlaps.said  # ascending
    return np.searchsorted(keys, rows[columns < num_said] * num_said + columns[columns < num_said])


def centroids_of(instances: np.ndarray) -> np.ndarray:
    """float64 `[N, 2]`: (y, x) of nuclei numbered 1 … N."""
    rows, columns = np.nonzero(instances)
    ids = instances[rows, columns]
    counts = np.bincount(ids)[1:]
    return np.stack([np.bincount(ids, each)[1:] / counts for each in (rows, columns)], 1) if len(ids) else np.zeros((0, 2))


def pair_nearest_first(said: np.ndarray, true: np.ndarray, radius_px: float) -> np.ndarray:
    """The nearest two become a pair, then the nearest two of the others, and so on, up to a distance.

    Args:
        said, true: float `[S, 2]`, `[T, 2]`, centroids.

    Returns:
        int64 `[P, 2]`: (said, true), from 0.
    """
    if not len(said) or not len(true):
        return np.zeros((0, 2), np.int64)
    near = cKDTree(said).sparse_distance_matrix(cKDTree(true), radius_px, output_type="coo_matrix")
    taken_said, taken_true, pairs = set(), set(), []
    for index in np.argsort(near.data, kind="stable"):
        a, b = int(near.row[index]), int(near.col[index])
        if a not in taken_said and b not in taken_true:
            taken_said.add(a)
            taken_true.add(b)
            pairs.append((a, b))
    return np.array(pairs, np.int64).reshape(-1, 2)


def pair_by_least_distance(said: np.ndarray, true: np.ndarray, radius_px: float) -> np.ndarray:
    """HoVer-Net's pairing: as many pairs as the smaller side has nuclei, with the least sum of distances; then those up to
    a distance are kept.

    Distances beyond the radius count in the sum, so that a nucleus which nothing lies near takes part, and may turn others
    from their nearest: fewer pairs than `pair_nearest_first` finds. As `compute_stats.py` of the authors' public code does,
    but for two things: centroids are not cut to whole pixels, and above `MOST_DISTANCES` the nuclei are halved at the middle
    of their longer extent, again and again, and no pair reaches across.

    Args and return value as of `pair_nearest_first`.
    """
    if not len(said) or not len(true):
        return np.zeros((0, 2), np.int64)
    if len(said) * len(true) > MOST_DISTANCES:
        return _pair_halves(said, true, radius_px)
    distances = cdist(said, true)
    rows, columns = linear_sum_assignment(distances)
    return np.stack([rows, columns], 1)[distances[rows, columns] <= radius_px]


def _pair_halves(said: np.ndarray, true: np.ndarray, radius_px: float) -> np.ndarray:
    together = np.concatenate([said, true])
    place = together[:, np.ptp(together, 0).argmax()]
    is_before = place < np.median(place)  # nuclei at one place stay on one side
    if not is_before.any():
        is_before = place <= np.median(place)
    if is_before.all():  # all at one place: whoever takes whom
        return pair_nearest_first(said, true, radius_px)
    parts = []
    for side in (is_before, ~is_before):
        ours, theirs = np.flatnonzero(side[: len(said)]), np.flatnonzero(side[len(said) :])
        found = pair_by_least_distance(said[ours], true[theirs], radius_px)
        parts.append(np.stack([ours[found[:, 0]], theirs[found[:, 1]]], 1))
    return np.concatenate(parts)
