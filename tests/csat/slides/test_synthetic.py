"""Synthetic slides: what OpenSlide sees, what the truth says, and that a simple method finds most nuclei but not all."""

import cv2
import numpy as np
import openslide
import pytest
from scipy import ndimage
from skimage.color import rgb2hed
from skimage.filters import gaussian, threshold_otsu

import csat.slides.synthetic_scene as synthetic_scene
from csat.errors import ConfigError
from csat.slides.synthetic import make_slides, paint, read_truth, truth_path


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    return make_slides(tmp_path_factory.mktemp("slides"), num_slides=1, size_px=1100, mpp=0.5, seed=1)[0]


def test_openslide_reads_the_pyramid_with_mpp_and_magnification(slide):
    with openslide.OpenSlide(str(slide)) as opened:
        assert opened.level_dimensions == ((1100, 1100), (275, 275), (68, 68))
        assert opened.level_downsamples == pytest.approx((1, 4, 16), rel=0.02)
        assert float(opened.properties["openslide.mpp-x"]) == 0.5
        assert opened.properties["openslide.objective-power"] == "20"
        assert opened.properties["openslide.level[0].tile-width"] == "256"


def test_the_file_shows_what_was_painted(slide):
    image, labels = paint(1100, mpp=0.5, seed=1, index=0)
    with openslide.OpenSlide(str(slide)) as opened:
        read = np.asarray(opened.read_region((300, 400), 0, (256, 256)).convert("RGB")).astype(int)
    assert np.abs(read - image[400:656, 300:556]).mean() < 6  # JPEG, and no shift: a shift of 1 px gives more than 8
    assert np.array_equal(read_truth(slide, 300, 400, 256), labels[400:656, 300:556])


def test_truth_is_uint16_with_every_id_and_zero_outside(slide):
    labels = cv2.imread(str(truth_path(slide)), cv2.IMREAD_UNCHANGED)
    assert labels.dtype == np.uint16 and labels.shape == (1100, 1100)
    corner = read_truth(slide, -100, 1000, 256)
    assert np.array_equal(corner[:100, 100:], labels[1000:, :156]) and corner.dtype == np.uint16
    assert not corner[:, :100].any() and not corner[100:].any()
    assert not read_truth(slide, 5000, 5000, 64).any()
    assert read_truth(slide.with_name("other.svs"), 0, 0, 64) is None


def test_slides_are_deterministic_and_differ_from_each_other(tmp_path):
    first = make_slides(tmp_path / "a", num_slides=2, size_px=512, seed=5)
    again = make_slides(tmp_path / "b", num_slides=1, size_px=512, seed=5)
    assert first[0].name == again[0].name and first[0].read_bytes() == again[0].read_bytes()
    assert truth_path(first[0]).read_bytes() == truth_path(again[0]).read_bytes()
    assert first[0].read_bytes() != first[1].read_bytes()
    assert not np.array_equal(paint(512, seed=6)[1], paint(512, seed=5)[1])


def test_a_second_call_leaves_finished_slides_alone_and_mends_unfinished_ones(tmp_path):
    slide = make_slides(tmp_path, num_slides=1, size_px=512)[0]
    written = slide.stat().st_mtime_ns
    assert make_slides(tmp_path, num_slides=1, size_px=512) == [slide] and slide.stat().st_mtime_ns == written
    truth_path(slide).unlink()
    make_slides(tmp_path, num_slides=1, size_px=512)
    assert truth_path(slide).exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([slide.name, truth_path(slide).name])  # no leftovers


@pytest.mark.parametrize("mpp", [0.25, 1.0])
def test_sizes_follow_the_resolution(mpp):
    """Nuclei are the same size in um at any mpp, and equally dense in the tissue."""
    size_px = int(500 / mpp)
    _, labels = paint(size_px, mpp=mpp, seed=2)
    areas_um2 = np.bincount(labels.ravel())[1:] * mpp**2
    assert 20 < np.median(areas_um2[areas_um2 > 0]) < 60  # circles of 5 to 9 um
    per_mm2 = (areas_um2 > 0).sum() / (size_px * mpp / 1000) ** 2
    assert 700 < per_mm2 < 4000


def test_nuclei_are_separate_instances_of_which_some_touch():
    _, labels = paint(1024, seed=0)
    ids = np.unique(labels)[1:]
    _, num_clumps = ndimage.label(labels > 0)
    assert 300 < len(ids) < 1000
    assert 0.3 * len(ids) < num_clumps < 0.95 * len(ids)
    pieces = [ndimage.label(labels[box] == i)[1] for i, box in enumerate(ndimage.find_objects(labels), 1) if box]
    assert np.mean(np.array(pieces) == 1) > 0.97  # hardly any nucleus is cut in two by one painted later


def test_blocks_leave_no_seams(monkeypatch):
    whole, labels = paint(700, seed=4)
    monkeypatch.setattr(synthetic_scene, "BLOCK_PX", 350)
    # The region maps' own size depends on the block's, so the layout may differ; seams would show as jumps at the border.
    blocks, _ = paint(700, seed=4)
    steps = np.abs(np.diff(blocks.astype(int), axis=0)).mean(axis=(1, 2))
    edge = steps[346:349].max()  # the border lies at row 348: a whole number of cells
    assert edge < 1.5 * np.median(steps[300:400])
    assert whole.shape == blocks.shape == (*labels.shape, 3)


def test_glass_surrounds_the_tissue():
    image, labels = paint(1024, seed=9)
    border = np.ones(labels.shape, dtype=bool)
    border[16:-16, 16:-16] = False
    assert image[border].min() > 215 and not labels[border].any()
    tissue = image.min(axis=2) < 215
    assert 0.35 < tissue.mean() < 0.85


def test_haematoxylin_alone_finds_most_nuclei_but_not_all():
    """A fixed colour deconvolution with one threshold: neither hopeless nor trivial, on every slide."""
    dice = []
    for index in range(4):
        image, labels = paint(768, seed=0, index=index)
        haematoxylin = gaussian(rgb2hed(image)[..., 0], 1)
        found, truth = haematoxylin > threshold_otsu(haematoxylin), labels > 0
        dice.append(2 * (found & truth).sum() / (found.sum() + truth.sum()))
    assert min(dice) > 0.6 and 0.75 < np.mean(dice) < 0.93, dice


def test_stains_differ_between_slides():
    colours = []
    for index in range(4):
        image, labels = paint(512, index=index)
        colours.append(image[labels > 0].mean(axis=0))
    assert np.ptp(colours, axis=0).max() > 8


@pytest.mark.parametrize("wrong", [dict(num_slides=0), dict(size_px=100), dict(mpp=9.0)])
def test_impossible_sizes_are_refused(tmp_path, wrong):
    with pytest.raises(ConfigError, match="synthetic slides need"):
        make_slides(tmp_path / "new", **(dict(num_slides=1, size_px=512, mpp=0.5) | wrong))
    assert not (tmp_path / "new").exists()


def test_more_nuclei_than_uint16_can_name_is_refused(monkeypatch):
    monkeypatch.setattr(synthetic_scene, "MAX_NUCLEI", 20)
    with pytest.raises(ConfigError, match="more than 20 nuclei.*make more, smaller slides"):
        paint(512)


def test_the_smallest_slide_has_tissue_and_nuclei():
    for index in range(4):
        image, labels = paint(256, index=index)
        assert len(np.unique(labels)) > 4 and (image.min(axis=2) < 215).mean() > 0.2
