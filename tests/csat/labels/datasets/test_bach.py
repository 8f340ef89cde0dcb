import pytest

from csat.errors import DatasetError
from csat.labels.datasets.registry import load_sample, read_dataset
from tests.csat.labels.datasets.files import break_image, check_misfit, check_one_unreadable, check_set, only, picture, write

CLASSES = ("Normal", "Benign", "InSitu", "Invasive")


@pytest.fixture
def bach(tmp_path):
    photos = tmp_path / "ICIAR2018_BACH_Challenge" / "Photos"
    for seed, (folder, name) in enumerate(zip(CLASSES, ("n001", "b001", "is001", "iv001"), strict=True)):
        write(photos / folder / f"{name}.tif", picture(seed))
    (photos / "microscopy_ground_truth.csv").write_text("b001.tif,Benign\n")
    return tmp_path


def test_four_classes(bach):
    found = read_dataset("bach", str(bach))
    check_set(found, name="bach", classes=CLASSES, licence="CC BY-NC-ND 4.0", mpp=0.42)
    assert {sample.key.split("/")[-1]: sample.label for sample in found.samples} == {
        "n001.tif": 0,
        "b001.tif": 1,
        "is001.tif": 2,
        "iv001.tif": 3,
    }
    assert all(sample.split is None and sample.group == sample.key for sample in found.samples)
    assert found.info.group == "image (no grouping known)" and "options patients" in found.info.note
    assert (load_sample(only(found, "is001.tif")).image == picture(2)).all()


@pytest.mark.parametrize("below", ["ICIAR2018_BACH_Challenge", "ICIAR2018_BACH_Challenge/Photos"])
def test_the_folders_above_the_classes(bach, below):
    assert len(read_dataset("bach", str(bach / below)).samples) == 4


def test_known_patients(bach):
    (bach / "patients.csv").write_text("file,patient\nb001.tif,7\nis001.tif,7\n")
    found = read_dataset("bach", str(bach), options={"patients": str(bach / "patients.csv")})
    assert only(found, "b001.tif").group == only(found, "is001.tif").group == "7"
    assert only(found, "n001.tif").group.endswith("n001.tif")
    assert found.info.group == "patient" and found.info.note == ""
    (bach / "patients.csv").write_text("file,patient\nx.tif,7\n")
    with pytest.raises(DatasetError, match="names none of the photographs; column file holds x.tif, the set b001.tif"):
        read_dataset("bach", str(bach), options={"patients": str(bach / "patients.csv")})


def test_a_folder_that_does_not_fit(tmp_path):
    write(tmp_path / "WSI" / "A01.tif", picture(1))
    check_misfit("bach", tmp_path, "Photos with folders Normal, Benign, InSitu, Invasive", "found WSI")


def test_a_corrupt_image_among_good_ones(bach):
    broken = bach / "ICIAR2018_BACH_Challenge" / "Photos" / "InSitu" / "is001.tif"
    break_image(broken)
    check_one_unreadable(read_dataset("bach", str(bach)), broken)
