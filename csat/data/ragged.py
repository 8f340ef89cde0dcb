"""Columns of a batch whose rows differ in size: object arrays of arrays, as Ray Data keeps them; dense ones pass through."""

from collections.abc import Sequence

import numpy as np


def of_arrays(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """object `[n]`: one array per row, also where all have one shape."""
    column = np.empty(len(arrays), object)
    for index, array in enumerate(arrays):
        column[index] = array
    return column


def rows_by_size(column: np.ndarray, rows: np.ndarray) -> list[np.ndarray]:
    """`rows` (int `[k]`, indices into the column) in groups of one shape each, in the order in which the shapes first come.

    A dense column is one group; without rows there is none.
    """
    if column.dtype != object:
        return [rows] if len(rows) else []
    groups: dict[tuple[int, ...], list[int]] = {}
    for row in rows.tolist():
        groups.setdefault(column[row].shape, []).append(row)
    return [np.array(group) for group in groups.values()]


def take_rows(column: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Those rows, which have one shape, as one dense array `[k, ...]`: a copy, but for all the rows of a dense column.

    Of a column of texts, the texts; of no rows, an empty column.
    """
    taken = column[rows] if len(rows) < len(column) else column
    is_ragged = column.dtype == object and len(taken) and isinstance(taken[0], np.ndarray)
    return np.stack(list(taken)) if is_ragged else taken
