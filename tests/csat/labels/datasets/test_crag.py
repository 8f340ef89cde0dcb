import numpy as np
import pytest

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

GLANDS = np.zeros((HEIGHT, WIDTH), np.uint8)
GLANDS[2:8, 3:9], GLANDS[12:16, 3:20] = 1, 5


@pytest.fixture
def crag(tmp_path):
    for seed, (part, name) in enumerate((("train", "train_1"), ("train", "train_2"), ("valid", "test_1"))):
        write(tmp_path / "CRAG" / part / "Images" / f"{name}.png", picture(seed))
        write(tmp_path / "CRAG" / part / "Annotation" / f"{name}.png", GLANDS)
        write(tmp_path / "CRAG" / part / "Overlay" / f"{name}.png", picture(9))
    return tmp_path


def test_glands_and_official_parts(crag):
    found = read_dataset("crag", str(crag))
    check_set(found, name="crag", classes=("background", "gland"), licence=found.info.licence, mpp=None)
    assert found.info.licence.startswith("not stated")
    assert [(sample.key, sample.split) for sample in found.samples] == [
        ("CRAG/train/Images/train_1.png", "train"),
        ("CRAG/train/Images/train_2.png", "train"),
        ("CRAG/valid/Images/test_1.png", "test"),  # the folder valid is the published test part
    ]
    assert all(sample.group == sample.key for sample in found.samples) and "38 slides" in found.info.note
    decoded = load_sample(only(found, "train_2.png"))
    assert (decoded.image == picture(1)).all() and (decoded.mask == (GLANDS > 0)).all() and decoded.mask.dtype == np.uint8


def test_the_folder_itself_and_the_names_of_its_readme(crag):
    assert [sample.key for sample in read_dataset("crag", str(crag / "CRAG")).samples][0] == "train/Images/train_1.png"
    (crag / "CRAG" / "valid" / "Annotation").rename(crag / "CRAG" / "valid" / "Annotations")
    (crag / "CRAG" / "valid").rename(crag / "CRAG" / "test")
    found = read_dataset("crag", str(crag))
    assert only(found, "test/Images/test_1.png").split == "test"
    assert load_sample(only(found, "test_1.png")).mask.sum() == (GLANDS > 0).sum()


def test_a_mask_of_another_size_and_a_missing_one(crag):
    write(crag / "CRAG" / "train" / "Annotation" / "train_1.png", GLANDS[1:])
    (crag / "CRAG" / "valid" / "Annotation" / "test_1.png").unlink()
    found = read_dataset("crag", str(crag))
    with pytest.raises(DatasetError, match="train_1.png: the image is 24 x 20 px and its mask 24 x 19 px"):
        load_sample(only(found, "train_1.png"))
    with pytest.raises(SlideError, match="Annotation/test_1.png") as caught:
        load_sample(only(found, "test_1.png"))
    assert caught.value.reason == "missing"


def test_a_folder_that_does_not_fit(tmp_path):
    write(tmp_path / "train" / "images" / "a.png", picture(1))
    check_misfit("crag", tmp_path, "CRAG/{train,valid} with Images/*.png and Annotation/*.png", "found train", "CRAG_v2.zip")


def test_a_corrupt_image_among_good_ones(crag):
    broken = crag / "CRAG" / "train" / "Images" / "train_2.png"
    break_image(broken)
    check_one_unreadable(read_dataset("crag", str(crag)), broken)
