import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import linear_sum_assignment
from torchmetrics.functional.detection import panoptic_quality

from csat.evaluation.metrics import pairing
from csat.evaluation.metrics.instances import METRICS, compare_instances, instance_figures
from csat.evaluation.metrics.pairing import pair_by_least_distance, pair_nearest_first

NOTHING = np.zeros((20, 20), np.int32)


def boxes(*corners, shape=(20, 20)):
    """An instance map of rectangles (top, left, bottom, right), numbered from 1."""
    instances = np.zeros(shape, np.int32)
    for number, (top, left, bottom, right) in enumerate(corners, start=1):
        instances[top:bottom, left:right] = number
    return instances


def blobs(seed, size=48, count=14):
    rng = np.random.default_rng(seed)
    corners = []
    for _ in range(count):
        top, left = rng.integers(0, size - 10, 2)
        corners.append((top, left, top + rng.integers(4, 10), left + rng.integers(4, 10)))
    return boxes(*corners, shape=(size, size))


def pixels(said, true):
    said, true = said > 0, true > 0
    return np.array([(said & true).sum(), (said & ~true).sum(), (~said & true).sum()])


def figures(said, true, **more):
    return {
        name: float(value)
        for name, value in instance_figures(
            {"pixels": pixels(said, true), **compare_instances(said, true, mpp=0.25), **more}, tuple("ab") if more else ()
        ).items()
    }


def masks(instances):
    return [instances == number for number in np.unique(instances) if number]


def test_perfect_however_nuclei_are_numbered():
    true = boxes((0, 0, 5, 5), (8, 8, 14, 12), (8, 12, 14, 16))
    said = np.where(true > 0, 70 - 10 * true, 0)
    assert figures(said, true) == dict(dice=1, aji=1, aji_plus=1, dq=1, sq=1, pq=1, detection_f1=1, hovernet_fd=1)


def test_one_nucleus_split_in_two():
    true = boxes((0, 0, 4, 10))
    said = boxes((0, 0, 4, 6), (0, 6, 4, 10))  # 24 and 16 of 40 pixels
    found = compare_instances(said, true, mpp=0.25)
    assert found["aji"].tolist() == [24, 40 + 16]  # the better half counts, the other half is union
    assert found["match"].tolist() == [1, 1, 0, 0.6]
    assert figures(said, true) == pytest.approx(
        dict(dice=1, aji=24 / 56, aji_plus=24 / 56, dq=1 / 1.5, sq=0.6, pq=0.6 / 1.5, detection_f1=2 / 3, hovernet_fd=2 / 3)
    )


def test_two_nuclei_merged_into_one():
    true = boxes((0, 0, 4, 6), (0, 6, 4, 10))
    said = boxes((0, 0, 4, 10))
    found = compare_instances(said, true, mpp=0.25)
    assert found["aji"].tolist() == [24 + 16, 40 + 40]  # both take the one that is there
    assert found["aji_plus"].tolist() == [24, 40 + 16]  # only one of them may
    assert found["match"].tolist() == [1, 0, 1, 0.6]


def test_an_overlap_of_exactly_one_half_is_no_match():
    found = compare_instances(boxes((0, 0, 4, 4)), boxes((0, 0, 4, 8)), mpp=0.25)
    assert found["match"].tolist() == [0, 1, 1, 0]


def test_empty_sides():
    true = boxes((0, 0, 4, 5), (10, 10, 14, 15))
    lost = compare_instances(NOTHING, true, mpp=0.25)
    assert (lost["aji"].tolist(), lost["match"].tolist(), lost["detection"].tolist()) == ([0, 40], [0, 0, 2, 0], [0, 0, 2])
    extra = compare_instances(true, NOTHING, mpp=0.25)
    assert (extra["aji"].tolist(), extra["match"].tolist(), extra["detection"].tolist()) == ([0, 40], [0, 2, 0, 0], [0, 2, 0])
    assert figures(NOTHING, true)["pq"] == figures(NOTHING, true)["aji"] == 0
    both = figures(NOTHING, NOTHING)
    assert all(np.isnan(value) for value in both.values())
    assert not any(counts.any() for counts in compare_instances(NOTHING, NOTHING, mpp=0.25).values())


def test_an_empty_image_neither_helps_nor_hurts():
    true, said = boxes((0, 0, 4, 10)), boxes((0, 0, 4, 6))
    one, none = compare_instances(said, true, mpp=None), compare_instances(NOTHING, NOTHING, mpp=None)
    assert all((one[name] + none[name] == one[name]).all() for name in one)


@pytest.mark.parametrize("seed", range(6))
def test_against_definitions_pixel_by_pixel(seed):
    true, said = blobs(seed), blobs(seed + 100)
    said[:24] = true[:24]  # half of it is right
    found = compare_instances(said, true, mpp=0.25)
    ours, theirs = masks(said), masks(true)
    iou = np.array([[(a & b).sum() / (a | b).sum() for b in ours] for a in theirs])
    # AJI, Kumar et al. 2017, algorithm 1.
    intersection, union, used = 0, 0, set()
    for a, row in zip(theirs, iou, strict=True):
        if row.max() > 0:
            best = int(row.argmax())
            used.add(best)
            intersection += (a & ours[best]).sum()
            union += (a | ours[best]).sum()
        else:
            union += a.sum()
    union += sum(b.sum() for index, b in enumerate(ours) if index not in used)
    assert found["aji"].tolist() == [intersection, union]
    assert found["aji_plus"].tolist() == _aji_plus(ours, theirs, iou)
    # PQ by an optimal assignment instead of the rule that IoU > 0.5 is unique.
    rows, columns = linear_sum_assignment(-np.where(iou > 0.5, iou, 0))
    matched = [iou[row, column] for row, column in zip(rows, columns, strict=True) if iou[row, column] > 0.5]
    assert found["match"] == pytest.approx([len(matched), len(ours) - len(matched), len(theirs) - len(matched), sum(matched)])


@pytest.mark.parametrize("seed", range(3))
def test_panoptic_quality_is_that_of_torchmetrics(seed):
    true, said = blobs(seed), blobs(seed + 100)
    said[:24] = true[:24]
    stacked = [torch.from_numpy(np.stack([each > 0, each], -1).astype(np.int64))[None] for each in (said, true)]
    theirs = panoptic_quality(*stacked, things={1}, stuffs={0}, return_sq_and_rq=True, return_per_class=True)
    ours = figures(said, true)
    assert [ours["pq"], ours["sq"], ours["dq"]] == pytest.approx(theirs[0].tolist(), abs=1e-6)  # row 0: the things


def test_centroids_match_one_to_one_nearest_first():
    # One true nucleus at (2, 2); said at (2, 4) and (2, 8): the nearer one is it. Radius 3 um = 12 px at 0.25.
    true = boxes((0, 0, 5, 5))
    said = boxes((0, 2, 5, 7), (0, 7, 5, 10))
    assert compare_instances(said, true, mpp=0.25)["detection"].tolist() == [1, 1, 0]
    # Two true nuclei whose nearest said one is the same: the second takes its own, further one.
    true = boxes((4, 0, 5, 1), (4, 4, 5, 5))
    said = boxes((4, 3, 5, 4), (4, 8, 5, 9))
    assert compare_instances(said, true, mpp=0.25)["detection"].tolist() == [2, 0, 0]


def test_the_radius_is_in_micrometres():
    true, said = boxes((4, 0, 5, 1)), boxes((4, 8, 5, 9))  # 8 px apart
    assert compare_instances(said, true, mpp=0.25)["detection"].tolist() == [1, 0, 0]  # 2 um
    assert compare_instances(said, true, mpp=None)["detection"].tolist() == [1, 0, 0]
    assert compare_instances(said, true, mpp=0.5)["detection"].tolist() == [0, 1, 1]  # 4 um


def by_type(said, said_types, true, true_types, num_types):
    found = compare_instances(said, true, mpp=0.25, types=(said_types, true_types), num_types=num_types)
    return {name: counts for name, counts in found.items() if name.endswith("_by_type")}


def test_types_are_the_majority_within_a_nucleus():
    instances = boxes((0, 0, 4, 4), (10, 10, 14, 14), (10, 0, 14, 4))
    true_types = np.where(instances == 1, 1, np.where(instances == 2, 2, np.where(instances == 3, 1, 0))).astype(np.uint8)
    said_types = true_types.copy()
    said_types[0, :4] = 2  # a quarter of nucleus 1 is called 2: it stays 1
    said_types[10:14, 0:3] = 2  # most of nucleus 3 is called 2: wrong
    found = by_type(instances, said_types, instances, true_types, 2)
    assert found["match_by_type"].tolist() == [[1, 0, 1, 1], [1, 1, 0, 1]]
    named = figures(instances, instances, **found)
    assert named["pq/a"] == pytest.approx(1 / 1.5)
    assert named["mpq"] == pytest.approx((1 / 1.5 + 1 / 1.5) / 2)


def test_background_within_a_nucleus_does_not_outvote_its_type():
    instances = boxes((0, 0, 4, 4))
    types = np.zeros((20, 20), np.uint8)
    types[0, 0] = 2  # fifteen pixels say background
    assert by_type(instances, types, instances, types, 2)["match_by_type"].tolist() == [[0, 0, 0, 0], [1, 0, 0, 1]]


def test_types_do_not_need_consecutive_ids():
    instances = np.where(boxes((0, 0, 4, 4)) > 0, 5000, 0)
    types = (instances > 0).astype(np.uint8)
    found = by_type(instances, types, boxes((0, 0, 4, 4)), types, 1)
    assert found["match_by_type"].tolist() == [[1, 0, 0, 1]] and found["hovernet_by_type"].tolist() == [[1, 0, 0, 0, 0]]


def test_a_type_that_is_nowhere_is_left_out():
    instances = boxes((0, 0, 4, 4))
    types = (instances > 0).astype(np.uint8)
    named = figures(instances, instances, **by_type(instances, types, instances, types, 2))
    assert named["mpq"] == 1
    assert np.isnan(named["pq/b"]) and np.isnan(named["hovernet_fc/b"]) and named["hovernet_fc/a"] == 1


def test_an_image_whose_types_are_not_known_counts_for_none():
    found = compare_instances(boxes((0, 0, 4, 4)), boxes((0, 0, 4, 4)), mpp=None, types=None, num_types=2)
    assert found["match"].tolist() == [1, 0, 0, 1]
    assert not found["match_by_type"].any() and not found["hovernet_by_type"].any()


# ------------------------------------------------------------------------------------------ HoVer-Net's detection, by hand


def test_hovernet_pairs_by_the_least_sum_of_distances():
    """True at 0 and 10, said at 9 and 100: 0 with 9 and 10 with 100 is 99 px, 10 with 9 and 0 with 100 is 101."""
    true, said = (np.array([[0.0, x] for x in places]) for places in ((0, 10), (9, 100)))
    assert pair_by_least_distance(said, true, 12.0).tolist() == [[0, 0]]  # 100 to 10 is too far; 9 goes to 0, not to 10
    assert pair_nearest_first(said, true, 12.0).tolist() == [[0, 1]]
    assert pair_by_least_distance(said, true, 8.0).tolist() == []
    assert pair_nearest_first(said, true, 8.0).tolist() == [[0, 1]]
    nobody = np.zeros((0, 2))
    assert len(pair_by_least_distance(nobody, true, 12.0)) == len(pair_by_least_distance(said, nobody, 12.0)) == 0


def test_f_d_and_f_c_by_hand():
    """Six true nuclei, six said ones; the first four of each lie on each other, the others nowhere near."""
    true = boxes(*((4 * row, 0, 4 * row + 2, 2) for row in range(4)), (0, 50, 2, 52), (90, 50, 92, 52), shape=(100, 100))
    said = boxes(*((4 * row, 0, 4 * row + 2, 2) for row in range(4)), (50, 90, 52, 92), (90, 90, 92, 92), shape=(100, 100))
    true_types = np.array([0, 1, 1, 2, 2, 1, 2], np.uint8)[true]
    said_types = np.array([0, 1, 2, 2, 1, 1, 1], np.uint8)[said]
    found = by_type(said, said_types, true, true_types, 2)
    assert compare_instances(said, true, mpp=0.25)["hovernet"].tolist() == [4, 2, 2]
    # Type 1: of the pairs one right, one called 1 that is 2, one 1 that is called 2; two said ones alone, one true one alone.
    assert found["hovernet_by_type"].tolist() == [[1, 1, 1, 2, 1], [1, 1, 1, 0, 1]]
    named = figures(said, true, **found)
    assert named["hovernet_fd"] == pytest.approx(8 / 12)
    assert named["hovernet_fc/a"] == pytest.approx(2 / (2 + 2 + 2 + 2 + 1))
    assert named["hovernet_fc/b"] == pytest.approx(2 / (2 + 2 + 2 + 0 + 1))


@given(st.integers(0, 10**6), st.integers(0, 12), st.integers(0, 12))
@settings(max_examples=50, deadline=None)
def test_hovernet_pairing_is_the_assignment_of_all_to_all(seed, num_said, num_true):
    rng = np.random.default_rng(seed)
    said, true = rng.uniform(0, 60, (num_said, 2)), rng.uniform(0, 60, (num_true, 2))
    distances = np.array([[np.hypot(*(a - b)) for b in true] for a in said]).reshape(num_said, num_true)
    expected = [[a, b] for a, b in zip(*linear_sum_assignment(distances), strict=True) if distances[a, b] <= 12]
    assert pair_by_least_distance(said, true, 12.0).tolist() == expected


def test_a_crowd_is_paired_in_parts(monkeypatch):
    """What lies on each other stays together but at the cuts, and nobody is paired twice."""
    monkeypatch.setattr(pairing, "MOST_DISTANCES", 10_000)
    rng = np.random.default_rng(0)
    true = rng.uniform(0, 2000, (900, 2))
    said = (true + rng.normal(0, 1, true.shape))[rng.permutation(900)]
    pairs = pair_by_least_distance(said, true, 12.0)
    assert len(pairs) > 0.95 * 900 and len(set(pairs[:, 0])) == len(set(pairs[:, 1])) == len(pairs)
    assert (np.hypot(*(said[pairs[:, 0]] - true[pairs[:, 1]]).T) <= 12).all()
    assert len(pair_by_least_distance(true, true, 12.0)) == 900  # no cut parts a perfect pair
    assert len(pair_by_least_distance(np.zeros((200, 2)), np.zeros((200, 2)), 12.0)) == 200  # all at one place


# ------------------------------------------------------------------------------- sparse pairs against a table of all with all


def _aji_plus(ours, theirs, iou):
    rows, columns = linear_sum_assignment(-iou)
    pairs = [(row, column) for row, column in zip(rows, columns, strict=True) if iou[row, column] > 0]
    union = sum((theirs[row] | ours[column]).sum() for row, column in pairs)
    union += sum(mask.sum() for row, mask in enumerate(theirs) if row not in {row for row, _ in pairs})
    union += sum(mask.sum() for column, mask in enumerate(ours) if column not in {column for _, column in pairs})
    return [sum((theirs[row] & ours[column]).sum() for row, column in pairs), union]


def dense_counts(said, true):
    """AJI, AJI+ (its intersection and union are not unique where IoUs tie: the sum of IoU is) and matches of a full table."""
    ours, theirs = masks(said), masks(true)
    shared = np.array([[(a & b).sum() for b in ours] for a in theirs]).reshape(len(theirs), len(ours))
    true_px, said_px = (np.array([mask.sum() for mask in each], int) for each in (theirs, ours))
    union = true_px[:, None] + said_px[None] - shared
    iou = shared / np.maximum(union, 1)
    aji = [0, true_px.sum() + said_px.sum()]
    if iou.size:
        best, rows = iou.argmax(1), np.flatnonzero(shared.max(1) > 0)
        alone = true_px.sum() - true_px[rows].sum() + said_px.sum() - said_px[np.unique(best[rows])].sum()
        aji = [shared[rows, best[rows]].sum(), union[rows, best[rows]].sum() + alone]
    rows, columns = linear_sum_assignment(-iou) if iou.size else ([], [])
    is_match = iou > 0.5
    match = [is_match.sum(), len(ours) - is_match.sum(), len(theirs) - is_match.sum(), iou[is_match].sum()]
    return aji, match, iou[rows, columns].sum()


instance_maps = arrays(np.int32, (7, 9), elements=st.sampled_from([0, 0, 1, 2, 3, 40]))


@given(said=instance_maps, true=instance_maps)
@settings(max_examples=200, deadline=None)
def test_sparse_pairs_give_what_a_table_of_all_with_all_gives(said, true):
    found = compare_instances(said, true, mpp=0.25)
    aji, match, best_iou = dense_counts(said, true)
    assert found["aji"].tolist() == aji and found["match"].tolist() == match
    overlaps = pairing.find_overlaps(*(np.unique(np.append(0, each), return_inverse=True)[1][1:] for each in (said, true)))
    rows = pairing.pair_by_most_overlap(overlaps)
    assert len(set(overlaps.true[rows])) == len(set(overlaps.said[rows])) == len(rows)
    assert overlaps.iou[rows].sum() == pytest.approx(best_iou)


def test_twenty_thousand_nuclei_need_no_table():
    """A table of all with all would have 3.2 GB; what is needed follows from the pixels."""
    side, pitch = 142, 8
    y, x = np.mgrid[: side * pitch, : side * pitch]
    is_nucleus = (y % pitch < 6) & (x % pitch < 6)
    true = np.where(is_nucleus, y // pitch * side + x // pitch + 1, 0).astype(np.int32)
    said = np.roll(true, (1, 1), (0, 1))
    overlaps = pairing.find_overlaps(said, true)
    tracemalloc.start()
    overlaps = pairing.find_overlaps(said, true)
    rows = pairing.pair_by_most_overlap(overlaps)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(overlaps.true_px) == side**2 > 20_000 and len(rows) == side**2
    assert peak < 200e6


def test_only_pixels_where_instances_were_not_asked_for():
    assert {name: float(value) for name, value in instance_figures({"pixels": np.array([3, 1, 1])}, ("a",)).items()} == {
        "dice": 0.75
    }


def test_every_figure_has_a_protocol():
    counts = {"calibration": np.zeros((15, 3)), "match_by_type": np.zeros((2, 4)), "hovernet_by_type": np.zeros((2, 5))}
    names = figures(NOTHING, NOTHING, **counts)
    assert {name if "/" not in name else name.split("/")[0] + "/" for name in names} == set(METRICS)
