import numpy as np
import pytest
import tifffile
from PIL import Image

from csat.errors import ConfigError, DatasetError, SlideError
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

NUCLEI = np.zeros((HEIGHT, WIDTH), np.uint16)
NUCLEI[2:6, 3:9], NUCLEI[2:6, 9:15] = 1, 300


@pytest.fixture
def organs(tmp_path):
    for seed, (organ, name) in enumerate(
        (("human bladder", "human_bladder_01"), ("human bladder", "human_bladder_02"), ("mouse heart", "mouse_heart_01"))
    ):
        folder = tmp_path / organ
        rgba = np.dstack([picture(seed), np.full((HEIGHT, WIDTH), 255, np.uint8)])  # the set's png have an alpha
        write(folder / "tissue images" / f"{name}.png", rgba)
        for labels, mask in (("label masks modify", NUCLEI), ("label masks", NUCLEI + 7)):
            (folder / labels).mkdir(exist_ok=True)
            tifffile.imwrite(folder / labels / f"{name}.tif", mask)
        write(folder / "mask binary" / f"{name}.png", ((NUCLEI > 0) * 255).astype(np.uint8))
    return tmp_path


def test_as_downloaded(organs):
    found = read_dataset("nuinsseg", str(organs))
    check_set(found, name="nuinsseg", classes=(), licence="CC BY 4.0", mpp=None)
    assert [(sample.key, sample.group, sample.split) for sample in found.samples] == [
        ("human bladder/tissue images/human_bladder_01.png", "human bladder", None),
        ("human bladder/tissue images/human_bladder_02.png", "human bladder", None),
        ("mouse heart/tissue images/mouse_heart_01.png", "mouse heart", None),
    ]
    assert found.info.group == "organ (one slide each)"
    decoded = load_sample(only(found, "mouse_heart_01.png"))
    assert (decoded.image == picture(2)).all() and decoded.types is None
    assert decoded.instances.dtype == np.int32 and (decoded.instances == NUCLEI).all()


def two_discs(radius=9, apart=16):
    """Nuclei that touch, as a binary mask."""
    rows, columns = np.mgrid[:48, :64]
    discs = [(rows - 24) ** 2 + (columns - 24 - shift) ** 2 <= radius**2 for shift in (0, apart)]
    return discs[0], discs[1]


def test_touching_nuclei_of_numbered_binary_masks_are_split(tmp_path):
    left, right = two_discs()
    for number in (1, 14, 15, 30):
        write(tmp_path / "images" / f"{number:03d}.jpg", picture(number, 48, 64))
        write(tmp_path / "masks_binary" / f"{number:03d}.png", ((left | right) * 255).astype(np.uint8))
    found = read_dataset("nuinsseg", str(tmp_path))
    assert [(sample.key, sample.group) for sample in found.samples] == [
        ("images/001.jpg", "block 0"),
        ("images/014.jpg", "block 0"),
        ("images/015.jpg", "block 1"),
        ("images/030.jpg", "block 2"),
    ]
    assert found.info.group == "block of 15 neighbouring numbers" and "split by their shape" in found.info.note
    assert found.samples[0].index is None  # a file, which pretraining may read
    instances = load_sample(found.samples[0]).instances
    assert instances.dtype == np.int32 and set(np.unique(instances)) == {0, 1, 2}
    assert ((instances > 0) == (left | right)).all()
    assert len(np.unique(instances[left & ~right])) == 1 and len(np.unique(instances[right & ~left])) == 1

    found = read_dataset("nuinsseg", str(tmp_path), options={"block": 2})
    assert [sample.group for sample in found.samples] == ["block 0", "block 7", "block 7", "block 15"]
    with pytest.raises(ConfigError, match="block is a number of images, at least 1, not 0"):
        read_dataset("nuinsseg", str(tmp_path), options={"block": 0})


def test_a_mask_of_another_size_and_a_missing_one(organs):
    tifffile.imwrite(organs / "mouse heart" / "label masks modify" / "mouse_heart_01.tif", NUCLEI[:-2])
    (organs / "human bladder" / "label masks modify" / "human_bladder_02.tif").unlink()
    found = read_dataset("nuinsseg", str(organs))
    with pytest.raises(DatasetError, match="the image is 24 x 20 px and its mask 24 x 18 px"):
        load_sample(only(found, "mouse_heart_01.png"))
    with pytest.raises(SlideError, match="label masks modify/human_bladder_02.tif") as caught:
        load_sample(only(found, "human_bladder_02.png"))
    assert caught.value.reason == "missing"


def test_a_folder_that_does_not_fit(tmp_path):
    write(tmp_path / "human bladder" / "tissue images" / "human_bladder_01.png", picture(1))
    check_misfit("nuinsseg", tmp_path, "<organ>/label masks modify/*.tif", "found human bladder")


def test_a_corrupt_image_among_good_ones(organs):
    broken = organs / "human bladder" / "tissue images" / "human_bladder_02.png"
    break_image(broken)
    check_one_unreadable(read_dataset("nuinsseg", str(organs)), broken)


def test_the_real_set(shared_data):
    root = shared_data("nuinsseg")
    found = read_dataset("nuinsseg", str(root))
    check_set(found, name="nuinsseg", classes=(), licence="CC BY 4.0", mpp=None)
    assert len(found.samples) == 665 and len({sample.group for sample in found.samples}) == 45
    decoded = load_sample(only(found, "027.jpg"))
    mask = np.asarray(Image.open(root / "masks_binary" / "027.png"))
    assert decoded.image.shape == (512, 512, 3) and ((decoded.instances > 0) == (mask > 0)).all()
    assert 80 < decoded.instances.max() < 200  # a crowded one
