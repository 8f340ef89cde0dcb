import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from csat.errors import DatasetError, StorageError
from csat.storage.tables import read_rows
from csat.words import text


@pytest.mark.parametrize(
    "name, data",
    [
        ("a.csv", "path,label\nx.png, tumor \ny.png,\n"),
        ("a.csv", "\ufeffpath;label\r\nx.png;tumor\r\n\r\ny.png;\r\n"),
        ("a.tsv", "path\tlabel\nx.png\ttumor\ny.png\n"),
        ("a.CSV", 'path, label\n"x.png","tumor"\ny.png,""\n'),
    ],
    ids=["comma", "semicolon, mark of order, blank line", "tab, short line", "quotes, space in the head"],
)
def test_csv_in_its_varieties(name, data, tmp_path):
    (tmp_path / name).write_text(data, encoding="utf-8", newline="")
    assert read_rows(str(tmp_path / name)) == [{"path": "x.png", "label": "tumor"}, {"path": "y.png", "label": ""}]


def test_a_quoted_cell_may_hold_a_line_end(tmp_path):
    (tmp_path / "a.csv").write_text('path,note\nx.png,"two\nlines"\n')
    assert read_rows(str(tmp_path / "a.csv")) == [{"path": "x.png", "note": "two\nlines"}]


def test_parquet_and_xlsx(tmp_path):
    pq.write_table(pa.table({"path": ["x.png", "y.png"], "patient": [1, None]}), tmp_path / "a.parquet")
    assert read_rows(str(tmp_path / "a.parquet")) == [{"path": "x.png", "patient": 1}, {"path": "y.png", "patient": None}]
    book = openpyxl.Workbook()
    for row in (["path ", "patient"], ["x.png", 1], [None, None], ["y.png", None]):
        book.active.append(row)
    book.save(tmp_path / "a.xlsx")
    assert read_rows(str(tmp_path / "a.xlsx")) == [{"path": "x.png", "patient": 1}, {"path": "y.png", "patient": None}]


def test_a_missing_column_lists_those_that_are_there(tmp_path):
    (tmp_path / "a.csv").write_text("path,label\nx.png,tumor\n")
    with pytest.raises(DatasetError, match="a.csv: there is no column 'group'; its columns are: 'path', 'label'"):
        read_rows(str(tmp_path / "a.csv"), needs=["path", "group"])


def test_what_is_no_table(tmp_path):
    with pytest.raises(DatasetError, match="a.txt: a table is .csv or .tsv or .parquet or .xlsx"):
        read_rows(str(tmp_path / "a.txt"))
    for name in ("a.parquet", "a.xlsx"):
        (tmp_path / name).write_bytes(b"no table")
        with pytest.raises(DatasetError, match=f"{name}: cannot be read as {name[2:]}"):
            read_rows(str(tmp_path / name))
    (tmp_path / "a.csv").write_bytes(b"path\n\xff\xfe\xfa\n")
    with pytest.raises(DatasetError, match="a.csv: cannot be read as csv: it is not UTF-8.*save it as CSV UTF-8"):
        read_rows(str(tmp_path / "a.csv"))
    with pytest.raises(StorageError, match="b.csv"):
        read_rows(str(tmp_path / "b.csv"))


def test_rows_without_content_and_leading_zeros(tmp_path):
    (tmp_path / "a.csv").write_text("path;id\r\nx.png;007\r\n;\r\n; \r\ny.png;1\r\n;\r\n", newline="")
    book = openpyxl.Workbook()
    for row in (["path", "id"], ["x.png", 7], ["", None], [" ", None], ["y.png", 1]):
        book.active.append(row)
    book.active["B2"].number_format = "000"
    book.save(tmp_path / "a.xlsx")
    for name in ("a.csv", "a.xlsx"):
        rows = read_rows(str(tmp_path / name))
        assert [(row.line, row["path"], text(row["id"])) for row in rows] == [(2, "x.png", "007"), (5, "y.png", "1")]


def test_text_of_a_parquet_that_is_not_utf8(tmp_path):
    raw = pa.array([b"Pr\xe4parat.png", None], pa.binary())
    column = pa.Array.from_buffers(pa.string(), 2, raw.buffers())
    pq.write_table(pa.table({"path": column, "label": ["a", "b"]}), tmp_path / "a.parquet")
    assert [row["path"] for row in read_rows(str(tmp_path / "a.parquet"))] == [r"Pr\xe4parat.png", None]
