"""Which slides are found, in which order, and what is said when none is."""

import os
import random

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from csat.errors import ConfigError, StorageError
from csat.storage import files
from csat.tiles.sources import SlideRow, list_slides


@pytest.fixture(params=["local", "s3"])
def root(request, tmp_path):
    return str(tmp_path) if request.param == "local" else f"{request.getfixturevalue('s3')}/cohort"


def fill(root, *names):
    for name in names:
        files.write_bytes(files.join(root, name), b"x")


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
    files.write_bytes(files.join(root, "list.csv"), text.encode())
    by_name = {row.slide: row for row in list_slides([f"{root}/list.csv"])}
    assert by_name == {
        f"{root}/slides/a.svs": SlideRow(slide=f"{root}/slides/a.svs", kind="wsi", patient="P1", mpp=0.25),
        "s3://other/b.tif": SlideRow(slide="s3://other/b.tif", kind="wsi"),
        "/abs/c.ndpi": SlideRow(slide="/abs/c.ndpi", kind="wsi", patient="P2", mpp=0.5),
    }


def test_a_csv_adds_to_what_a_folder_finds(root):
    fill(root, "a.svs", "b.svs")
    files.write_bytes(files.join(root, "list.csv"), b"slide,patient\na.svs,P1\n")
    assert [row.patient for row in list_slides([root, f"{root}/list.csv"])] == ["P1", None]


def test_a_text_list_is_relative_to_itself(root):
    files.write_bytes(files.join(root, "list.txt"), b"# mine\nsub/b.svs\n\n  a.png \n/with#hash.svs\n")
    assert [row.slide for row in list_slides([f"{root}/list.txt"])] == sorted(
        ["/with#hash.svs", f"{root}/a.png", f"{root}/sub/b.svs"]
    )


def test_source_mpp_is_passed_on_and_is_nobodys_own(root):
    fill(root, "a.svs", "b.png")
    write_parquet(root, "c.parquet", mpp=pa.array([0.5] * 3))
    assert [(row.mpp, row.source_mpp) for row in list_slides([root], source_mpp=0.25)] == [(None, 0.25)] * 3


def write_parquet(root, name, **columns):
    table = pa.table({"image": pa.array([b"x", b"y", b"z"], pa.binary()), **columns})
    with files.open_output(files.join(root, name)) as file:
        pq.write_table(table, file, row_group_size=2)
    return files.join(root, name)


def test_a_parquet_is_one_row_that_knows_its_tiles(root):
    write_parquet(root, "a.parquet", mpp=pa.array([0.5] * 3), patient=["P1"] * 3)
    write_parquet(root, "b.parquet", mpp=pa.array([0.5, 0.5, 0.25]), patient=["P1", "P2", "P1"])
    one, several = list_slides([root])
    assert (one.kind, one.num_tiles, one.patient) == ("parquet", 3, "P1")
    assert (several.num_tiles, several.patient) == (3, None)


def test_a_damaged_parquet_among_good_ones_is_left_to_the_quarantine(root):
    write_parquet(root, "good.parquet")
    fill(root, "damaged.parquet")
    assert [row.num_tiles for row in list_slides([root])] == [None, 3]


def test_a_parquet_without_images_says_what_it_has(root):
    with files.open_output(files.join(root, "a.parquet")) as file:
        pq.write_table(pa.table({"picture": [b"x"], "label": [1]}), file)
    with pytest.raises(ConfigError, match="needs a column `image`.*it has: picture binary, label int64"):
        list_slides([root])


def test_a_parquet_whose_row_groups_cannot_be_held_says_how_to_write_it(root, monkeypatch):
    monkeypatch.setattr("csat.slides.parquet.MAX_ROW_GROUP_BYTES", 10)
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
    with pytest.raises(ConfigError, match="data.source_mpp is 250"):
        list_slides([str(tmp_path)], source_mpp=250)


SPELLED = r"Pr\xe4parat.svs"  # a Latin-1 byte in a name, see `csat.storage.uris`


def test_a_list_is_read_as_the_tables_of_labelled_sets_are(tmp_path):
    """As spreadsheets of many countries write it: semicolons, a mark of order, a decimal comma, rows without content."""
    texts = {
        "excel.csv": "\ufeffslide;patient;mpp\r\na.svs;007;0,25\r\n;;\r\nb.svs;;\r\n;;\r\n",
        "hinted.csv": "sep=;\nslide;patient;mpp\na.svs;007;0,25\nb.svs\n",
        "tabs.tsv": "slide\tpatient\tmpp\na.svs\t007\t0.25\nb.svs\n",
    }
    for name, content in texts.items():
        (tmp_path / name).write_text(content, encoding="utf-8", newline="")
    book = openpyxl.Workbook()
    for row in (["slide", "patient", "mpp"], ["a.svs", 7, 0.25], [None, " ", None], ["b.svs", None, None]):
        book.active.append(row)
    book.active["B2"].number_format = "000"  # is shown as 007
    book.save(tmp_path / "book.xlsx")
    rows = {"slide": ["a.svs", "b.svs"], "patient": ["007", None], "mpp": [0.25, None]}
    pq.write_table(pa.table(rows), tmp_path / "list.parquet")
    expected = [
        SlideRow(slide=f"{tmp_path}/a.svs", kind="wsi", patient="007", mpp=0.25),
        SlideRow(slide=f"{tmp_path}/b.svs", kind="wsi"),
    ]
    for name in (*texts, "book.xlsx", "list.parquet"):
        assert list_slides([f"{tmp_path}/{name}"]) == expected, name


def test_a_line_is_the_one_that_an_editor_shows(tmp_path):
    (tmp_path / "list.csv").write_text("sep=,\nslide,mpp\n\na.svs,0.25\n,,\nb.svs,20x\n")
    with pytest.raises(ConfigError, match="line 6: mpp must be"):
        list_slides([str(tmp_path / "list.csv")])
    (tmp_path / "list.csv").write_text("slide,mpp\na.svs,0,25\n")
    with pytest.raises(ConfigError, match="line 2 has 3 cells and the header 2; a cell with ',' in it .a decimal comma"):
        list_slides([str(tmp_path / "list.csv")])


@pytest.mark.parametrize(
    "patients",
    [
        pa.array([11] * 3),
        pa.array([11] * 3, pa.uint8()),
        pa.array([11.0] * 3),
        pa.array(["11"] * 3).dictionary_encode(),
        pa.array(["11 "] * 3, pa.large_string()),
        pa.array([b"11"] * 3, pa.binary()),
    ],
    ids=lambda patients: str(patients.type),
)
def test_ids_are_text_however_a_parquet_stores_them(tmp_path, patients):
    """A footer that knows the one patient says so, as the rows do (of floats it does not: NaN may be among them)."""
    write_parquet(str(tmp_path), "a.parquet", patient=patients)
    assert list_slides([str(tmp_path)])[0].patient == (None if pa.types.is_floating(patients.type) else "11")


def test_a_patient_that_is_not_utf8_is_no_reason_to_stop(tmp_path):
    """Other programs write bytes of any encoding into columns of text."""
    raw = pa.array([b"M\xfcller"] * 3, pa.binary())
    write_parquet(str(tmp_path), "a.parquet", patient=pa.Array.from_buffers(pa.string(), 3, raw.buffers()))
    assert list_slides([str(tmp_path)])[0].patient == r"M\xfcller"


def test_names_that_are_not_utf8_are_found_and_listed(tmp_path):
    folder = tmp_path / os.fsdecode(b"Sch\xe4den")
    folder.mkdir()
    (folder / os.fsdecode(b"Pr\xe4parat.svs")).touch()
    (folder / "list.txt").write_bytes(b"Pr\xe4parat.svs\n")  # as ls writes it
    (folder / "list.csv").write_text(f"slide,patient\n{SPELLED},1\n")
    found = list_slides([str(folder)])
    assert [row.slide for row in found] == [f"{tmp_path}/Sch\\xe4den/{SPELLED}"]
    for place in ("list.txt", "list.csv", "Pr*"):
        assert [row.slide for row in list_slides([f"{folder}/{place}"])] == [found[0].slide]


def test_what_is_passed_over_is_counted_in_one_line(root, caplog):
    fill(root, "a.svs", "a.png", "b.mrxs", "b/Data0.dat", "b/Slidedat.ini", "c/d.png", "notes.xml", "more.XML", "README")
    fill(root, "@eaDir/a.svs/thumb.jpg", "c/Thumbs.db", "c/.git/x.png", "list.csv")

    def said():
        return [record.message for record in caplog.records if record.name == "csat.tiles.sources"]

    with caplog.at_level("INFO"):
        assert names_of(list_slides([root]), root) == ["a.svs", "b.mrxs", "c/d.png"]
    assert said() == [
        f"folder {root!r}: passed over 3 x file that belongs to a slide, 2 x .xml, 1 x .csv, 1 x .git, 1 x @eaDir, "
        "1 x Thumbs.db, 1 x no ending"
    ]
    caplog.clear()
    with caplog.at_level("INFO"):
        list_slides([f"{root}/c"])  # nothing but leftovers beside the image
        list_slides([f"{root}/a.svs"])
    assert said() == [f"folder '{root}/c': passed over 1 x .git, 1 x Thumbs.db"]
