from collections import defaultdict

import numpy as np
import pytest
from PIL import Image

from csat.errors import DatasetError, SlideError
from csat.labels.datasets.registry import load_sample, read_dataset
from csat.tasks import Task
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

LICENCE = "research only, no commercial use, citation required"
HEADER = "name, patient ID, grade (GlaS), grade (Sirinukunwattana et al. 2015)"
GLANDS = np.zeros((HEIGHT, WIDTH), np.uint8)
GLANDS[2:8, 3:9], GLANDS[2:8, 9:14] = 1, 2  # two that touch


def write_downloaded(folder):
    for seed, name in enumerate(("train_1", "train_2", "testA_1", "testB_1")):
        write(folder / f"{name}.bmp", picture(seed))
        write(folder / f"{name}_anno.bmp", GLANDS * (name != "train_2"))
    rows = ["train_1,4, benign, adenomatous", "train_2,1, malignant, x", "testA_1,4, malignant, y", "testB_1,9,benign,z"]
    (folder / "Grade.csv").write_text("\n".join([HEADER, *rows]))


@pytest.fixture
def glas(tmp_path):
    write_downloaded(tmp_path)
    return tmp_path


def test_glands(glas):
    found = read_dataset("glas", str(glas))
    check_set(found, name="glas", classes=("background", "gland"), licence=LICENCE, mpp=0.62)
    assert [(sample.key, sample.group, sample.split, sample.label) for sample in found.samples] == [
        ("testA_1.bmp", "patient 4", None, None),
        ("testB_1.bmp", "patient 9", None, None),
        ("train_1.bmp", "patient 4", None, None),
        ("train_2.bmp", "patient 1", None, None),
    ]
    assert found.info.group == "patient"
    decoded = load_sample(only(found, "train_1.bmp"))
    assert (decoded.image == picture(0)).all() and (decoded.mask == (GLANDS > 0)).all() and decoded.mask.dtype == np.uint8
    assert not load_sample(only(found, "train_2.bmp")).mask.any()  # without a gland


def test_grades(glas):
    found = read_dataset("glas", str(glas), task="classification")
    check_set(found, name="glas", classes=("benign", "malignant"), licence=LICENCE, mpp=0.62)
    assert [sample.label for sample in found.samples] == [1, 0, 0, 1]
    assert load_sample(found.samples[0]).mask is None


def test_official_parts(glas):
    found = read_dataset("glas", str(glas), options={"official_parts": True})
    assert [sample.split for sample in found.samples] == ["test", "test", "train", "train"]
    assert found.info.group == "patient"  # patient 4 is in both: a run stops
    found = read_dataset("glas", str(glas), options={"official_parts": True, "patients_as_groups": False})
    assert [sample.group for sample in found.samples] == ["testA_1", "testB_1", "train_1", "train_2"]
    assert found.info.group == "image (patients are cut)"


@pytest.mark.parametrize("folder", ["Warwick_QU_Dataset", "Warwick QU Dataset (Released 2016_07_08)"])
def test_the_folder_above(folder, tmp_path):
    (tmp_path / folder).mkdir()
    write_downloaded(tmp_path / folder)
    found = read_dataset("glas", str(tmp_path))
    assert found.samples[0].key == f"{folder}/testA_1.bmp"
    assert load_sample(found.samples[0]).mask.sum() == 66


def test_binary_masks_in_a_folder_of_their_own(tmp_path):
    (tmp_path / "images").mkdir()
    Image.fromarray(picture(1)).save(tmp_path / "images" / "testA_3.jpg", quality=95)
    write(tmp_path / "masks_binary" / "testA_3.png", ((GLANDS > 0) * 255).astype(np.uint8))
    (tmp_path / "grade.csv").write_text("name,patient,grade,grade_fine\ntestA_3,4,benign,adenomatous\n")
    found = read_dataset("glas", str(tmp_path))
    assert [(sample.key, sample.group) for sample in found.samples] == [("images/testA_3.jpg", "patient 4")]
    assert (load_sample(found.samples[0]).mask == (GLANDS > 0)).all()


def test_what_is_wrong_with_the_table(glas):
    for rows, message in (
        (["train_1,4, benign, x"], "Grade.csv: has no row for the image testA_1"),
        (["testA_1,4, grade 2, x"], "the grade of testA_1 is 'grade 2'; grades are: benign, malignant"),
    ):
        (glas / "Grade.csv").write_text("\n".join([HEADER, *rows]))
        with pytest.raises(DatasetError, match=message):
            read_dataset("glas", str(glas))
    (glas / "Grade.csv").write_text("name,grade\ntrain_1,benign\n")
    with pytest.raises(DatasetError, match="expected the columns name, patient and grade; its columns are: name, grade"):
        read_dataset("glas", str(glas))


def test_a_mask_of_another_size_and_a_missing_one(glas):
    write(glas / "train_1_anno.bmp", GLANDS[:, 1:])
    (glas / "testA_1_anno.bmp").unlink()
    found = read_dataset("glas", str(glas))
    with pytest.raises(DatasetError, match="sample train_1.bmp: the image is 24 x 20 px and its mask 23 x 20 px"):
        load_sample(only(found, "train_1.bmp"))
    with pytest.raises(SlideError, match="testA_1_anno.bmp") as caught:
        load_sample(only(found, "testA_1.bmp"))
    assert caught.value.reason == "missing"


def test_a_folder_that_does_not_fit(glas):
    (glas / "Grade.csv").unlink()
    check_misfit("glas", glas, "train_1_anno.bmp and Grade.csv", "found testA_1.bmp", "table of grades")


def test_a_corrupt_image_among_good_ones(glas):
    break_image(glas / "train_2.bmp")
    check_one_unreadable(read_dataset("glas", str(glas)), glas / "train_2.bmp")


def test_the_real_set(shared_data):
    root = shared_data("glas")
    found = read_dataset("glas", str(root), options={"official_parts": True})
    check_set(found, name="glas", classes=("background", "gland"), licence=LICENCE, mpp=0.62)
    parts = defaultdict(set)
    for sample in found.samples:
        parts[sample.split].add(sample.group)
    assert (
        sum(sample.split == "train" for sample in found.samples) == 85 and len(found.samples) == 145
    )  # with test A, without B
    assert len(parts["train"] | parts["test"]) == 16 and len(parts["train"] & parts["test"]) == 8  # what the module says
    grades = defaultdict(set)
    for sample in read_dataset("glas", str(root), task=Task.CLASSIFICATION).samples:
        grades[sample.group].add(sample.label)
    assert sum(len(labels) == 2 for labels in grades.values()) == 5
    decoded = load_sample(only(found, "train_1.jpg"))
    assert decoded.image.shape == (522, 775, 3) and set(np.unique(decoded.mask)) == {0, 1}
    assert (decoded.mask > 0).mean() == pytest.approx(np.mean(Image.open(root / "masks_binary" / "train_1.png")) / 255)
