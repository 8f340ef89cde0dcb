import openpyxl
import pytest

from csat.errors import ConfigError, DatasetError
from csat.labels.datasets.registry import load_sample, read_dataset
from tests.csat.labels.datasets.files import break_image, check_misfit, check_one_unreadable, check_set, only, picture, write

TILE = "{}_Block_Region_1_0_0_xini_6803_yini_59786.jpg"
HEADER = ["image_name", "NC", "G3", "G4", "G5", "G4C"]
LABELS = {"NC": [1, 0, 0, 0, 0], "G3": [0, 1, 0, 0, 0], "G4C": [0, 0, 1, 0, 1], "G5": [0, 0, 0, 1, 0]}


def write_xlsx(path, header, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    book = openpyxl.Workbook()
    for row in (header, *rows):
        book.active.append(row)
    book.save(path)


@pytest.fixture
def sicap(tmp_path):
    """Four slides of three patients; Train: a, b, c; Test: d; the fold Val1 validates on c."""
    rows = {slide: [TILE.format(slide), *LABELS[label]] for slide, label in zip("abcd", LABELS, strict=True)}
    for seed, slide in enumerate("abcd"):
        write(tmp_path / "images" / TILE.format(slide), picture(seed))
    partition = tmp_path / "partition"
    write_xlsx(partition / "Test" / "Train.xlsx", HEADER, rows["a"], rows["b"], rows["c"])
    write_xlsx(partition / "Test" / "Test.xlsx", HEADER, rows["d"])
    write_xlsx(partition / "Validation" / "Val1" / "Train.xlsx", HEADER, rows["a"], rows["b"])
    write_xlsx(partition / "Validation" / "Val1" / "Test.xlsx", HEADER, rows["c"])
    patients = [["a", 1], ["b", 1], ["c", 2], ["d", 3]]
    header = ["slide_id", "patient_id", "Gleason_primary", "Gleason_secondary"]
    write_xlsx(tmp_path / "wsi_labels.xlsx", header, *([*row, 3, 4] for row in patients))
    return tmp_path


def test_grades_patients_and_the_official_test(sicap):
    found = read_dataset("sicapv2", str(sicap))
    check_set(found, name="sicapv2", classes=("NC", "G3", "G4", "G5"), licence="CC BY 4.0", mpp=None)
    assert [(sample.key[7], sample.label, sample.group, sample.split) for sample in found.samples] == [
        ("a", 0, "1", "train"),
        ("b", 1, "1", "train"),
        ("c", 2, "2", "train"),
        ("d", 3, "3", "test"),
    ]
    assert found.info.group == "patient"
    assert load_sample(found.samples[0]).image.shape == (20, 24, 3)


def test_a_fold_and_the_folder_above(sicap, tmp_path_factory):
    above = tmp_path_factory.mktemp("above")
    sicap.rename(above / "SICAPv2")
    found = read_dataset("sicapv2", str(above), options={"partition": "Val1"})
    assert [(sample.key[:15], sample.split) for sample in found.samples] == [
        ("SICAPv2/images/", part) for part in ("train", "train", "val", "test")
    ]
    with pytest.raises(DatasetError, match="looked for .*partition/Validation/Val2/Train.xlsx"):
        read_dataset("sicapv2", str(above), options={"partition": "Val2"})
    with pytest.raises(ConfigError, match="partition is one of Test, Val1, Val2, Val3, Val4, not 'Val5'"):
        read_dataset("sicapv2", str(above), options={"partition": "Val5"})


def test_without_the_table_of_patients_slides_are_groups(sicap):
    (sicap / "wsi_labels.xlsx").unlink()
    found = read_dataset("sicapv2", str(sicap))
    assert [sample.group for sample in found.samples] == list("abcd")
    assert found.info.group == "slide" and "may cut patients" in found.info.note


def test_what_is_wrong_with_the_tables(sicap):
    train = sicap / "partition" / "Test" / "Train.xlsx"
    for row, message in (
        ([TILE.format("a"), 1, 1, 0, 0, 0], "line 2: a_Block.* is marked as NC, G3; expected exactly one of NC, G3, G4, G5"),
        ([TILE.format("a"), 0, 0, 0, 0, 0], "is marked as nothing; expected exactly one"),
        (["a.jpg", 1, 0, 0, 0, 0], "line 2: 'a.jpg' does not name its slide"),
        ([TILE.format("z"), 1, 0, 0, 0, 0], "slide 'z' of 'z_Block.*' is not in wsi_labels.xlsx"),
    ):
        write_xlsx(train, HEADER, row)
        with pytest.raises(DatasetError, match=message):
            read_dataset("sicapv2", str(sicap))
    write_xlsx(train, ["image_name", "NC", "G3"], [TILE.format("a"), 1, 0])
    with pytest.raises(DatasetError, match="there is no column 'G4', 'G5'"):
        read_dataset("sicapv2", str(sicap))


def test_a_folder_that_does_not_fit(tmp_path):
    write(tmp_path / "images" / TILE.format("a"), picture(1))
    check_misfit("sicapv2", tmp_path, "images/ and partition/Test/Train.xlsx, partition/Test/Test.xlsx", "found images")


def test_a_corrupt_image_among_good_ones(sicap):
    broken = sicap / "images" / TILE.format("c")
    break_image(broken)
    check_one_unreadable(read_dataset("sicapv2", str(sicap)), broken)
    assert only(read_dataset("sicapv2", str(sicap)), broken.name).label == 2
