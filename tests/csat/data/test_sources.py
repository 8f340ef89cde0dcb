"""Which slides are found, in which order, and what is said when none is."""

import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from csat.data import storage
from csat.data.sources import SlideRow, list_slides
from csat.errors import ConfigError, StorageError


@pytest.fixture(params=["local", "s3"])
def root(request, tmp_path):
    return str(tmp_path) if request.param == "local" else f"{request.getfixturevalue('s3')}/cohort"


def fill(root, *names):
    for name in names:
        storage.write_bytes(storage.join(root, name), b"x")


def names_of(rows, root):
    return [row.slide.removeprefix(root + "/") for row in rows]


def test_a_folder_is_searched_at_any_depth_and_sorted(root):
    fill(
        root,
        "b.svs",
        "a/z.NDPI",
        "a/deep/y.tiff",
        "c.png",
        "readme.md",
        ".hidden.svs",
        "m.mrxs",
        "m/Data.dat",
        "m/Slidedat.ini",
    )
    rows = list_slides([root])
    assert names_of(rows, root) == ["a/deep/y.tiff", "a/z.NDPI", "b.svs", "c.png", "m.mrxs"]
    assert [row.kind for row in rows] == ["wsi", "wsi", "wsi", "image", "wsi"]


def test_images_that_belong_to_a_slide_are_not_slides(root):
    fill(root, "s.svs", "s.png", "s.nuclei.png", "s2.png", "d/s.png", "v.vms", "v-0.jpg", "v_macro.jpg", "w.jpg")
    assert names_of(list_slides([root]), root) == ["d/s.png", "s.svs", "s2.png", "v.vms", "w.jpg"]


def test_patterns_match_files_and_folders(root):
    fill(root, "x1.svs", "x2.svs", "y.svs", "x.txt", "deep/er/x3.svs", "x[1].svs")
    assert names_of(list_slides([f"{root}/x*.svs"]), root) == ["x1.svs", "x2.svs", "x[1].svs"]
    assert names_of(list_slides([f"{root}/**/x?.svs"]), root)[0] == "deep/er/x3.svs"
    assert names_of(list_slides([f"{root}/*"]), root) == ["deep/er/x3.svs", "x1.svs", "x2.svs", "x[1].svs", "y.svs"]
    assert names_of(list_slides([f"{root}/x[1].svs"]), root) == ["x[1].svs"], "a real name wins over a pattern"


def test_the_order_of_the_arguments_does_not_matter_and_each_slide_counts_once(root):
    fill(root, *(f"{index}.svs" for index in range(5)))
    places = [root, f"{root}/*.svs", f"{root}/3.svs", f"{root}/1.svs"]
    first = list_slides(places)
    random.Random(0).shuffle(places)
    assert list_slides(places) == first and len(first) == 5


def test_a_csv_gives_patient_and_mpp_and_is_relative_to_itself(root):
    fill(root, "slides/a.svs")
    text = "\ufeffpatient, slide,mpp,stain\nP1,slides/a.svs,0.25,HE\n,s3://other/b.tif,,HE\nP2,/abs/c.ndpi,0.5,\n"
    storage.write_bytes(storage.join(root, "list.csv"), text.encode())
    by_name = {row.slide: row for row in list_slides([f"{root}/list.csv"])}
    assert by_name == {
        f"{root}/slides/a.svs": SlideRow(slide=f"{root}/slides/a.svs", kind="wsi", patient="P1", mpp=0.25),
        "s3://other/b.tif": SlideRow(slide="s3://other/b.tif", kind="wsi"),
        "/abs/c.ndpi": SlideRow(slide="/abs/c.ndpi", kind="wsi", patient="P2", mpp=0.5),
    }


def test_a_csv_adds_to_what_a_folder_finds(root):
    fill(root, "a.svs", "b.svs")
    storage.write_bytes(storage.join(root, "list.csv"), b"slide,patient\na.svs,P1\n")
    assert [row.patient for row in list_slides([root, f"{root}/list.csv"])] == ["P1", None]


def test_a_text_list_is_relative_to_itself(root):
    storage.write_bytes(storage.join(root, "list.txt"), b"# mine\nsub/b.svs\n\n  a.png \n/with#hash.svs\n")
    assert [row.slide for row in list_slides([f"{root}/list.txt"])] == sorted(
        ["/with#hash.svs", f"{root}/a.png", f"{root}/sub/b.svs"]
    )


def test_source_mpp_is_for_what_cannot_say_its_own(root):
    fill(root, "a.svs", "b.png")
    assert [row.mpp for row in list_slides([root], source_mpp=0.25)] == [None, 0.25]


def write_parquet(root, name, **columns):
    table = pa.table({"image": pa.array([b"x", b"y", b"z"], pa.binary()), **columns})
    with storage.open_output(storage.join(root, name)) as file:
        pq.write_table(table, file, row_group_size=2)
    return storage.join(root, name)


def test_a_parquet_is_one_row_that_knows_its_tiles(root):
    write_parquet(root, "a.parquet", mpp=pa.array([0.5] * 3), patient=["P1"] * 3)
    write_parquet(root, "b.parquet", mpp=pa.array([0.5, 0.5, 0.25]), patient=["P1", "P2", "P1"])
    one, several = list_slides([root])
    assert (one.kind, one.num_tiles, one.mpp, one.patient) == ("parquet", 3, 0.5, "P1")
    assert (several.num_tiles, several.mpp, several.patient) == (3, None, None)


def test_a_damaged_parquet_among_good_ones_is_left_to_the_quarantine(root):
    write_parquet(root, "good.parquet")
    fill(root, "damaged.parquet")
    assert [row.num_tiles for row in list_slides([root])] == [None, 3]


def test_a_parquet_without_images_says_what_it_has(root):
    with storage.open_output(storage.join(root, "a.parquet")) as file:
        pq.write_table(pa.table({"picture": [b"x"], "label": [1]}), file)
    with pytest.raises(ConfigError, match="needs a column `image`.*it has: picture binary, label int64"):
        list_slides([root])


def test_a_parquet_whose_row_groups_cannot_be_held_says_how_to_write_it(root, monkeypatch):
    monkeypatch.setattr("csat.data.parquet_tiles.MAX_ROW_GROUP_BYTES", 10)
    write_parquet(root, "a.parquet")
    with pytest.raises(ConfigError, match="row_group_size"):
        list_slides([root])


def test_an_empty_pattern_says_what_there_is(root):
    fill(root, "slides/a.ndpi")
    with pytest.raises(ConfigError, match=r"no file matches .*slides/\*\.svs.*holds a\.ndpi"):
        list_slides([f"{root}/slides/*.svs"])
    with pytest.raises(ConfigError, match=r"no file matches .*holds slides"):
        list_slides([f"{root}/nowhere/else/*.svs"])


def test_an_empty_folder_and_one_without_slides(root, tmp_path):
    fill(root, "n/a.md", "n/b.md", "n/c.xml")
    with pytest.raises(ConfigError, match=r"found 2 x \.md, 1 x \.xml; expected \.svs"):
        list_slides([f"{root}/n"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="found nothing at all"):
        list_slides([str(tmp_path / "empty")])


def test_a_place_that_does_not_exist_says_what_does(root):
    fill(root, "slides/a.svs")
    with pytest.raises(StorageError, match=r"there is no file or folder .*slides/b\.svs.*holds a\.svs"):
        list_slides([f"{root}/slides/b.svs"])


def test_a_bucket_that_does_not_exist(s3):
    with pytest.raises((ConfigError, StorageError), match="no-such-bucket-at-all"):
        list_slides(["s3://no-such-bucket-at-all/x/*.svs"])
    with pytest.raises((ConfigError, StorageError), match="no-such-bucket-at-all"):
        list_slides(["s3://no-such-bucket-at-all/x"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,mpp\na.svs,1\n", r"list\.csv: there is no column 'slide'; its columns are: 'file', 'mpp'. A list"),
        ("slide\n", r"list\.csv: the list names no slides"),
        ("slide,mpp\na.svs,0.25\n,0.25\n", "line 3: the cell `slide` is empty"),
        ("slide,mpp\na.svs,20x\n", "line 2: mpp must be a number of micrometres per pixel, not '20x'"),
        ("slide,mpp\na.svs,0.00025\n", "line 2: mpp is 0.00025: expected micrometres per pixel"),
        ("slide,mpp\na.svs,nan\n", "line 2: mpp is nan"),
        ("slide\na.docx\n", r"line 2: 'a\.docx' is no slide"),
        ("slide,mpp\na.svs,0.25\na.svs,0.5\n", "named twice, with mpp 0.25 and 0.5"),
        ("slide\ns4://b/a.svs\n", "scheme s4:// is not supported"),
    ],
)
def test_a_list_that_cannot_be_understood_names_the_line(tmp_path, text, message):
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises((ConfigError, StorageError), match=message):
        list_slides([str(tmp_path / "list.csv")])


def test_other_wrong_requests(tmp_path):
    (tmp_path / "a.docx").touch()
    (tmp_path / "latin.csv").write_bytes("slide\nGewebe-\xe4.svs\n".encode("latin-1"))
    for places, message in [
        ([], "no slides given"),
        ([str(tmp_path / "a.docx")], "no kind of file that can be read here"),
        ([str(tmp_path / "latin.csv")], "not UTF-8"),
        (["http://host/a.svs"], "scheme http:// is not supported"),
    ]:
        with pytest.raises((ConfigError, StorageError), match=message):
            list_slides(places)
    with pytest.raises(ConfigError, match="--data.source_mpp is 250"):
        list_slides([str(tmp_path)], source_mpp=250)
