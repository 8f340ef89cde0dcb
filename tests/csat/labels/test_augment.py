"""Image and labels are changed together, to the pixel; all of it follows from the sample's seed, and from nothing else."""

import random
import threading

import numpy as np
import pytest
import torch

from csat.errors import ConfigError
from csat.labels.augment import JointAugment, JointConfig, fit_tile, resize, window
from csat.labels.datasets.contract import Decoded
from csat.labels.targets import make_targets
from csat.responses import Symmetry
from csat.tasks import Task
from csat.views.symmetries import apply_d4
from tests.support.labelled_toy import draw_nuclei, make_info

TILE_PX = 64
CHANGES = {
    "nothing": {},
    "scale": {"scale": 0.4},
    "aspect": {"aspect": 0.5},
    "shift": {"scale": 0.3, "shift": True},
    "symmetries": {"flips_and_rotations": True},
    "rotation": {"rotate_degrees": 180.0},
    "elastic": {"elastic_px": 4.0, "elastic_prob": 1.0},
    "all": {
        "scale": 0.3,
        "aspect": 0.3,
        "shift": True,
        "flips_and_rotations": True,
        "rotate_degrees": 90.0,
        "elastic_px": 3.0,
        "elastic_prob": 1.0,
    },
}
COLOURS = {
    "brightness": 0.3,
    "contrast": 0.3,
    "saturation": 0.3,
    "hue": 0.1,
    "sharpness": 1.0,
    "blur_prob": 0.5,
    "noise": 0.02,
}


def config(**settings) -> JointConfig:
    off = JointConfig.off()
    return JointConfig(**{name: getattr(off, name) for name in JointConfig.__dataclass_fields__} | settings)


def coded_sample(size=(96, 120)) -> Decoded:
    """The image's red channel says where nuclei are, its green channel their types: it can be compared with the labels."""
    sample = draw_nuclei(np.random.default_rng(3), size, num=8)
    image = np.stack([sample.mask * 200, sample.types * 100, np.zeros_like(sample.mask)], axis=-1)
    return Decoded(image=image, mask=sample.mask, instances=sample.instances, types=sample.types)


def share_of_border_that_disagrees(image: np.ndarray, mask: np.ndarray) -> float:
    """Pixels in which the image's red and the mask disagree, as a share of those on both sides of the mask's border."""
    border = np.zeros(mask.shape, bool)
    for axis in (0, 1):
        border |= (mask != np.roll(mask, 1, axis)) | (mask != np.roll(mask, -1, axis))
    assert border.sum() > 40, "nothing to compare"
    return ((image[..., 0] > 100) != (mask > 0)).sum() / border.sum()


@pytest.mark.parametrize("fit", ["resize", "crop"])
@pytest.mark.parametrize("change", CHANGES)
def test_image_and_labels_stay_together(change, fit):
    sample, augment = coded_sample(), JointAugment(config(**CHANGES[change]))
    for seed in range(8):
        tile = augment(sample, tile_px=TILE_PX, fit=fit, seed=seed)
        assert tile.image.shape == (TILE_PX, TILE_PX, 3)
        assert (tile.image.dtype, tile.mask.dtype, tile.instances.dtype, tile.types.dtype) == (
            np.uint8,
            np.uint8,
            np.int32,
            np.uint8,
        )
        assert share_of_border_that_disagrees(tile.image, tile.mask) < 0.2
        assert np.array_equal(tile.mask > 0, tile.instances > 0)
        assert np.array_equal(tile.mask > 0, tile.types > 0)
        assert all(array.flags.c_contiguous for array in (tile.image, tile.mask, tile.instances, tile.types))


def test_a_shift_of_one_pixel_would_be_noticed():
    tile = fit_tile(coded_sample((64, 64)), tile_px=TILE_PX, fit="resize")
    assert share_of_border_that_disagrees(tile.image, tile.mask) == 0
    assert share_of_border_that_disagrees(np.roll(tile.image, 1, 1), tile.mask) > 0.3


@pytest.mark.parametrize("change", [name for name in CHANGES if name != "nothing"])
def test_every_change_changes_and_no_two_seeds_are_alike(change):
    sample = draw_nuclei(np.random.default_rng(0), 96)
    augment, plain = JointAugment(config(**CHANGES[change])), fit_tile(sample, tile_px=TILE_PX, fit="resize")
    tiles = [augment(sample, tile_px=TILE_PX, fit="resize", seed=seed).image for seed in range(12)]
    assert sum(not np.array_equal(tile, plain.image) for tile in tiles) > 8
    assert len({tile.tobytes() for tile in tiles}) > (5 if change == "symmetries" else 9)


def test_all_off_is_the_tile_of_evaluation():
    sample = draw_nuclei(np.random.default_rng(0), (80, 100))
    for fit in ("resize", "crop"):
        seen = JointAugment(JointConfig.off())(sample, tile_px=TILE_PX, fit=fit, seed=5)
        plain = fit_tile(sample, tile_px=TILE_PX, fit=fit)
        for name in ("image", "mask", "instances", "types"):
            assert np.array_equal(getattr(seen, name), getattr(plain, name))


def test_missing_labels_stay_missing():
    image = draw_nuclei(np.random.default_rng(0), 80).image
    tile = JointAugment(JointConfig(rotate_degrees=30.0))(Decoded(image=image), tile_px=TILE_PX, fit="crop", seed=0)
    assert (tile.mask, tile.instances, tile.types) == (None, None, None)


def test_a_tile_follows_from_its_seed_and_global_generators_are_neither_used_nor_moved():
    sample, augment = coded_sample(), JointAugment(config(**CHANGES["all"], **COLOURS))
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    states = random.getstate(), np.random.get_state()[1].copy(), torch.random.get_rng_state()
    first = augment(sample, tile_px=TILE_PX, fit="resize", seed=11)
    assert random.getstate() == states[0]
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert torch.equal(torch.random.get_rng_state(), states[2])
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    again = augment(sample, tile_px=TILE_PX, fit="resize", seed=11)
    other = augment(sample, tile_px=TILE_PX, fit="resize", seed=12)
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.instances, again.instances)
    assert not np.array_equal(first.image, other.image)


def test_threads_do_not_disturb_each_other():
    """Tiles are made by a thread while another trains: both would draw from one shared generator, if there were one."""
    sample, augment = coded_sample(), JointAugment(config(**CHANGES["all"], **COLOURS))
    alone = [augment(sample, tile_px=32, fit="resize", seed=seed).image for seed in range(12)]
    found = {}

    def make(seed):
        found[seed] = augment(sample, tile_px=32, fit="resize", seed=seed).image

    threads = [threading.Thread(target=make, args=(seed,)) for seed in range(12)]
    for thread in threads:
        thread.start()
        torch.manual_seed(0)
    for thread in threads:
        thread.join()
    assert all(np.array_equal(found[seed], alone[seed]) for seed in range(12))


def test_the_sample_is_left_as_it_was_and_may_be_read_only():
    sample = coded_sample((64, 64))
    before = sample.image.copy(), sample.instances.copy()
    for array in (sample.image, sample.mask, sample.instances, sample.types):
        array.flags.writeable = False
    for settings in ({}, COLOURS, CHANGES["all"]):
        JointAugment(config(**settings))(sample, tile_px=TILE_PX, fit="resize", seed=0)
    assert np.array_equal(sample.image, before[0])
    assert np.array_equal(sample.instances, before[1])


def test_hv_targets_of_a_turned_tile_are_the_turned_targets_with_their_signs():
    sample, augment = draw_nuclei(np.random.default_rng(1), TILE_PX), JointAugment(config(flips_and_rotations=True))
    info, plain = make_info(Task.NUCLEI), torch.from_numpy(sample.image.copy()).permute(2, 0, 1)[None]
    hv = torch.from_numpy(make_targets(info, sample, None)["hv"])[None]
    seen = set()
    for seed in range(80):
        tile = augment(sample, tile_px=TILE_PX, fit="resize", seed=seed)
        image = torch.from_numpy(tile.image).permute(2, 0, 1)[None]
        which = next(index for index in range(8) if torch.equal(apply_d4(plain, torch.tensor([index])), image))
        expected = apply_d4(hv, torch.tensor([which]), Symmetry.HV)[0]
        assert torch.equal(torch.from_numpy(make_targets(info, tile, None)["hv"]), expected)
        seen.add(which)
    assert len(seen) == 8


# ------------------------------------------------------------------------------------------------ windows and mirrored edges


def nucleus_at(rows: slice, columns: slice, size: int = 16) -> Decoded:
    instances = np.zeros((size, size), np.int32)
    instances[rows, columns] = 7
    image = np.repeat((instances > 0).astype(np.uint8)[..., None] * 255, 3, axis=2)
    return Decoded(image=image, mask=(instances > 0).astype(np.uint8), instances=instances)


def test_a_window_inside_is_a_cut():
    sample = coded_sample((20, 30))
    seen = window(sample, 3, 5, 10, 12)
    assert np.array_equal(seen.image, sample.image[3:13, 5:17])
    assert np.array_equal(seen.instances, sample.instances[3:13, 5:17])


def test_beyond_the_image_it_is_mirrored_and_so_are_the_labels():
    sample = coded_sample((20, 30))
    seen = window(sample, -6, -4, 30, 40)
    padding = ((6, 4), (4, 6))
    assert np.array_equal(seen.image, np.pad(sample.image, (*padding, (0, 0)), mode="symmetric"))
    assert np.array_equal(seen.mask, np.pad(sample.mask, padding, mode="symmetric"))
    assert np.array_equal(seen.types, np.pad(sample.types, padding, mode="symmetric"))
    assert np.array_equal(seen.instances > 0, seen.mask > 0)
    assert np.array_equal(seen.instances[6:26, 4:34], sample.instances), "inside, ids stay"


def test_a_mirrored_nucleus_has_an_id_and_a_centre_of_its_own():
    sample = nucleus_at(slice(5, 9), slice(2, 5))
    seen = window(sample, 0, -6, 16, 22)
    nucleus, mirrored = seen.instances[6, 6 + 3], seen.instances[6, 6 - 4]
    assert nucleus == 7
    assert mirrored not in (0, 7)
    hv = make_targets(make_info(Task.NUCLEI, ()), seen, None)["hv"][0]
    assert hv[6, 6 + 2 : 6 + 5].tolist() == hv[6, 1:4].tolist() == [-1, 0, 1], "horizontal positions in each"


def test_a_nucleus_at_the_edge_is_one_with_its_mirror_image():
    seen = window(nucleus_at(slice(5, 9), slice(0, 3)), 0, -6, 16, 22)
    assert np.unique(seen.instances).tolist() == [0, 7]
    assert (seen.instances[6] == 7).sum() == 6


def test_a_nucleus_in_two_pieces_stays_one():
    sample = nucleus_at(slice(5, 7), slice(8, 10))
    sample.instances[12:14, 8:10] = 7
    seen = window(sample, -4, 0, 20, 16)
    assert set(np.unique(seen.instances[4:])) == {0, 7}


def test_small_images_are_mirrored_not_enlarged_where_windows_are_seen():
    sample = coded_sample((40, 40))
    plain = fit_tile(sample, tile_px=TILE_PX, fit="crop")
    assert np.array_equal(plain.image, np.pad(sample.image, ((12, 12), (12, 12), (0, 0)), mode="symmetric"))
    augmented = JointAugment(config(scale=0.0, shift=True))
    for seed in range(5):
        tile = augmented(sample, tile_px=TILE_PX, fit="crop", seed=seed)
        assert share_of_border_that_disagrees(tile.image, tile.mask) == 0
        # The whole image is in the tile, at its own resolution.
        found = [
            (top, left)
            for top in range(25)
            for left in range(25)
            if np.array_equal(tile.image[top : top + 40, left : left + 40], sample.image)
        ]
        assert found


def test_a_window_lies_anywhere_in_a_large_image():
    image = np.zeros((100, 100, 3), np.uint8)
    image[..., 0], image[..., 1] = np.arange(100)[:, None], np.arange(100)
    augment = JointAugment(config(shift=True))
    corners = [tuple(augment(Decoded(image=image), tile_px=32, fit="crop", seed=seed).image[0, 0, :2]) for seed in range(200)]
    tops, lefts = (np.array(axis, int) for axis in zip(*corners, strict=True))
    assert (tops.min(), tops.max(), lefts.min(), lefts.max()) == pytest.approx((0, 68, 0, 68), abs=2)
    assert abs(np.corrcoef(tops, lefts)[0, 1]) < 0.2


def test_the_size_of_the_part_stays_within_the_bounds():
    """Of a ramp, the range of values that a tile shows is the size of the part that it was made from."""
    ramp = np.tile(np.linspace(0, 255, 256).astype(np.uint8)[None, :, None], (256, 1, 3))
    for fit, low, high in (("resize", 0.5 * 256, 256), ("crop", 64 / 1.25, 64 * 1.25)):
        augment = JointAugment(config(scale=0.25, shift=True))
        spans = [
            int(np.ptp(augment(Decoded(image=ramp), tile_px=TILE_PX, fit=fit, seed=seed).image.astype(int)))
            for seed in range(80)
        ]
        assert min(spans) >= low - 6
        assert max(spans) <= high + 1
        assert max(spans) - min(spans) > 0.7 * (high - low)


@pytest.mark.parametrize("degrees", [10.0, 45.0])
def test_a_rotation_turns_about_the_middle_by_no_more_than_asked(degrees):
    instances = np.zeros((65, 65), np.int32)
    instances[32, 32], instances[30:35, 56:61] = 1, 2
    sample = Decoded(image=np.zeros((65, 65, 3), np.uint8), instances=instances)
    augment = JointAugment(config(rotate_degrees=degrees))
    angles = []
    for seed in range(30):
        turned = augment(sample, tile_px=65, fit="resize", seed=seed).instances
        assert turned[32, 32] == 1
        y, x = np.argwhere(turned == 2).mean(0) - 32
        assert np.hypot(x, y) == pytest.approx(26, abs=0.7)
        angles.append(np.degrees(np.arctan2(y, x)))
    assert max(np.abs(angles)) <= degrees + 1
    assert min(angles) < -degrees / 2
    assert max(angles) > degrees / 2


def test_deformation_moves_pixels_about_as_far_as_it_says():
    size = 96
    image = np.zeros((size, size, 3), np.uint8)
    image[..., 0], image[..., 1] = 2 * np.arange(size)[None], 2 * np.arange(size)[:, None]
    augment = JointAugment(config(elastic_px=6.0, elastic_prob=1.0))
    moved = []
    for seed in range(6):
        tile = augment(Decoded(image=image), tile_px=size, fit="resize", seed=seed).image.astype(float)
        moved.append((tile[16:-16, 16:-16] - image[16:-16, 16:-16])[..., :2] / 2)
    assert np.std(moved) == pytest.approx(2.0, abs=0.5), "6 px are three standard deviations"
    assert np.abs(moved).max() < 12
    none = JointAugment(config(elastic_px=6.0, elastic_prob=0.0))(Decoded(image=image), tile_px=size, fit="resize", seed=0)
    assert np.array_equal(none.image, image)


def test_no_corner_is_black_after_a_rotation_or_a_deformation():
    sample = Decoded(image=np.full((48, 48, 3), 200, np.uint8), mask=np.ones((48, 48), np.uint8))
    augment = JointAugment(config(rotate_degrees=180.0, elastic_px=10.0, elastic_prob=1.0))
    for seed in range(10):
        tile = augment(sample, tile_px=48, fit="resize", seed=seed)
        assert (tile.image == 200).all()
        assert (tile.mask == 1).all()


# --------------------------------------------------------------------------------------------------------------------- sizes


def test_sizes_by_hand():
    image = np.array([[0, 100], [200, 60]], np.uint8)[..., None].repeat(3, 2)
    labels = np.array([[1, 2], [3, 4]], np.uint8)
    large = resize(Decoded(image=image, mask=labels), 4, 4)
    assert large.mask.tolist() == [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]]
    assert large.image[0, :, 0].tolist() == [0, 25, 75, 100]
    assert resize(Decoded(image=image), 1, 1).image.tolist() == [[[90, 90, 90]]]
    assert resize(large, 2, 2).mask.tolist() == labels.tolist()


def test_a_whole_image_is_stretched_to_the_square():
    sample = coded_sample((40, 80))
    tile = fit_tile(sample, tile_px=40, fit="resize")
    assert np.array_equal(tile.mask, sample.mask[:, 1::2])
    assert share_of_border_that_disagrees(tile.image, tile.mask) < 0.15


def test_colours_leave_the_labels_and_places_alone():
    sample = coded_sample((64, 64))
    tile = JointAugment(config(**COLOURS))(sample, tile_px=TILE_PX, fit="resize", seed=0)
    assert np.array_equal(tile.instances, sample.instances)
    assert not np.array_equal(tile.image, sample.image)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scale": 0.5}, r"augment.scale must be in \[0, 0.45\], not 0.5"),
        ({"hue": 0.6}, "augment.hue"),
        ({"rotate_degrees": -1.0}, "augment.rotate_degrees"),
        ({"noise": float("nan")}, "augment.noise"),
        ({"sharpness": 4.5}, r"augment.sharpness must be in \[0, 4\], not 4.5"),
        ({"elastic_prob": 2.0}, "augment.elastic_prob"),
    ],
)
def test_settings_out_of_range_are_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        JointConfig(**settings)
