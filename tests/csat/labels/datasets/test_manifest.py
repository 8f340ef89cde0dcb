import os

import numpy as np
import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile

from csat.errors import ConfigError, DatasetError, SlideError
from csat.labels.datasets.registry import load_sample, read_dataset
from csat.labels.splits import SplitConfig, split_set
from csat.tasks import IGNORE, Task
from csat.tiles.sources import list_slides
from tests.csat.labels.datasets.files import HEIGHT, WIDTH, break_image, check_one_unreadable, check_set, only, picture, write


def table(tmp_path, *lines):
    (tmp_path / "set.csv").write_text("\n".join(lines) + "\n")
    return str(tmp_path / "set.csv")


@pytest.fixture
def images(tmp_path):
    for number, name in enumerate("abc"):
        write(tmp_path / "img" / f"{name}.png", picture(number))
    return tmp_path


def test_classification(images):
    path = table(images, "path,label,group,split,mpp", "img/b.png,tumor,p1,test,0.5", "img/a.png,benign,p2,Training,0.5")
    found = read_dataset("manifest", path)
    check_set(found, name="manifest", classes=("benign", "tumor"), licence="not stated", mpp=0.5)
    assert [(sample.key, sample.label, sample.group, sample.split) for sample in found.samples] == [
        ("img/a.png", 0, "p2", "train"),
        ("img/b.png", 1, "p1", "test"),
    ]
    assert found.info.group == "group" and found.info.note == ""
    assert (load_sample(only(found, "b.png")).image == picture(1)).all()
    assert read_dataset("manifest", str(images)).samples == found.samples  # the folder with one table


def test_parquet_with_columns_of_its_own(images):
    rows = {"file": ["a.png", "c.png"], "grade": [3, 2], "patient": [7, 8]}
    pq.write_table(pa.table(rows), images / "set.parquet")
    options = {"path": "file", "label": "grade", "group": "patient", "image_root": str(images / "img")}
    options |= {"classes": ["2", "3"], "group_name": "patient", "licence": "in house"}
    found = read_dataset("manifest", str(images / "set.parquet"), options=options)
    check_set(found, name="manifest", classes=("2", "3"), licence="in house", mpp=None)
    assert [(sample.key, sample.label, sample.group) for sample in found.samples] == [("a.png", 1, "7"), ("c.png", 0, "8")]
    assert found.info.group == "patient"


def test_without_group_and_split(images):
    found = read_dataset("manifest", table(images, "path,label", "img/a.png,x", "img/b.png,y"))
    assert [(sample.group, sample.split) for sample in found.samples] == [("img/a.png", None), ("img/b.png", None)]
    assert found.info.group == "image (no grouping known)" and "no column 'group'" in found.info.note


def test_segmentation(images):
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[3:9, 5:7], mask[0, :] = 2, IGNORE
    write(images / "a_mask.png", mask)
    path = table(images, "path,mask", "img/a.png,a_mask.png")
    found = read_dataset("manifest", path, task="segmentation", options={"classes": ["other", "gland", "tumor"]})
    check_set(found, name="manifest", classes=("other", "gland", "tumor"), licence="not stated", mpp=None)
    assert (load_sample(found.samples[0]).mask == mask).all()
    with pytest.raises(ConfigError, match="give option `classes`, index 0 .background. first"):
        read_dataset("manifest", path, task="segmentation")
    with pytest.raises(DatasetError, match=r"its labels hold 2 \(.*a_mask.png\)"):
        load_sample(read_dataset("manifest", path, task="segmentation", options={"classes": ["other", "gland"]}).samples[0])


def test_nuclei_with_and_without_types(images):
    instances = np.zeros((HEIGHT, WIDTH), np.uint16)
    instances[1:4, 2:6], instances[10:14, 10:12] = 500, 7
    tifffile.imwrite(images / "a_inst.tif", instances)
    types = (instances > 0).astype(np.uint8) + (instances == 7)
    write(images / "a_types.png", types)
    path = table(images, "path,mask,types", "img/a.png,a_inst.tif,a_types.png")
    with pytest.raises(ConfigError, match="give option `classes`, the types without background"):
        read_dataset("manifest", path, task="nuclei")
    found = read_dataset("manifest", path, task="nuclei", options={"classes": ["epithelial", "other"]})
    decoded = load_sample(found.samples[0])
    assert decoded.instances.dtype == np.int32 and (decoded.instances == instances).all()
    assert (decoded.types == types).all() and decoded.mask is None
    assert found.samples[0].index is None and found.samples[0].task == Task.NUCLEI

    path = table(images, "path,mask", "img/a.png,a_inst.tif")
    found = read_dataset("manifest", path, task="nuclei")
    assert found.info.classes == () and load_sample(found.samples[0]).types is None
    with pytest.raises(DatasetError, match="there is no column 'types'"):
        read_dataset("manifest", path, task="nuclei", options={"classes": ["epithelial"]})


def test_a_mask_of_another_size_and_a_missing_one(images):
    write(images / "small.png", np.zeros((HEIGHT, WIDTH - 1), np.uint8))
    path = table(images, "path,mask", "img/a.png,small.png", "img/b.png,nowhere.png")
    found = read_dataset("manifest", path, task="segmentation", options={"classes": ["other", "gland"]})
    with pytest.raises(
        DatasetError, match=r"sample img/a.png: the image is 24 x 20 px and its mask 23 x 20 px \(.*small.png\)"
    ):
        load_sample(found.samples[0])
    with pytest.raises(SlideError, match="nowhere.png") as caught:
        load_sample(found.samples[1])
    assert caught.value.reason == "missing"


@pytest.mark.parametrize(
    "lines, message",
    [
        (["path,label", "img/a.png,cat"], "line 2: unknown class 'cat' in column 'label'; classes are: tumor, benign"),
        (["path,label", "img/a.png,tumor", "img/b.png,"], "line 3: column 'label' is empty"),
        (["path,label", ",tumor"], "line 2: column 'path' is empty"),
        (["path,label,split", "img/a.png,tumor,dev"], "line 2: unknown part 'dev' in column 'split'; parts are: train, "),
        (["path,label,mpp", "img/a.png,tumor,40x"], "line 2: '40x' in column 'mpp' is no resolution in um/px"),
        (["path,label,mpp", "img/a.png,tumor,0"], "line 2: '0' in column 'mpp' is no resolution"),
        (["path,label,group", "img/a.png,tumor,p1", "img/b.png,tumor,"], "line 3: column 'group' is empty"),
        (["path,label", "img/a.png,tumor", "./img/a.png,benign"], "line 3: img/a.png is in the table twice"),
        (["path,grade", "img/a.png,tumor"], "there is no column 'label'; its columns are: 'path', 'grade'"),
        (["path,label"], "has no rows below its header"),
    ],
)
def test_what_is_wrong_with_a_table(lines, message, images):
    with pytest.raises(DatasetError, match=message):
        read_dataset("manifest", table(images, *lines), options={"classes": ["tumor", "benign"]})


def test_a_column_that_was_named_must_be_there(images):
    path = table(images, "path,label", "img/a.png,tumor")
    with pytest.raises(DatasetError, match="there is no column 'case'"):
        read_dataset("manifest", path, options={"group": "case"})


def test_mixed_resolutions(images):
    found = read_dataset("manifest", table(images, "path,label,mpp", "img/a.png,x,0.5", "img/b.png,y,"))
    assert found.info.mpp is None and [sample.mpp for sample in found.samples] == [0.5, None]


def test_two_tables_are_one_too_many(images):
    table(images, "path,label", "img/a.png,tumor")
    (images / "other.csv").write_text("path\n")
    with pytest.raises(
        DatasetError, match="looked for one table .* found img, other.csv, set.csv. Point the path at the table"
    ):
        read_dataset("manifest", str(images))


def test_a_corrupt_image_among_good_ones(images):
    path = table(images, "path,label", "img/a.png,x", "img/b.png,y", "img/c.png,y")
    break_image(images / "img" / "b.png")
    check_one_unreadable(read_dataset("manifest", path), images / "img" / "b.png")


def test_the_same_table_as_a_spreadsheet_and_with_a_decimal_comma(images):
    expected = [("img/a.png", "007", 0.25), ("img/b.png", "8", None)]
    (images / "set.csv").write_text("path;label;group;mpp\nimg/a.png;x;007;0,25\n;;;\nimg/b.png;y;8;\n")
    found = read_dataset("manifest", str(images))
    assert [(sample.key, sample.group, sample.mpp) for sample in found.samples] == expected
    (images / "set.csv").unlink()
    book = openpyxl.Workbook()
    for row in (["path", "label", "group", "mpp"], ["img/a.png", "x", 7, 0.25], ["img/b.png", "y", 8.0, None]):
        book.active.append(row)
    book.active["C2"].number_format = "000"
    book.save(images / "set.xlsx")
    (images / "~$set.xlsx").write_bytes(b"lock")  # while it is open in a spreadsheet
    found = read_dataset("manifest", str(images))
    assert [(sample.key, sample.group, sample.mpp) for sample in found.samples] == expected


@pytest.mark.parametrize(
    "groups", [pa.array([11, 7]), pa.array([11.0, 7.0]), pa.array([b"11", b"7"]), pa.array(["11", "7"]).dictionary_encode()]
)
def test_groups_and_labels_are_text_whatever_their_type(images, groups):
    table = pa.table({"path": ["img/a.png", "img/b.png"], "label": groups, "group": groups})
    pq.write_table(table, images / "set.parquet")
    found = read_dataset("manifest", str(images / "set.parquet"))
    assert [sample.group for sample in found.samples] == ["11", "7"] and found.info.classes == ("11", "7")


def test_a_name_that_is_not_utf8_in_a_table(images):
    write(images / "img" / os.fsdecode(b"\xe4.png"), picture(9))
    found = read_dataset("manifest", table(images, "path,label", r"img/\xe4.png,x", "img/a.png,y"))
    assert (load_sample(only(found, r"img/\xe4.png")).image == picture(9)).all()


def test_a_row_can_be_a_point_of_an_image(images):
    lines = ["path,label,x,y,group,split", "img/a.png,lymph,12,10,a,train", "img/a.png,other,1.4,19,a,train"]
    lines += ["img/a.png,?,3,3,a,train", "img/b.png,lymph,8,8,b,test", "img/a.png,lymph,12,10,a,train"]
    path = table(images, *lines)
    found = read_dataset("manifest", path, options={"window_px": 6, "leave_out": ["?"]})
    check_set(found, name="manifest", classes=("lymph", "other"), licence="not stated", mpp=None)
    assert [(sample.key, sample.window, sample.group) for sample in found.samples] == [
        ("img/a.png@00001", (9, 7, 6), "a"),
        ("img/a.png@00002", (-2, 16, 6), "a"),
        ("img/a.png@00003", (9, 7, 6), "a"),  # two points at one place
        ("img/b.png@00001", (5, 5, 6), "b"),
    ]
    whole = picture(0)
    inside, outside, _, other = (load_sample(sample).image for sample in found.samples)
    assert (inside == whole[7:13, 9:15]).all() and (other == picture(1)[5:11, 5:11]).all()
    mirrored = np.pad(whole, ((6, 6), (6, 6), (0, 0)), mode="symmetric")
    assert (outside == mirrored[22:28, 4:10]).all()


@pytest.mark.parametrize(
    ("lines", "task", "options", "message"),
    [
        (["path,label", "img/a.png,x"], None, {"window_px": 6}, "there is no column 'x', 'y'"),
        (["path,label,x,y", "img/a.png,x,far,1"], None, {"window_px": 6}, "line 2: 'far' in column 'x' is no number"),
        (["path,label,x,y", "img/a.png,x,1,"], None, {"window_px": 6}, "line 2: column 'y' is empty"),
        (["path,label,x,y", "img/a.png,x,1,1"], None, {"window_px": 0}, "window_px is an edge of at least 1 px, not 0"),
        (["path,mask,label,x,y", "img/a.png,m.png,x,1,1"], "segmentation", {"window_px": 6}, "are for a classification"),
    ],
)
def test_points_that_are_none(images, lines, task, options, message):
    with pytest.raises((ConfigError, DatasetError), match=message):
        read_dataset("manifest", table(images, *lines), task=task, options=options)


class TestRealTables:
    """Sets whose table says it all, with the settings of docs/datasets.md."""

    def test_cells_by_their_centres(self, shared_data):
        root = shared_data("crchisto")
        options = {"path": "image", "label": "type", "group": "image", "image_root": str(root / "images")}
        found = read_dataset("manifest", str(root), options={**options, "window_px": 64, "leave_out": ["unclassified"]})
        assert len(found.samples) == 22_444 and len({sample.group for sample in found.samples}) == 100
        assert found.info.classes == ("epithelial", "fibroblast", "inflammatory", "others")
        counts = [sum(sample.label == index for sample in found.samples) for index in range(4)]
        assert counts == [7722, 5712, 6971, 2039]
        splits = split_set(found, SplitConfig())  # refuses an image in two of them
        assert [len({sample.group for sample in splits[name]}) for name in ("train", "val", "test")] == [70, 10, 20]
        assert all(load_sample(sample).image.shape == (64, 64, 3) for sample in found.samples[:300])

    def test_polyps_by_their_slides(self, shared_data):
        options = {"path": "file", "group": "stain_group"}
        found = read_dataset("manifest", str(shared_data("crc_polyp5")), options=options)
        assert found.info.classes == ("AC", "H", "S", "T", "V") and len(found.samples) == 2000
        splits = split_set(found, SplitConfig())
        groups = {name: {sample.group for sample in samples} for name, samples in splits.items()}
        assert len(splits["test"]) == 500 and not groups["test"] & (groups["train"] | groups["val"])
        assert {sample.label for sample in splits["val"]} == set(range(5)) == {sample.label for sample in splits["train"]}

    def test_cases_of_osteosarcoma(self, shared_data):
        root = shared_data("osteosarcoma_mini")
        options = {"path": "file", "group": "case", "image_root": str(root / "images")}
        found = read_dataset("manifest", str(root), options=options)
        assert len(found.samples) == 60 and len({sample.group for sample in found.samples}) == 4
        assert load_sample(found.samples[0]).image.shape == (1024, 1024, 3)

    def test_tiles_without_labels_are_slides_of_their_own(self, shared_data):
        rows = list_slides([str(shared_data("tcga_tiles_unlabelled") / "images")])
        assert len(rows) == 240 and {row.kind for row in rows} == {"image"}
