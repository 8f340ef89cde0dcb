"""Encoded tiles in parquet: the right one, whatever the order, without reading the whole file."""

import io
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from csat.errors import SlideError
from csat.slides import parquet
from csat.slides.mpp import choose_mpp
from csat.slides.parquet import ParquetReader
from csat.storage import files
from csat.storage.tables import numbers_of


def png(value: int, edge_px: int = 8) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (edge_px, edge_px), (value, value, value)).save(buffer, "PNG")
    return buffer.getvalue()


def write(uri, cells, kind="binary", row_group_size=4, **columns):
    values = {
        "binary": lambda: pa.array(cells, pa.binary()),
        "large_binary": lambda: pa.array(cells, pa.large_binary()),
        "struct": lambda: pa.array([{"bytes": cell, "path": "x.png"} for cell in cells]),
    }[kind]()
    with files.open_output(uri) as file:
        pq.write_table(pa.table({"image": values, **columns}), file, row_group_size=row_group_size)
    return uri


@pytest.mark.parametrize("kind", ["binary", "large_binary", "struct"])
def test_every_row_is_its_own_tile(tmp_path, kind):
    uri = write(str(tmp_path / "a.parquet"), [png(value) for value in range(10)], kind)
    reader = ParquetReader(uri, choose_mpp(given=0.5))
    assert (reader.num_rows, reader.levels, reader.mpp) == (10, [(8, 8, 1.0)], 0.5)
    assert reader.row_groups == [(0, 4), (4, 4), (8, 2)]
    for row in (7, 0, 9, 3, 4, 7):
        assert (reader.read(0, 0, 0, 8, row=row) == row).all()
    assert (reader.read(4, 4, 0, 8, row=2)[4:, 4:] == 255).all()
    reader.close()


def test_a_parquet_in_a_bucket_is_read_by_ranges(s3):
    reader = ParquetReader(write(f"{s3}/my tiles.parquet", [png(value) for value in range(10)]), None)
    assert (reader.read(0, 0, 0, 8, row=9) == 9).all()


def test_row_groups_are_read_once_and_memory_is_bounded(tmp_path, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 256, (12, 64, 64, 3), dtype=np.uint8)
    cells = []
    for pixels in noise:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        cells.append(buffer.getvalue())
    monkeypatch.setattr(parquet, "GROUP_CACHE_BYTES", 5 * len(cells[0]))  # two groups of two tiles
    reader = ParquetReader(write(str(tmp_path / "a.parquet"), cells, row_group_size=2), None)
    reads, read = [], reader._file.read_row_group
    monkeypatch.setattr(
        reader,
        "_file",
        type("Counted", (), {"read_row_group": lambda self, group, **kw: reads.append(group) or read(group, **kw)})(),
    )
    for row in [0, 1, 2, 3, 0, 1, 4, 5, 2]:
        np.testing.assert_array_equal(reader.read(0, 0, 0, 64, row=row), noise[row])
        assert reader.num_bytes <= 5 * len(cells[0])
    assert reads == [0, 1, 2, 1], "4 evicted group 1, which was used least recently"


def test_one_bad_row_is_quarantined_by_itself(tmp_path):
    cells = [b"no image", png(1), None, png(3, edge_px=16), png(4), b""]
    reader = ParquetReader(write(str(tmp_path / "a.parquet"), cells), None)
    for row, message in [
        (0, "row 0, column image: cannot be decoded"),
        (2, "row 2, column image.*no bytes"),
        (3, "row 3, column image: 16 x 16 px.* 8 x 8"),
        (5, "row 5, column image: is empty"),
    ]:
        with pytest.raises(SlideError, match=message) as caught:
            reader.read(0, 0, 0, 8, row=row)
        assert caught.value.reason == "unreadable"
    assert (reader.read(0, 0, 0, 8, row=4) == 4).all()
    with pytest.raises(SlideError, match="6 rows, and so no row 6"):
        reader.read(0, 0, 0, 8, row=6)


def test_an_odd_first_tile_is_the_odd_one(tmp_path):
    reader = ParquetReader(
        write(str(tmp_path / "a.parquet"), [png(0, edge_px=16), *[png(value) for value in range(1, 10)]]), None
    )
    assert reader.levels == [(8, 8, 1.0)] and (reader.read(0, 0, 0, 8, row=9) == 9).all()
    with pytest.raises(SlideError, match="row 0, column image: 16 x 16 px, but most of the file's first tiles have 8 x 8"):
        reader.read(0, 0, 0, 8, row=0)


@pytest.mark.parametrize(
    ("column", "numbers", "others"),
    [
        (pa.array([0.5, None, np.nan, -1.0]), [0.5, np.nan, np.nan, -1.0], {}),
        (pa.array([1, None], pa.int16()), [1.0, np.nan], {}),
        (pa.array(["0,25", " ", None, "40x"]), [0.25, np.nan, np.nan, np.nan], {3: "40x"}),
        (pa.array([Decimal("0.25"), None]), [0.25, np.nan], {}),
        (pa.array([[0.25], None]), [np.nan, np.nan], {0: [0.25]}),
    ],
)
def test_numbers_are_read_from_whatever_stores_them(column, numbers, others):
    found, rest = numbers_of(pa.chunked_array([column]))
    np.testing.assert_array_equal(found, numbers)
    assert rest == others


def test_files_that_cannot_be_opened(tmp_path):
    whole = write(str(tmp_path / "a.parquet"), [png(1)] * 4)
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-30])
    (tmp_path / "empty.parquet").touch()
    write(str(tmp_path / "none.parquet"), [])
    write(str(tmp_path / "junk.parquet"), [b"junk"] * 3)
    for name, reason in [
        ("cut", "unreadable"),
        ("empty", "unreadable"),
        ("none", "unreadable"),
        ("junk", "unreadable"),
        ("gone", "missing"),
    ]:
        with pytest.raises(SlideError, match=f"{name}.parquet") as caught:
            ParquetReader(str(tmp_path / f"{name}.parquet"), None)
        assert caught.value.reason == reason
    assert ParquetReader(whole, None).num_rows == 4


def test_metadata_columns(tmp_path):
    uri = write(str(tmp_path / "a.parquet"), [png(1)] * 2, patient=["P1", "P2"], label=[0, 1])
    assert ParquetReader(uri, None).metadata().to_pydict() == {"patient": ["P1", "P2"]}
