"""The columns of a tile's row on its way from the manifest to the trainer, and how rows of different sizes share a column.

Columns whose rows differ in size are object arrays of arrays, as Ray Data keeps them; dense ones pass through.
"""

from collections.abc import Sequence

import numpy as np

# Columns of a tile's row on its way from the manifest to the trainer. Every position reaches a trainer, also when its tile
# could not be read: the trainer counts it as quarantined or filtered, and so nothing can vanish on the way.
POSITION = "position"  # int64, place in the run's plan: epoch * tiles + rank in that epoch's order
STATUS = "status"  # uint8, one of the three below
REASON = "reason"  # str, "" where the status is OK, else "code: message"
TILE = "tile"  # uint8 [tile_px, tile_px, 3], RGB; of a whole image [height, width, 3]; zeros where the status is not OK
STUDENT_TILE = "student_tile"  # the same field in the student's own pixels; only where they are read by themselves
READ_S = "read_s"  # float32, seconds of reading spent on this tile
TEACHER_S = "teacher_s"  # float32, seconds of the teacher spent on this tile; of one of several: TEACHER_S.NAME
UNANSWERED_PREFIX = "unanswered_"  # + teacher, where there are several: str, why it has no answer, "code: message"; "" else
RESPONSE_PREFIX = "response_"  # float16 [C, n, n] or [C], one column per response
TARGET_PREFIX = "target_"  # what a person labelled, one column per TargetSpec

OK, QUARANTINED, FILTERED = 0, 1, 2


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
