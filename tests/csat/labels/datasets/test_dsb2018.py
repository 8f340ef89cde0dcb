import numpy as np
import pytest
from PIL import Image

from csat.errors import DatasetError, SlideError
from csat.labels.datasets.registry import load_sample, read_dataset
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


def nucleus(top, left):
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[top : top + 3, left : left + 4] = 255
    return mask


@pytest.fixture
def bowl(tmp_path):
    """Two stained images and a fluorescent one, with an alpha as the set's own have."""
    for seed, name in enumerate(("stained1", "stained2", "grey")):
        pixels = picture(seed)
        if name == "grey":
            pixels = np.repeat(pixels[..., :1], 3, axis=2)
        folder = tmp_path / "stage1_train" / name
        rgba = np.dstack([pixels, np.full((HEIGHT, WIDTH), 255, np.uint8)])
        write(folder / "images" / f"{name}.png", rgba)
        write(folder / "masks" / "a.png", nucleus(1, 2))
        write(folder / "masks" / "b.png", nucleus(10, 15))
    return tmp_path


def test_as_downloaded(bowl):
    found = read_dataset("dsb2018", str(bowl))
    check_set(found, name="dsb2018", classes=(), licence="CC0 1.0", mpp=None)
    assert [(sample.key, sample.group, sample.split) for sample in found.samples] == [
        ("stage1_train/stained1/images/stained1.png", "stained1", None),
        ("stage1_train/stained2/images/stained2.png", "stained2", None),
    ]
    assert found.info.group == "image (no grouping known)" and "magnifications are mixed" in found.info.note
    decoded = load_sample(only(found, "stained2.png"))
    assert (decoded.image == picture(1)).all() and decoded.types is None
    expected = (nucleus(1, 2) > 0) + 2 * (nucleus(10, 15) > 0)
    assert decoded.instances.dtype == np.int32 and (decoded.instances == expected).all()


def test_fluorescence_too(bowl):
    found = read_dataset("dsb2018", str(bowl / "stage1_train"), options={"stained_only": False})
    assert [sample.group for sample in found.samples] == ["grey", "stained1", "stained2"]
    for name in ("stained1", "stained2"):
        (bowl / "stage1_train" / name / "images" / f"{name}.png").unlink()
    check_misfit("dsb2018", bowl, "<id>/masks/*.png", "stained", "stained_only: false")


def test_merged_masks(tmp_path):
    labels = np.zeros((HEIGHT, WIDTH), np.uint16)
    labels[1:4, 2:6], labels[10:13, 15:19] = 500, 2
    write(tmp_path / "images" / "00ae65c1c6631ae6.png", picture(1))
    write(tmp_path / "inst" / "00ae65c1c6631ae6.png", labels)
    found = read_dataset("dsb2018", str(tmp_path))
    assert [(sample.key, sample.group) for sample in found.samples] == [("images/00ae65c1c6631ae6.png", "00ae65c1c6631ae6")]
    assert (load_sample(found.samples[0]).instances == labels).all()
    write(tmp_path / "inst" / "00ae65c1c6631ae6.png", labels[:, 3:])
    with pytest.raises(DatasetError, match="the image is 24 x 20 px and its mask 21 x 20 px"):
        load_sample(found.samples[0])


def test_a_mask_of_another_size_and_missing_ones(bowl):
    masks = bowl / "stage1_train" / "stained1" / "masks"
    write(masks / "b.png", nucleus(1, 2)[1:])
    found = read_dataset("dsb2018", str(bowl))
    with pytest.raises(DatasetError, match="stained1.png: the image is 24 x 20 px and its mask 24 x 19 px"):
        load_sample(only(found, "stained1.png"))
    for file in masks.iterdir():
        file.unlink()
    with pytest.raises(SlideError, match="there is no mask in .*stained1/masks") as caught:
        load_sample(only(found, "stained1.png"))
    assert caught.value.reason == "missing"


def test_a_corrupt_image_among_good_ones(bowl):
    broken = bowl / "stage1_train" / "stained2" / "images" / "stained2.png"
    break_image(broken)
    check_one_unreadable(read_dataset("dsb2018", str(bowl)), broken)


def test_the_real_set(shared_data):
    root = shared_data("dsb2018")
    found = read_dataset("dsb2018", str(root))
    check_set(found, name="dsb2018", classes=(), licence="CC0 1.0", mpp=None)
    assert len(found.samples) == 107
    num_nuclei = 0
    for sample in found.samples:
        num_nuclei += len(np.unique(np.asarray(Image.open(sample.mask)))) - 1
    assert num_nuclei == 4550
    decoded = load_sample(found.samples[0])
    assert decoded.image.shape == (256, 320, 3)
    assert (decoded.instances == np.asarray(Image.open(found.samples[0].mask))).all()
