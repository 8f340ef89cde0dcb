"""Colours, sharpness, noise, and nuclei that fade: how a training sample may look, by hand and by measure."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from csat.labels.augment import JointAugment, JointConfig
from csat.labels.datasets.contract import Decoded


def config(**settings) -> JointConfig:
    return replace(JointConfig.off(), **settings)


class Highest:
    """A generator that draws the upper end."""

    def uniform(self, low=0.0, high=1.0, size=None):
        return high if size is None else np.full(size, high)


@pytest.mark.parametrize(
    ("settings", "before", "after"),
    [
        ({"brightness": 0.2}, [[100, 50, 240]], [[120, 60, 255]]),
        ({"contrast": 0.5}, [[60, 60, 60], [140, 140, 140]], [[40, 40, 40], [160, 160, 160]]),
        ({"contrast": 1.0}, [[10, 10, 10], [90, 90, 90]], [[0, 0, 0], [130, 130, 130]]),
        # Grey of (200, 100, 50) is 0.299 * 200 + 0.587 * 100 + 0.114 * 50 = 124.2.
        ({"saturation": 0.5}, [[200, 100, 50]], [[238, 88, 13]]),
        ({"hue": 1 / 3}, [[255, 0, 0]], [[0, 255, 0]]),
        ({}, [[1, 2, 3]], [[1, 2, 3]]),
    ],
)
def test_colours_by_hand(settings, before, after):
    image = np.array(before, np.uint8)[None]
    seen = JointAugment(config(**settings))._recolour(image, Highest())
    np.testing.assert_allclose(seen[0].astype(int), after, atol=3 if "hue" in settings else 1)
    assert image[0].tolist() == before


def test_noise_and_blur_have_their_strength():
    grey = Decoded(image=np.full((64, 64, 3), 128, np.uint8))
    noisy = JointAugment(config(noise=0.05))(grey, tile_px=64, fit="resize", seed=0).image.astype(float)
    assert noisy.std() == pytest.approx(0.05 * 255, rel=0.05)
    assert noisy.mean() == pytest.approx(128, abs=0.5)
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    augment = JointAugment(config(blur_prob=0.3))
    is_blurred = [
        not np.array_equal(augment(Decoded(image=image), tile_px=64, fit="resize", seed=s).image, image) for s in range(100)
    ]
    assert 18 < sum(is_blurred) < 42


def discs_on_pink() -> Decoded:
    """Sixteen dark discs, 20 px wide, on one colour."""
    y, x = np.mgrid[:128, :128]
    is_inside = ((y % 32 - 16) ** 2 + (x % 32 - 16) ** 2) < 100
    instances = np.where(is_inside, 1 + 4 * (y // 32) + x // 32, 0).astype(np.int32)
    image = np.where(is_inside[..., None], (60, 40, 110), (230, 170, 200)).astype(np.uint8)
    return Decoded(image=image, mask=is_inside.astype(np.uint8), instances=instances)


def test_some_nuclei_fade_whole_or_inside_and_nothing_else_changes():
    sample = discs_on_pink()
    seen = [JointAugment(config(fade=0.9))(sample, tile_px=128, fit="resize", seed=seed) for seed in range(20)]
    middles, edges = [], []
    for tile in seen:
        assert np.array_equal(tile.image[sample.instances == 0], sample.image[sample.instances == 0])
        assert np.array_equal(tile.instances, sample.instances) and np.array_equal(tile.mask, sample.mask)
        change = (tile.image[..., 1].astype(float) - sample.image[..., 1]) / (170 - 40)
        middles.append(change[13:20, 13:20].mean())
        edges.append(change[16, 8])  # a pixel and a half inside
        assert change.min() >= 0 and change.max() < 1.5
        of_each = [change[sample.instances == each].mean() for each in range(1, 17)]
        assert 2 <= sum(each == 0 for each in of_each) <= 14  # half of the nuclei stay as they are
        assert len({round(each, 2) for each in of_each if each > 0}) >= 2  # the others by a share each
    middles, edges = np.array(middles), np.array(edges)
    assert middles.max() > 0.4
    fades = middles > 0.1
    assert (edges[fades] < 0.1 * middles[fades]).any()  # the rim alone is left


def test_nothing_fades_without_instances_or_where_all_is_nucleus():
    image = np.full((64, 64, 3), 90, np.uint8)
    augment = JointAugment(config(fade=0.9))
    assert np.array_equal(augment(Decoded(image=image), tile_px=64, fit="resize", seed=0).image, image)
    full = Decoded(image=image, instances=np.ones((64, 64), np.int32))
    assert all(np.array_equal(augment(full, tile_px=64, fit="resize", seed=seed).image, image) for seed in range(8))


def details(image: np.ndarray) -> float:
    """How much a blur of a pixel takes away."""
    return float((image - gaussian_filter(image.astype(float), (1, 1, 0))).std())


def test_sharpness_goes_both_ways_and_leaves_what_is_coarse():
    image = np.random.default_rng(0).normal(128, 20, (64, 64, 3))
    image = gaussian_filter(image, (0.7, 0.7, 0))
    image = Decoded(image=image.astype(np.uint8))
    augment = JointAugment(config(sharpness=1.5))
    seen = [augment(image, tile_px=64, fit="resize", seed=seed).image for seed in range(60)]
    change = np.array([details(each) for each in seen]) / details(image.image)
    assert change.min() < 0.4 and change.max() > 1.8
    assert 15 < (change < 1).sum() < 45
    assert max(abs(float(each.mean()) - float(image.image.mean())) for each in seen) < 1


@pytest.mark.parametrize(("draw", "expected"), [(1.0, 168), (-1.0, 128)])
def test_sharpness_by_hand(draw, expected):
    """A line on grey, which a wide blur flattens: twice as strong, or gone."""

    class Draws:
        def uniform(self, low=0.0, high=1.0, size=None):
            return np.zeros(size) if size else (draw if low == -1 else high)

    image = np.full((65, 65, 3), 128, np.uint8)
    image[:, 32] = 148
    seen = JointAugment(config(sharpness=1.0))._recolour(image, Draws())
    flat = 20 / (3.0 * np.sqrt(2 * np.pi))  # what a blur of 3 px leaves of it
    np.testing.assert_allclose(seen[32, 32], expected + (flat if draw < 0 else -flat), atol=1)
