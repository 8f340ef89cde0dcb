"""Tables that list images or slides (csv, parquet, xlsx) as rows, and errors that list the columns that are there."""

import csv
import io
import re
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from csat.errors import DatasetError
from csat.storage import files
from csat.words import is_empty, number, printable, text

READERS = (".csv", ".tsv", ".parquet", ".xlsx")
FIRST_LINE = 2  # of the rows of a parquet or xlsx as an editor counts: the header is line 1


class Row(dict[str, Any]):
    """Cells by their column.

    Attributes:
        line: Where an editor shows the row; of a csv with line ends within cells, where it ends.
    """

    def __init__(self, cells: Iterable[tuple[str, Any]], line: int):
        super().__init__(cells)
        self.line = line


def read_rows(uri: str, *, needs: Sequence[str] = ()) -> list[Row]:
    """A table's rows, columns by name; rows without any content are passed over.

    Cells of a csv are text without the space around it; empty ones are "". Others are as they are stored, but text of a
    parquet is made printable, and a whole number that a spreadsheet shows with leading zeros is text that has them.

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
    data = files.read_bytes(uri)
    try:
        columns, rows = {".parquet": _read_parquet, ".xlsx": _read_xlsx}.get(suffix, _read_csv)(data)
    except UnicodeDecodeError as error:
        raise DatasetError(
            f"{uri}: cannot be read as {suffix[1:]}: it is not UTF-8 text ({error}); save it as CSV UTF-8. A file name "
            r"that is not UTF-8 itself is written with its bytes as \xe4"
        ) from error
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


def _read_csv(data: bytes) -> tuple[list[str], list[Row]]:
    table = data.decode("utf-8-sig")
    start = table.partition("\n")[0].strip()
    num_above = int(re.fullmatch("sep=[,;\t]", start, re.IGNORECASE) is not None)  # what Excel is told by, above the header
    if num_above:
        table = table.partition("\n")[2]
    header = table.partition("\n")[0]
    delimiter = max(",;\t", key=header.count)
    reader = csv.reader(io.StringIO(table, newline=""), delimiter=delimiter, skipinitialspace=True)
    columns = [name.strip() for name in next(reader, ())]
    rows = []
    for cells in reader:
        line, cells = reader.line_num + num_above, [cell.strip() for cell in cells]
        if any(cells[len(columns) :]):
            raise ValueError(
                f"line {line} has {len(cells)} cells and the header {len(columns)}; a cell with {delimiter!r} in it (a "
                "decimal comma?) stands in quotes"
            )
        if any(cells):
            rows.append(Row(zip_longest(columns, cells[: len(columns)], fillvalue=""), line))
    return columns, rows


def _read_parquet(data: bytes) -> tuple[list[str], list[Row]]:
    table = pq.read_table(io.BytesIO(data))
    rows = zip(*map(cells_of, table.columns), strict=True)
    return table.column_names, _rows(table.column_names, rows)


def _read_xlsx(data: bytes) -> tuple[list[str], list[Row]]:
    import openpyxl  # here alone: few runs have a spreadsheet

    book = openpyxl.load_workbook(io.BytesIO(data), read_only=True, data_only=True)
    try:
        lines = book.worksheets[0].iter_rows()
        columns = ["" if cell.value is None else str(cell.value).strip() for cell in next(lines, ())]
        return columns, _rows(columns, (map(_shown, cells) for cells in lines))
    finally:
        book.close()


def _rows(columns: Sequence[str], rows: Iterable[Iterable[Any]]) -> list[Row]:
    found = (Row(zip(columns, cells, strict=False), line) for line, cells in enumerate(rows, FIRST_LINE))
    return [row for row in found if not all(map(is_empty, row.values()))]


def _shown(cell: Any) -> Any:
    """The value of a cell; a number with the format 000 as what the spreadsheet shows, "007": it is an id."""
    is_padded = isinstance(cell.value, int) and re.fullmatch("0{2,}", cell.number_format or "")
    return str(cell.value).zfill(len(cell.number_format)) if is_padded else cell.value


def cells_of(column: pa.ChunkedArray) -> list:
    """A column's cells as Python has them; text is made printable, for what another program wrote need not be UTF-8."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return [None if cell is None else printable(cell) for cell in column.cast(pa.large_binary()).to_pylist()]
    return column.to_pylist()


def ids_of(column: pa.ChunkedArray) -> list[str | None]:
    """Ids as text, whatever type they are stored in; None where a cell says nothing."""
    return [None if is_empty(cell) else text(cell) for cell in cells_of(column)]


def numbers_of(column: pa.ChunkedArray) -> tuple[np.ndarray, dict[int, object]]:
    """A column's cells as numbers, whatever type they are stored in.

    Returns:
        float64 `[n]`, NaN where a cell says nothing; and row → cell of those that hold something else than a number.
    """
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        return column.cast(pa.float64()).to_numpy().copy(), {}  # NaN for nulls
    numbers, others = np.full(len(column), np.nan), {}
    for row, cell in enumerate(cells_of(column)):
        if is_empty(cell):
            continue
        try:
            numbers[row] = number(cell)
        except ValueError:
            others[row] = cell
    return numbers, others
