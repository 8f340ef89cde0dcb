import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torchmetrics.functional.detection import panoptic_quality

from csat.evaluation.instances import METRICS, compare_by_type, compare_instances, instance_figures

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
    assert figures(said, true) == dict(dice=1, aji=1, dq=1, sq=1, pq=1, detection_f1=1)


def test_one_nucleus_split_in_two():
    true = boxes((0, 0, 4, 10))
    said = boxes((0, 0, 4, 6), (0, 6, 4, 10))  # 24 and 16 of 40 pixels
    found = compare_instances(said, true, mpp=0.25)
    assert found["aji"].tolist() == [24, 40 + 16]  # the better half counts, the other half is union
    assert found["match"].tolist() == [1, 1, 0, 0.6]
    assert figures(said, true) == pytest.approx(
        dict(dice=1, aji=24 / 56, dq=1 / 1.5, sq=0.6, pq=0.6 / 1.5, detection_f1=2 / 3)
    )


def test_two_nuclei_merged_into_one():
    true = boxes((0, 0, 4, 6), (0, 6, 4, 10))
    said = boxes((0, 0, 4, 10))
    found = compare_instances(said, true, mpp=0.25)
    assert found["aji"].tolist() == [24 + 16, 40 + 40]  # both take the one that is there
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


def test_types_are_the_majority_within_a_nucleus():
    instances = boxes((0, 0, 4, 4), (10, 10, 14, 14), (10, 0, 14, 4))
    true_types = np.where(instances == 1, 1, np.where(instances == 2, 2, np.where(instances == 3, 1, 0))).astype(np.uint8)
    said_types = true_types.copy()
    said_types[0, :4] = 2  # a quarter of nucleus 1 is called 2: it stays 1
    said_types[10:14, 0:3] = 2  # most of nucleus 3 is called 2: wrong
    found = compare_by_type(instances, said_types, instances, true_types, 2)
    assert found.tolist() == [[1, 0, 1, 1], [1, 1, 0, 1]]
    named = figures(instances, instances, match_by_type=found)
    assert named["pq/a"] == pytest.approx(1 / 1.5)
    assert named["mpq"] == pytest.approx((1 / 1.5 + 1 / 1.5) / 2)


def test_background_within_a_nucleus_does_not_outvote_its_type():
    instances = boxes((0, 0, 4, 4))
    types = np.zeros((20, 20), np.uint8)
    types[0, 0] = 2  # fifteen pixels say background
    assert compare_by_type(instances, types, instances, types, 2).tolist() == [[0, 0, 0, 0], [1, 0, 0, 1]]


def test_types_do_not_need_consecutive_ids():
    instances = np.where(boxes((0, 0, 4, 4)) > 0, 5000, 0)
    types = (instances > 0).astype(np.uint8)
    assert compare_by_type(instances, types, boxes((0, 0, 4, 4)), types, 1).tolist() == [[1, 0, 0, 1]]


def test_a_type_that_is_nowhere_is_left_out():
    instances = boxes((0, 0, 4, 4))
    types = (instances > 0).astype(np.uint8)
    found = compare_by_type(instances, types, instances, types, 2)
    named = figures(instances, instances, match_by_type=found)
    assert named["mpq"] == 1
    assert np.isnan(named["pq/b"])


def test_only_pixels_where_instances_were_not_asked_for():
    assert {name: float(value) for name, value in instance_figures({"pixels": np.array([3, 1, 1])}, ("a",)).items()} == {
        "dice": 0.75
    }


def test_every_figure_has_a_protocol():
    names = figures(NOTHING, NOTHING, match_by_type=np.zeros((2, 4)))
    assert {name if "/" not in name else name.split("/")[0] + "/" for name in names} == set(METRICS)
