import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from csat import instances
from csat.instances import hv_targets, instances_from_hv, relabel, split_touching
from csat.responses import Symmetry
from csat.slides.synthetic import paint
from csat.views.symmetries import apply_d4


def disks(*circles, size=64) -> np.ndarray:
    """int32 `[size, size]`: one instance per (x, y, radius), later ones on top."""
    instances = np.zeros((size, size), np.int32)
    for label, (x, y, radius) in enumerate(circles, 1):
        cv2.circle(instances, (x, y), radius, label, -1)
    return instances


def dice_of_pairs(found: np.ndarray, truth: np.ndarray) -> list[float]:
    """For every true instance the Dice of the found instance that overlaps it most."""
    scores = []
    for label in range(1, truth.max() + 1):
        inside = truth == label
        best = np.bincount(found[inside]).argmax()
        scores.append(2 * (inside & (found == best)).sum() / (inside.sum() + (found == best).sum()) if best else 0.0)
    return scores


def test_hv_of_one_nucleus_by_hand():
    instances = np.zeros((3, 6), np.int32)
    instances[1, 1:5] = 7  # columns 1 2 3 4, centre 2.5: offsets -1.5 -0.5 0.5 1.5
    hv = hv_targets(instances)
    np.testing.assert_allclose(hv[0, 1], [0, -1, -1 / 3, 1 / 3, 1, 0], atol=1e-6)
    assert not hv[1].any()
    assert hv.dtype == np.float32 and hv.shape == (2, 3, 6)


def test_hv_scales_each_side_by_itself_and_grows_to_the_right_and_down():
    instances = np.zeros((8, 8), np.int32)
    instances[2, 1:7] = 1
    instances[2:6, 1] = 1  # an L: its centre is left of the middle
    hv = hv_targets(instances)
    assert hv[0, 2, 1] == -1 and hv[0, 2, 6] == 1 and hv[1, 2, 6] == -1 and hv[1, 5, 1] == 1


def test_hv_of_nothing_and_of_one_pixel_is_zero():
    assert not hv_targets(np.zeros((4, 4), np.int32)).any()
    assert not hv_targets(np.eye(4, dtype=np.int32) * np.arange(1, 5)).any()


def test_hv_does_not_depend_on_the_ids():
    instances = disks((20, 20, 8), (40, 40, 10))
    np.testing.assert_array_equal(hv_targets(instances), hv_targets(np.array([0, 60_000, 3])[instances]))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), symmetry=st.integers(0, 7))
def test_hv_is_exactly_equivariant(seed, symmetry):
    random = np.random.default_rng(seed)
    circles = [(*random.integers(0, 64, 2), int(random.integers(2, 12))) for _ in range(8)]
    instances = torch.from_numpy(disks(*[(int(x), int(y), r) for x, y, r in circles]))[None, None]
    index = torch.tensor([symmetry])
    transformed = apply_d4(instances, index)[0, 0].numpy()
    carried = apply_d4(torch.from_numpy(hv_targets(instances[0, 0].numpy()))[None], index, Symmetry.HV)[0].numpy()
    np.testing.assert_array_equal(hv_targets(transformed), carried)


def test_hovernets_post_processing_separates_touching_nuclei():
    truth = disks((22, 32, 12), (43, 32, 11), (32, 52, 10), (60, 8, 9), size=80)
    probability = np.where(truth > 0, 0.9, 0.1)
    found = instances_from_hv(probability, hv_targets(truth))
    assert found.dtype == np.int32 and found.max() == 4
    assert min(dice_of_pairs(found, truth)) > 0.9


def test_hovernets_post_processing_drops_specks_and_copes_with_nothing():
    truth = disks((22, 32, 12))
    probability = np.where(truth > 0, 0.9, 0.1)
    probability[60:62, 60:62] = 0.9
    found = instances_from_hv(probability, hv_targets(truth))
    assert found.max() == 1 and not found[55:, 55:].any()
    assert not instances_from_hv(np.zeros((16, 16)), np.zeros((2, 16, 16))).any()


@pytest.mark.parametrize("shrink", [1, 2, 3, 4])
def test_all_lengths_of_hovernets_post_processing_follow_the_resolution(shrink):
    """Nuclei of 6 to 8 um, some touching, at 0.25 to 1 um/px: none is opened away, dropped or merged."""
    circles = [(40 + 60 * column, 40 + 60 * row, 12 + (column + row) % 5) for column in range(5) for row in range(5)]
    circles += [(x + radius + 11, y, 11) for x, y, radius in circles[::2]]
    truth = disks(*circles, size=360)[shrink // 2 :: shrink, shrink // 2 :: shrink]
    found = instances_from_hv(np.where(truth > 0, 0.9, 0.1), hv_targets(truth), mpp=0.25 * shrink)
    assert found.max() == len(circles)
    assert min(dice_of_pairs(found, truth)) > 0.8


@pytest.mark.parametrize(("mpp", "is_same"), [(0.2276, True), (0.25, True), (0.2526, True), (0.274, True), (0.28, False)])
def test_a_resolution_within_a_tenth_counts_as_the_same(mpp, is_same):
    """Scanners do not have 0.25 to the last digit: lengths are the published ones."""
    assert (instances._scale(mpp) == 1) == is_same
    assert [instances._kernel_px(size, 1.0) for size in (21, 5, 3)] == [21, 5, 3]
    assert [instances._kernel_px(size, instances._scale(0.5)) for size in (21, 5, 3)] == [9, 1, 1]


@given(st.floats(0.1, 3), st.integers(1, 31))
def test_kernels_are_odd_and_no_longer_than_they_should_be(scale, size_px):
    kernel = instances._kernel_px(size_px, scale)
    assert kernel % 2 == 1 and (kernel == 1 or kernel <= size_px * scale < kernel + 2)


@pytest.mark.parametrize("gap", [14, 17, 20])
def test_two_disks_are_split_at_their_neck(gap):
    truth = disks((20, 32, 10), (20 + gap, 32, 10))
    found = split_touching(truth > 0, smoothing_px=1.0, neck=0.9)
    assert found.max() == 2
    assert found[32, 15] != found[32, 25 + gap]


def test_a_neck_rule_keeps_what_has_none():
    ellipse = np.zeros((64, 64), np.uint8)
    cv2.ellipse(ellipse, (32, 32), (24, 8), 30, 0, 360, 1, -1)
    assert split_touching(ellipse > 0, smoothing_px=1.0, neck=0.85).max() == 1
    assert split_touching(disks((25, 32, 10), (31, 32, 10)) > 0, smoothing_px=1.0, neck=0.85).max() == 1
    assert split_touching(disks((20, 32, 10), (37, 32, 10)) > 0, smoothing_px=1.0, neck=0.1).max() == 1


def test_splitting_keeps_the_mask():
    mask = np.random.default_rng(0).random((64, 64)) > 0.6
    np.testing.assert_array_equal(split_touching(mask, smoothing_px=1.0, neck=0.85) > 0, mask)
    assert not split_touching(np.zeros((8, 8), bool), smoothing_px=1.0, neck=0.85).any()


def test_relabel_closes_gaps():
    np.testing.assert_array_equal(relabel(np.array([[0, 5, 5], [9, 0, 2]])), [[0, 2, 2], [3, 0, 1]])


def test_slivers_at_the_edge_of_a_tile_cost_no_nucleus_with_a_frame():
    """Of tiles of a painted slide, the nuclei that the tile has as a whole."""
    labels = paint(768, mpp=0.5, seed=0)[1].astype(np.int32)
    lost = {0: 0, 8: 0}
    for top in range(0, 641, 88):
        for left in range(0, 641, 88):
            instances = relabel(labels[top : top + 128, left : left + 128])
            inner = set(instances.ravel()) - set(np.concatenate([instances[[0, -1]].ravel(), instances[:, [0, -1]].ravel()]))
            probability, hv = (instances > 0).astype(np.float32), hv_targets(instances)
            for frame_px in lost:
                said = instances_from_hv(probability, hv, mpp=0.5, frame_px=frame_px)
                lost[frame_px] += sum(not said[instances == number].any() for number in inner - {0})
    assert lost[0] > 4 and lost[8] == 0, lost
