import os

import pytest

from csat.errors import ConfigError, DatasetError
from csat.labels.datasets.registry import load_sample, read_dataset
from tests.csat.labels.datasets.files import break_image, check_misfit, check_one_unreadable, check_set, only, picture, write


@pytest.fixture
def classes(tmp_path):
    """Two classes, one with a deeper folder, and what a Mac's zip leaves behind."""
    write(tmp_path / "tumor" / "p1_a.png", picture(1))
    write(tmp_path / "tumor" / "old" / "p2_b.tif", picture(2))
    write(tmp_path / "benign" / "p1_c.bmp", picture(3))
    write(tmp_path / "__MACOSX" / "tumor" / "p1_a.png", picture(9))
    (tmp_path / "readme.txt").write_text("not an image")
    return tmp_path


def test_a_folder_per_class(classes):
    found = read_dataset("folder", str(classes))
    check_set(found, name="folder", classes=("benign", "tumor"), licence="not stated", mpp=None)
    assert [(sample.key, sample.label, sample.group, sample.split) for sample in found.samples] == [
        ("benign/p1_c.bmp", 0, "benign/p1_c.bmp", None),
        ("tumor/old/p2_b.tif", 1, "tumor/old/p2_b.tif", None),
        ("tumor/p1_a.png", 1, "tumor/p1_a.png", None),
    ]
    assert found.info.group == "image (no grouping known)" and "set group_pattern" in found.info.note
    decoded = load_sample(only(found, "p2_b.tif"))
    assert (decoded.image == picture(2)).all() and decoded.mask is None and decoded.instances is None


def test_groups_and_the_order_of_classes(classes):
    found = read_dataset("folder", str(classes), options={"group_pattern": r"^(p\d)", "classes": ["tumor", "benign"]})
    assert {sample.key: (sample.group, sample.label) for sample in found.samples} == {
        "benign/p1_c.bmp": ("p1", 1),
        "tumor/old/p2_b.tif": ("p2", 0),
        "tumor/p1_a.png": ("p1", 0),
    }
    assert found.info.classes == ("tumor", "benign") and found.info.note == ""
    with pytest.raises(DatasetError, match="group_pattern '_b' finds nothing in 'p1_c.bmp'"):
        read_dataset("folder", str(classes), options={"group_pattern": "_b"})
    with pytest.raises(ConfigError, match="no regular expression"):
        read_dataset("folder", str(classes), options={"group_pattern": "("})


def test_official_parts(tmp_path):
    for part, split in (("Train", "train"), ("valid", "val"), ("testing", "test")):
        write(tmp_path / part / "tumor" / "a.png", picture(1))
        (tmp_path / part / "benign").mkdir()
        found = read_dataset("folder", str(tmp_path))
        assert only(found, f"{part}/tumor/a.png").split == split
    assert found.info.classes == ("benign", "tumor")  # a class without images is one, and the parts' check names it


def test_parts_beside_classes_are_ambiguous(classes):
    write(classes / "test" / "tumor" / "a.png", picture(1))
    with pytest.raises(DatasetError, match=r"parts \(test\) beside other folders \(benign, tumor\)"):
        read_dataset("folder", str(classes))


def test_images_outside_a_class(classes):
    write(classes / "stray.png", picture(1))
    with pytest.raises(DatasetError, match="1 images lie outside a class folder: stray.png. Expected class/image"):
        read_dataset("folder", str(classes))


def test_an_unknown_class(classes):
    with pytest.raises(DatasetError, match="benign/p1_c.bmp is in class folder 'benign'; the classes are: tumor, normal"):
        read_dataset("folder", str(classes), options={"classes": ["tumor", "normal"]})


def test_no_images(tmp_path):
    (tmp_path / "tumor").mkdir()
    check_misfit("folder", tmp_path, "one folder per class", "found tumor")


def test_a_corrupt_image_among_good_ones(classes):
    break_image(classes / "tumor" / "p1_a.png")
    check_one_unreadable(read_dataset("folder", str(classes)), classes / "tumor" / "p1_a.png")


def test_what_is_left_beside_the_data_is_none_and_is_counted(classes, caplog):
    for folder in (classes, classes / "tumor", classes / "benign"):
        write(folder / "@eaDir" / "p1_c.bmp" / "SYNOPHOTO_THUMB_M.png", picture(7))
        write(folder / ".ipynb_checkpoints" / "p1_c.png", picture(8))
        (folder / "Thumbs.db").touch()
    (classes / "tumor" / "scan.dcm2").touch()
    with caplog.at_level("INFO"):
        found = read_dataset("folder", str(classes))
    assert [sample.key for sample in found.samples] == ["benign/p1_c.bmp", "tumor/old/p2_b.tif", "tumor/p1_a.png"]
    assert [record.message for record in caplog.records] == [
        f"data set 'folder': {classes}: passed over 3 x .ipynb_checkpoints, 3 x @eaDir, 3 x Thumbs.db, 1 x .dcm2, 1 x .txt, "
        "1 x __MACOSX"
    ]


def test_a_name_that_is_not_utf8_is_a_sample_like_any_other(classes):
    """Key, group and class are text that can be written; the image is the file of that name."""
    path = classes / os.fsdecode(b"Gew\xe4chs") / os.fsdecode(b"p3_\xe4.png")
    write(path, picture(4))
    found = read_dataset("folder", str(classes))
    assert found.info.classes == (r"Gew\xe4chs", "benign", "tumor")
    sample = only(found, ".png") if len(found.samples) == 1 else next(each for each in found.samples if each.label == 0)
    assert sample.key == sample.group == r"Gew\xe4chs/p3_\xe4.png" and sample.image.encode()
    assert (load_sample(sample).image == picture(4)).all()
