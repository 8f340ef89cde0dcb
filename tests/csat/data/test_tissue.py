"""Tissue detection on plain colours, on a painted slide and on real ones."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from csat.data.synthetic import paint
from csat.data.tissue import tissue_mask

PINK, GLASS = (214, 150, 190), (243, 242, 244)


def _plain(colour, shape=(128, 160)) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, 2, (*shape, 3))
    return np.clip(np.asarray(colour) + noise, 0, 255).astype(np.uint8)


def test_a_picture_of_tissue_alone_is_all_tissue():
    assert tissue_mask(_plain(PINK)).mean() > 0.99


@pytest.mark.parametrize("colour", [(255, 255, 255), GLASS, (236, 238, 228), (0, 0, 0)])
def test_glass_of_any_tint_and_missing_parts_are_no_tissue(colour):
    assert tissue_mask(_plain(colour)).mean() < 0.01


@pytest.mark.parametrize("value", [0, 128, 255])
def test_one_flat_value_does_not_break_it(value):
    assert tissue_mask(np.full((40, 40, 3), value, dtype=np.uint8)).mean() == float(value == 128)


def test_a_square_of_tissue_is_found_to_the_pixel_and_dust_is_not():
    image = _plain(GLASS, (400, 400))
    image[100:300, 50:250] = _plain(PINK, (200, 200))
    image[350:352, 350:351] = PINK
    mask = tissue_mask(image)
    truth = np.zeros((400, 400), dtype=bool)
    truth[100:300, 50:250] = True
    assert (mask != truth).mean() < 2e-4
    assert not mask[340:360, 340:360].any()


def test_grey_images_are_judged_by_darkness():
    image = np.full((100, 100, 3), 240, dtype=np.uint8)
    image[20:60, 20:60] = 140
    mask = tissue_mask(image)
    assert mask[25:55, 25:55].all() and not mask[70:].any()


def test_the_painted_island_is_found():
    image, labels = paint(1024, seed=3)
    mask = tissue_mask(image[::2, ::2])
    assert mask[labels[::2, ::2] > 0].mean() > 0.97  # nuclei lie in tissue
    border = np.ones_like(mask)
    border[8:-8, 8:-8] = False
    assert not mask[border].any()


def test_real_slides(shared_data):
    openslide = pytest.importorskip("openslide")
    folder = shared_data("slides")
    with openslide.OpenSlide(str(folder / "TCGA-V5-A7RE-11A_stitched_pyramid.tiff")) as slide:
        thumbnail = np.asarray(slide.get_thumbnail((900, 900)).convert("RGB"))
    mask = tissue_mask(thumbnail)
    assert 0.25 < mask.mean() < 0.5
    assert mask[200:500, 500:800].mean() > 0.85  # the biopsy
    assert mask[:200, :300].mean() < 0.01  # the glass beside it


def test_what_is_no_rgb_thumbnail_is_refused():
    with pytest.raises(ValueError, match=r"uint8 \[H, W, 3\], got uint8 \[8, 8, 4\]"):
        tissue_mask(np.zeros((8, 8, 4), dtype=np.uint8))
    with pytest.raises(ValueError, match="float64"):
        tissue_mask(np.zeros((8, 8, 3)))


@given(st.integers(0, 2**32 - 1), st.integers(8, 60), st.integers(8, 60))
def test_any_image_gives_a_mask_of_its_shape_and_flips_with_it(seed, height, width):
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    mask = tissue_mask(image)
    assert mask.shape == (height, width) and mask.dtype == bool
    assert np.array_equal(tissue_mask(image[:, ::-1]), mask[:, ::-1])
