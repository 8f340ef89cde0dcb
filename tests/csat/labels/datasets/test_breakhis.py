import pytest

from csat.errors import ConfigError, DatasetError
from csat.labels.datasets.registry import load_sample, read_dataset
from tests.csat.labels.datasets.files import break_image, check_misfit, check_one_unreadable, check_set, only, picture, write

FILES = (
    "benign/SOB/adenosis/SOB_B_A_14-22549AB/40X/SOB_B_A-14-22549AB-40-001.png",
    "benign/SOB/adenosis/SOB_B_A_14-22549CD/40X/SOB_B_A-14-22549CD-40-001.png",
    "benign/SOB/adenosis/SOB_B_A_14-22549AB/400X/SOB_B_A-14-22549AB-400-001.png",
    "malignant/SOB/ductal_carcinoma/SOB_M_DC_14-13412/40X/SOB_M_DC-14-13412-40-003.png",
    "malignant/SOB/lobular_carcinoma/SOB_M_LC_14-13412/40X/SOB_M_LC-14-13412-40-003.png",
)


@pytest.fixture
def breakhis(tmp_path):
    for seed, name in enumerate(FILES):
        write(tmp_path / "BreaKHis_v1" / "histology_slides" / "breast" / name, picture(seed))
    return tmp_path


def test_benign_and_malignant_at_one_magnification(breakhis):
    found = read_dataset("breakhis", str(breakhis))
    check_set(found, name="breakhis", classes=("benign", "malignant"), licence="CC BY 4.0", mpp=0.49)
    samples = {sample.key.split("/")[-1]: (sample.label, sample.group, sample.split) for sample in found.samples}
    assert samples == {
        "SOB_B_A-14-22549AB-40-001.png": (0, "14-22549AB", None),
        "SOB_B_A-14-22549CD-40-001.png": (0, "14-22549CD", None),
        "SOB_M_DC-14-13412-40-003.png": (1, "14-13412", None),
        "SOB_M_LC-14-13412-40-003.png": (1, "14-13412", None),
    }
    assert found.info.group == "patient"
    assert (load_sample(only(found, "SOB_M_DC-14-13412-40-003.png")).image == picture(3)).all()


def test_subtypes_magnification_and_blocks(breakhis):
    found = read_dataset("breakhis", str(breakhis), options={"classes": "subtypes", "merge_blocks": True})
    assert len(found.info.classes) == 8
    assert [found.info.classes[sample.label] for sample in found.samples] == ["adenosis"] * 2 + [
        "ductal_carcinoma",
        "lobular_carcinoma",
    ]
    assert {sample.group for sample in found.samples} == {"14-22549", "14-13412"}
    found = read_dataset("breakhis", str(breakhis), options={"magnification": 400})
    assert [(sample.key[-11:], sample.mpp) for sample in found.samples] == [("400-001.png", 0.05)]
    with pytest.raises(DatasetError, match="no image at 200X below .*; there are: 400X, 40X"):
        read_dataset("breakhis", str(breakhis), options={"magnification": 200})


def test_options_that_are_none(breakhis):
    with pytest.raises(ConfigError, match="magnification is one of 40, 100, 200, 400, not 20"):
        read_dataset("breakhis", str(breakhis), options={"magnification": 20})
    with pytest.raises(ConfigError, match="classes is binary or subtypes, not 'all'"):
        read_dataset("breakhis", str(breakhis), options={"classes": "all"})


def test_an_unknown_subtype(breakhis):
    write(breakhis / "SOB_M_XY-14-1-40-003.png", picture(1))
    with pytest.raises(DatasetError, match="SOB_M_XY-14-1-40-003.png: there is no subtype 'XY'; known: A, F, PT"):
        read_dataset("breakhis", str(breakhis), options={"classes": "subtypes"})


def test_a_folder_that_does_not_fit(tmp_path):
    write(tmp_path / "benign" / "1.png", picture(1))
    check_misfit("breakhis", tmp_path, "SOB_B_A-14-22549AB-40-001.png", "found benign")


def test_a_corrupt_image_among_good_ones(breakhis):
    broken = breakhis / "BreaKHis_v1" / "histology_slides" / "breast" / FILES[3]
    break_image(broken)
    check_one_unreadable(read_dataset("breakhis", str(breakhis)), broken)
