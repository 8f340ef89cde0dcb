"""Tables that come with data sets (csv, parquet, xlsx) as rows, and errors that list the columns that are there."""

import csv
import io
from collections.abc import Sequence
from typing import Any

import openpyxl
import pyarrow.parquet as pq

from csat.data import storage
from csat.errors import DatasetError

FIRST_ROW = 2  # of the data as an editor counts: the header is line 1
READERS = (".csv", ".tsv", ".parquet", ".xlsx")

Row = dict[str, Any]


def read_rows(uri: str, *, needs: Sequence[str] = ()) -> list[Row]:
    """A table's rows, columns by name. Cells of a csv are text without the space around it; empty ones are "" or None.

    Args:
        uri: Of a csv or tsv (comma, semicolon or tab), a parquet, or an xlsx (its first sheet).
        needs: Columns that must be there.

    Raises:
        DatasetError: it cannot be read as a table, or lacks a column (those that it has are listed).
        StorageError: there is no such file.
    """
    suffix = next((suffix for suffix in READERS if uri.lower().endswith(suffix)), None)
    if suffix is None:
        raise DatasetError(f"{uri}: a table is {' or '.join(READERS)}")
    data = storage.read_bytes(uri)
    try:
        columns, rows = {".parquet": _read_parquet, ".xlsx": _read_xlsx}.get(suffix, _read_csv)(data)
    except Exception as error:  # each format's parser has its own family of errors
        raise DatasetError(f"{uri}: cannot be read as {suffix[1:]}: {type(error).__name__}: {error}") from error
    require_columns(columns, needs, uri)
    return rows


def require_columns(columns: Sequence[str], needs: Sequence[str], uri: str) -> None:
    """Refuse a table that lacks a column. Raises DatasetError listing those that it has."""
    if missing := [name for name in dict.fromkeys(needs) if name not in columns]:
        raise DatasetError(
            f"{uri}: there is no column {', '.join(map(repr, missing))}; its columns are: {', '.join(map(repr, columns))}"
        )


def is_empty(cell: Any) -> bool:
    """Whether a cell says nothing: None, NaN or blank text."""
    return cell is None or cell != cell or not str(cell).strip()


def text(cell: Any) -> str:
    """A cell as text; whole numbers without the point that a spreadsheet or a column with gaps gives them."""
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell).strip()


def _read_csv(data: bytes) -> tuple[list[str], list[Row]]:
    table = data.decode("utf-8-sig")
    header = table.partition("\n")[0]
    delimiter = max(",;\t", key=header.count)
    reader = csv.DictReader(io.StringIO(table, newline=""), delimiter=delimiter, skipinitialspace=True)
    columns = [name.strip() for name in reader.fieldnames or ()]
    reader.fieldnames = columns
    return columns, [{name: (cell or "").strip() for name, cell in row.items() if name is not None} for row in reader]


def _read_parquet(data: bytes) -> tuple[list[str], list[Row]]:
    table = pq.read_table(io.BytesIO(data))
    return table.column_names, table.to_pylist()


def _read_xlsx(data: bytes) -> tuple[list[str], list[Row]]:
    book = openpyxl.load_workbook(io.BytesIO(data), read_only=True, data_only=True)
    try:
        cells = book.worksheets[0].iter_rows(values_only=True)
        columns = ["" if name is None else str(name).strip() for name in next(cells, ())]
        rows = [dict(zip(columns, row, strict=False)) for row in cells if not all(map(is_empty, row))]
        return columns, rows
    finally:
        book.close()
