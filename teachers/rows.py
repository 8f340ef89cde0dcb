"""A teacher's answers as columns of the stream's rows, of the only teacher or of one of several.

A tile on which the only teacher failed is quarantined. Of several, the reason stands in a column of its own,
UNANSWERED_PREFIX + name: the others still answer the tile, and what they say of it is learned. The last of their stages
quarantines what none of them has answered.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from csat.columns import (
    OK,
    QUARANTINED,
    REASON,
    RESPONSE_PREFIX,
    STATUS,
    TEACHER_S,
    TILE,
    UNANSWERED_PREFIX,
    of_arrays,
)
from csat.responses import ResponseSpec


def with_answers(
    columns: dict[str, np.ndarray],
    specs: Sequence[ResponseSpec],
    answers: Mapping[int, Mapping[str, np.ndarray]],
    failures: Mapping[int, str],
    seconds: np.ndarray,
    *,
    label: str | None = None,
    closes: Sequence[str] = (),
) -> dict[str, np.ndarray]:
    """Rows with what a teacher says of them.

    Args:
        columns: The rows, in the view in which the teacher saw them.
        specs: Of its answers, as columns are called and on the tile's pixels.
        answers: Row → its responses by name.
        failures: Row → "code: message".
        seconds: float32 `[B]`.
        label: The teacher's name, where there are several.
        closes: Names of all teachers, where this is the last of several.
    """
    status, reasons = np.array(columns[STATUS]), np.array(columns[REASON], dtype=object)
    more: dict[str, np.ndarray] = {}
    if label is None:
        for row, reason in failures.items():
            status[row], reasons[row] = QUARANTINED, reason
    else:
        why = np.full(len(status), "", object)
        for row, reason in failures.items():
            why[row] = reason
        more = {UNANSWERED_PREFIX + label: why, f"{TEACHER_S}.{label}": seconds}
        seconds = seconds + columns.get(TEACHER_S, np.float32(0))
    responses = {RESPONSE_PREFIX + spec.name: response_column(spec, columns[TILE], answers) for spec in specs}
    if closes:
        told = {name: (columns | more)[UNANSWERED_PREFIX + name] for name in closes}
        for row in np.flatnonzero(status == OK).tolist():
            if all(why[row] for why in told.values()):
                each = "; ".join(f"{name}: {why[row]}" for name, why in told.items())
                status[row], reasons[row] = QUARANTINED, f"unanswered: {each}"
    return {**columns, STATUS: status, REASON: reasons, **responses, **more, TEACHER_S: seconds}


def shrunk(tiles: np.ndarray, factor: int) -> np.ndarray:
    """uint8 `[B, H, W, 3]`, averaged over squares of `factor` pixels, which divides both edges."""
    if factor == 1:
        return tiles
    count, height, width, channels = tiles.shape
    squares = tiles.reshape(count, height // factor, factor, width // factor, factor, channels)
    sums = squares.sum(axis=(2, 4), dtype=np.uint32)  # whole numbers: the same whatever way the tile is turned
    return ((sums + factor**2 // 2) // factor**2).astype(np.uint8)


def response_column(spec: ResponseSpec, tiles: np.ndarray, answers: Mapping[int, Mapping[str, np.ndarray]]) -> np.ndarray:
    """One response of every row, float16, zeros where there is no answer."""
    if spec.is_dense and tiles.dtype == object:
        empty = (np.zeros(spec.shape(tile.shape[:2]), np.float16) for tile in tiles)
        return of_arrays([answers[row][spec.name] if row in answers else zeros for row, zeros in enumerate(empty)])
    size = tiles.shape[1:3] if spec.is_dense else 0
    column = np.zeros((len(tiles), *spec.shape(size)), np.float16)
    for row, answer in answers.items():
        column[row] = answer[spec.name]
    return column
