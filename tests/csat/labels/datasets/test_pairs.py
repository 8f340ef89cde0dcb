import numpy as np
import pytest
from PIL import Image, ImageOps

from csat.errors import ConfigError, DatasetError
from csat.labels.datasets.registry import load_sample, read_dataset
from csat.tasks import IGNORE, Task
from tests.csat.labels.datasets.files import (
    HEIGHT,
    WIDTH,
    break_image,
    check_misfit,
    check_one_unreadable,
    check_set,
    only,
    picture,
    write,
)

MASK = np.zeros((HEIGHT, WIDTH), np.uint8)
MASK[2:6, 3:9], MASK[10:12, 4:20] = 1, 2


def pair(root, name, mask, *, images="images", masks="masks", mask_name=None, seed=1):
    write(root / images / name, picture(seed))
    return write(root / masks / (mask_name or name), mask)


def test_class_indices(tmp_path):
    pair(tmp_path, "p1_a.png", MASK)
    pair(tmp_path, "deep/p2_b.png", np.where(MASK == 1, IGNORE, MASK).astype(np.uint8), seed=2)
    options = {"classes": ["other", "gland", "tumor"], "mpp": 0.5, "licence": "in house", "group_pattern": r"(p\d)"}
    found = read_dataset("pairs", str(tmp_path), options=options)
    check_set(found, name="pairs", classes=("other", "gland", "tumor"), licence="in house", mpp=0.5)
    assert [(sample.key, sample.group, sample.split) for sample in found.samples] == [
        ("images/deep/p2_b.png", "p2", None),
        ("images/p1_a.png", "p1", None),
    ]
    first = load_sample(only(found, "p1_a.png"))
    assert (first.image == picture(1)).all() and (first.mask == MASK).all() and first.mask.dtype == np.uint8
    assert set(np.unique(load_sample(only(found, "p2_b.png")).mask)) == {0, 2, IGNORE}


@pytest.mark.parametrize("foreground", [1, 255])
def test_two_classes_are_binary(foreground, tmp_path):
    pair(tmp_path, "a.png", np.where(MASK > 0, foreground, 0).astype(np.uint8))
    found = read_dataset("pairs", str(tmp_path))
    assert found.info.classes == ("background", "foreground")
    assert (load_sample(found.samples[0]).mask == (MASK > 0)).all()


def test_two_classes_with_pixels_that_do_not_count(tmp_path):
    pair(tmp_path, "a.png", np.where(MASK == 2, 255, MASK).astype(np.uint8))
    with pytest.raises(DatasetError, match="holds 0 and 1, or 0 and 255; found 0, 1, 255"):
        load_sample(read_dataset("pairs", str(tmp_path)).samples[0])
    mask = load_sample(read_dataset("pairs", str(tmp_path), options={"ignore_255": True}).samples[0]).mask
    assert (mask == np.where(MASK == 2, IGNORE, MASK)).all()


def test_numbered_nuclei_and_connected_ones(tmp_path):
    touching = np.zeros((HEIGHT, WIDTH), np.uint16)
    touching[2:4, 3:6], touching[2:4, 6:9], touching[12:15, 1:4] = 300, 7, 9
    pair(tmp_path, "a.png", touching)
    found = read_dataset("pairs", str(tmp_path), task="nuclei")
    check_set(found, name="pairs", classes=(), licence="not stated", mpp=None)
    decoded = load_sample(found.samples[0])
    assert decoded.instances.dtype == np.int32 and (decoded.instances == touching).all() and decoded.types is None

    components = {"instances": "components"}
    with pytest.raises(DatasetError, match="found 0, 7, 9, 300. Leave out `instances: components`"):
        load_sample(read_dataset("pairs", str(tmp_path), task="nuclei", options=components).samples[0])
    write(tmp_path / "masks" / "a.png", np.where(touching > 0, 255, 0).astype(np.uint8))
    found = read_dataset("pairs", str(tmp_path), task="nuclei", options=components)
    instances = load_sample(found.samples[0]).instances
    assert instances.dtype == np.int32 and set(np.unique(instances)) == {0, 1, 2}
    assert (instances[2:4, 3:9] == 1).all() and (instances[12:15, 1:4] == 2).all()
    assert found.samples[0].index is None  # it is a file, not a part of one
    with pytest.raises(ConfigError, match="instances"):
        read_dataset("pairs", str(tmp_path), task="nuclei", options={"instances": "boxes"})


def test_official_parts_and_names_with_suffixes(tmp_path):
    for part in ("train", "Validation", "test"):
        pair(tmp_path / part, "a_rgb.png", MASK > 0, images="tiles", masks="labels", mask_name="a_seg.bmp")
    options = {"image_dir": "tiles", "mask_dir": "labels", "image_suffix": "_rgb", "mask_suffix": "_seg"}
    found = read_dataset("pairs", str(tmp_path), options=options)
    assert {sample.key: sample.split for sample in found.samples} == {
        "Validation/tiles/a_rgb.png": "val",
        "test/tiles/a_rgb.png": "test",
        "train/tiles/a_rgb.png": "train",
    }
    assert (load_sample(found.samples[0]).mask == (MASK > 0)).all()
    assert read_dataset("pairs", str(tmp_path / "test"), options=options).samples[0].task == Task.SEGMENTATION


def test_without_partner_and_with_two(tmp_path):
    pair(tmp_path, "a.png", MASK)
    write(tmp_path / "images" / "b.png", picture(2))
    with pytest.raises(DatasetError, match="2 images and 1 masks, of which 1 have no partner: b. Set image_suffix"):
        read_dataset("pairs", str(tmp_path))
    write(tmp_path / "masks" / "b.png", MASK)
    write(tmp_path / "masks" / "b.tif", MASK)
    with pytest.raises(DatasetError, match="b.png and .*b.tif have one name"):
        read_dataset("pairs", str(tmp_path))


def test_a_mask_of_another_size(tmp_path):
    pair(tmp_path, "a.png", MASK[:-1])
    for task in ("segmentation", "nuclei"):
        found = read_dataset("pairs", str(tmp_path), task=task, options={"classes": ["a", "b", "c"]})
        with pytest.raises(DatasetError, match="the image is 24 x 20 px and its mask 24 x 19 px"):
            load_sample(found.samples[0])


def test_a_folder_that_does_not_fit(tmp_path):
    write(tmp_path / "img" / "a.png", picture(1))
    check_misfit("pairs", tmp_path, "images/ and masks/", "found img", "image_dir")


def test_a_corrupt_image_among_good_ones(tmp_path):
    for seed, name in enumerate("abc"):
        pair(tmp_path, f"{name}.png", MASK > 0, seed=seed)
    break_image(tmp_path / "images" / "b.png")
    check_one_unreadable(read_dataset("pairs", str(tmp_path)), tmp_path / "images" / "b.png")


@pytest.mark.parametrize("image_tag", [2, 6, 8])
def test_a_photograph_and_its_mask_lie_on_each_other_whatever_their_tags(tmp_path, image_tag):
    """The camera turned the picture by EXIF; its mask was drawn on what a viewer showed, and has no tag."""
    stored = np.full((32, 48, 3), 240, np.uint8)
    stored[:16, :16] = (120, 40, 140)
    exif = Image.Exif()
    exif[274] = image_tag
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    Image.fromarray(stored).save(tmp_path / "images" / "a.jpg", exif=exif)
    shown = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "images" / "a.jpg")))
    Image.fromarray((shown[..., 1] < 140).astype(np.uint8)).save(tmp_path / "masks" / "a.png")
    sample = load_sample(only(read_dataset("pairs", str(tmp_path)), "a.jpg"))
    np.testing.assert_array_equal(sample.image[..., 1] < 140, sample.mask == 1)
