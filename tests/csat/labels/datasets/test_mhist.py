import pytest

from csat.errors import DatasetError, SlideError
from csat.labels.datasets.registry import load_sample, read_dataset
from tests.csat.labels.datasets.files import break_image, check_misfit, check_one_unreadable, check_set, only, picture, write

HEADER = "Image Name,Majority Vote Label,Number of Annotators who Selected SSA (Out of 7),Partition"


@pytest.fixture
def mhist(tmp_path):
    for seed, name in enumerate(("aaa", "aab", "aac")):
        write(tmp_path / "images" / f"MHIST_{name}.png", picture(seed))
    (tmp_path / "annotations.csv").write_text(
        f"{HEADER}\nMHIST_aaa.png,SSA,6,train\nMHIST_aab.png,HP,0,train\nMHIST_aac.png,HP,2,test\n"
    )
    return tmp_path


def test_labels_and_official_parts(mhist):
    found = read_dataset("mhist", str(mhist))
    check_set(found, name="mhist", classes=("HP", "SSA"), licence=found.info.licence, mpp=None)
    assert "Research Use Agreement" in found.info.licence
    assert [(sample.key, sample.label, sample.split) for sample in found.samples] == [
        ("images/MHIST_aaa.png", 1, "train"),
        ("images/MHIST_aab.png", 0, "train"),
        ("images/MHIST_aac.png", 0, "test"),
    ]
    assert all(sample.group == sample.key for sample in found.samples) and "do not name their patients" in found.info.note
    assert (load_sample(only(found, "aac.png")).image == picture(2)).all()


@pytest.mark.parametrize(
    "line, message",
    [
        ("MHIST_aaa.png,TSA,6,train", "line 2: Majority Vote Label is 'TSA'; expected one of: HP, SSA"),
        ("MHIST_aaa.png,HP,6,dev", "line 2: Partition is 'dev'; expected one of: train"),
    ],
)
def test_unknown_labels_and_parts(line, message, mhist):
    (mhist / "annotations.csv").write_text(f"{HEADER}\n{line}\n")
    with pytest.raises(DatasetError, match=message):
        read_dataset("mhist", str(mhist))


def test_another_table(mhist):
    (mhist / "annotations.csv").write_text("Image,Label\nMHIST_aaa.png,HP\n")
    with pytest.raises(DatasetError, match="no column 'Image Name', .* its columns are: 'Image', 'Label'"):
        read_dataset("mhist", str(mhist))


def test_a_folder_that_does_not_fit(mhist):
    (mhist / "annotations.csv").unlink()
    check_misfit("mhist", mhist, "annotations.csv and images/MHIST_aaa.png", "found images", "bmirds.github.io/MHIST")


def test_corrupt_and_missing_images_among_good_ones(mhist):
    break_image(mhist / "images" / "MHIST_aab.png")
    check_one_unreadable(read_dataset("mhist", str(mhist)), mhist / "images" / "MHIST_aab.png")
    (mhist / "images" / "MHIST_aab.png").unlink()
    with pytest.raises(SlideError, match="MHIST_aab.png") as caught:
        load_sample(only(read_dataset("mhist", str(mhist)), "aab.png"))
    assert caught.value.reason == "missing"
