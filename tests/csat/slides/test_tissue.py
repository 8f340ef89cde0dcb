"""Tissue detection on plain colours, on a painted slide and on real ones."""

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from csat.slides.synthetic import paint
from csat.slides.tissue import STAIN_CHROMA, tissue_mask

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


@pytest.mark.parametrize("tint", [(255, 240, 195), (205, 228, 255), (232, 255, 225), (255, 232, 210)])
def test_tinted_glass_is_glass_and_the_tissue_on_it_stays(tint):
    """A tint multiplies what light comes through (Beer-Lambert): the mask is the one without it."""
    assert max(tint) - min(tint) >= STAIN_CHROMA
    image, _ = paint(1024, seed=3)
    tinted = (image[::2, ::2] * (np.array(tint) / 255)).round().astype(np.uint8)
    tinted[5:60:9, 5:60:9] = (90, 60, 40)  # dust
    expected, mask = tissue_mask(image[::2, ::2]), tissue_mask(tinted)
    assert (mask != expected).mean() < 0.005 and not (mask & ~expected)[5:60:9, 5:60:9].any()
    assert tissue_mask(np.broadcast_to(np.uint8(tint), (64, 64, 3))).mean() == 0


def test_a_scan_on_a_white_page_is_judged_by_its_own_glass():
    page = np.full((300, 400, 3), 255, dtype=np.uint8)
    page[40:260, 40:360] = _plain((240, 226, 190), (220, 320))
    page[100:200, 100:200] = _plain(PINK, (100, 100))
    assert tissue_mask(page).mean() == pytest.approx(100 * 100 / page[..., 0].size, rel=0.02)


INKS = {"green": (20, 140, 110), "blue": (40, 90, 190), "navy": (30, 40, 140), "red": (220, 25, 45), "black": (45, 38, 42)}


@pytest.mark.parametrize("ink", INKS)
def test_ink_is_no_tissue_and_what_lies_beside_it_stays(ink):
    image, _ = paint(1024, seed=3)
    image = image[::2, ::2]
    stroke = np.zeros(image.shape[:2], np.float32)
    cv2.line(stroke, (40, 0), (300, 511), 1.0, 40)
    stroke = cv2.GaussianBlur(stroke, (0, 0), 3)[..., None]
    inked = (image * (1 - stroke) + np.array(INKS[ink]) * stroke).round().astype(np.uint8)
    before, mask = tissue_mask(image), tissue_mask(inked)
    assert mask[stroke[..., 0] > 0.9].mean() < 0.05
    assert mask[before & (stroke[..., 0] < 0.005)].mean() > 0.97


def test_real_pens(shared_data):
    tiles = shared_data("tissue_pen") / "tiles"
    for pen in ("green", "red"):
        assert tissue_mask(_picture(tiles / f"no-tissue-{pen}-pen.png")).mean() < 0.05
    for name, left, right in (("thumbs/wsi-blue-pen.png", 0, 140), ("tiles/high-nuclei-score-red-pen-level1.jpg", 0, 180)):
        image = _picture(shared_data("tissue_pen") / name)
        beside = image[:, left:right]
        assert np.isclose(tissue_mask(image)[:, left:right].mean(), tissue_mask(beside).mean(), atol=0.02)
    assert tissue_mask(_picture(shared_data("tissue_pen") / "thumbs/wsi-blue-pen.png"))[:, 150:].mean() < 0.05  # ink


@pytest.mark.parametrize(
    "name, least",
    [
        ("osteosarcoma_mini/images/Case-3-A17-7799-34542_102.jpg", 0.88),  # bone, as red as a pen, and a gap
        ("nuinsseg/images/444.jpg", 0.93),  # muscle, dark and out of focus
        ("crchisto/images/img025.jpg", 0.88),  # blood
        ("tissue_pen/tiles/medium-nuclei-score-level0.jpg", 0.92),  # collagen
        ("tcga_tiles_unlabelled/images/JkpU9qbUxHupCH.jpg", 0.77),  # brown pigment; the least of all is grey
    ],
)
def test_red_brown_and_dark_tissue_is_no_ink(shared_data, name, least):
    """As much as chroma alone keeps, to 1%."""
    folder, _, rest = name.partition("/")
    assert tissue_mask(_picture(shared_data(folder) / rest)).mean() > least


def test_the_glass_of_real_tinted_pictures(shared_data):
    folder = shared_data("lc25000_lung")
    for name, most in (("lung_n/lungn3567.jpeg", 0.55), ("lung_aca/lungaca2048.jpeg", 0.6)):
        assert 0.3 < tissue_mask(_picture(folder / name)).mean() < most


def _picture(path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


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
