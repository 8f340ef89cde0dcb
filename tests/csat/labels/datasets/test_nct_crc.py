import pytest

from csat.errors import ConfigError, DatasetError
from csat.labels.datasets.nct_crc import CLASSES
from csat.labels.datasets.registry import load_sample, read_dataset
from tests.csat.labels.datasets.files import break_image, check_misfit, check_one_unreadable, check_set, only, picture, write


@pytest.fixture
def crc(tmp_path):
    write(tmp_path / "NCT-CRC-HE-100K" / "ADI" / "ADI-AAAFLCLY.tif", picture(1))
    write(tmp_path / "NCT-CRC-HE-100K" / "TUM" / "TUM-AAAAWNLG.tif", picture(2))
    write(tmp_path / "CRC-VAL-HE-7K" / "LYM" / "LYM-TCGA-AACASREE.tif", picture(3))
    return tmp_path


def test_the_100k_train_and_the_7k_test(crc):
    found = read_dataset("nct_crc", str(crc))
    check_set(found, name="nct_crc", classes=CLASSES, licence="CC BY 4.0", mpp=0.5)
    assert CLASSES == ("ADI", "BACK", "DEB", "LYM", "MUC", "MUS", "NORM", "STR", "TUM")
    assert [(sample.key, sample.label, sample.split) for sample in found.samples] == [
        ("CRC-VAL-HE-7K/LYM/LYM-TCGA-AACASREE.tif", 3, "test"),
        ("NCT-CRC-HE-100K/ADI/ADI-AAAFLCLY.tif", 0, "train"),
        ("NCT-CRC-HE-100K/TUM/TUM-AAAAWNLG.tif", 8, "train"),
    ]
    assert all(sample.group == sample.key for sample in found.samples)
    assert found.info.group == "image (no grouping known)" and "do not name their patients" in found.info.note
    assert (load_sample(only(found, "WNLG.tif")).image == picture(2)).all()


def test_one_of_its_folders(crc):
    found = read_dataset("nct_crc", str(crc / "CRC-VAL-HE-7K"))
    assert [(sample.key, sample.split) for sample in found.samples] == [("LYM/LYM-TCGA-AACASREE.tif", "test")]


def test_the_same_tiles_twice(crc):
    write(crc / "NCT-CRC-HE-100K-NONORM" / "ADI" / "ADI-AAAFLCLY.tif", picture(4))
    with pytest.raises(DatasetError, match="hold the same tiles with and without stain normalisation. Say which"):
        read_dataset("nct_crc", str(crc))
    found = read_dataset("nct_crc", str(crc), options={"normalised": False})
    assert [sample.key.split("/")[0] for sample in found.samples] == ["CRC-VAL-HE-7K", "NCT-CRC-HE-100K-NONORM"]
    assert len(read_dataset("nct_crc", str(crc), options={"normalised": True}).samples) == 3


def test_a_variant_that_is_not_there(crc):
    with pytest.raises(DatasetError, match="there is no NCT-CRC-HE-100K-NONORM; found NCT-CRC-HE-100K, CRC-VAL-HE-7K"):
        read_dataset("nct_crc", str(crc), options={"normalised": False})
    with pytest.raises(ConfigError, match="normalised"):
        read_dataset("nct_crc", str(crc), options={"normalised": "macenko"})


def test_a_folder_that_does_not_fit(tmp_path):
    write(tmp_path / "crc" / "ADI" / "a.tif", picture(1))
    check_misfit("nct_crc", tmp_path, "CRC-VAL-HE-7K", "found crc", "without renaming")


def test_a_corrupt_image_among_good_ones(crc):
    broken = crc / "NCT-CRC-HE-100K" / "TUM" / "TUM-AAAAWNLG.tif"
    break_image(broken)
    check_one_unreadable(read_dataset("nct_crc", str(crc)), broken)
