"""Columns become batches: good tiles only, one batch for each size, arrays that may be read only."""

import numpy as np
import torch

from csat.columns import OK, POSITION, QUARANTINED, STATUS, STUDENT_TILE, TILE, of_arrays
from csat.training.batches import idle_batch, to_batches
from tests.support.toy import TILE_PX, ToyMethod, toy_rows

CPU = torch.device("cpu")


def test_bad_tiles_are_left_out_and_order_is_kept():
    rows = toy_rows(np.arange(5))
    rows[STATUS] = np.array([OK, QUARANTINED, OK, OK, QUARANTINED], np.uint8)
    (batch,) = to_batches(rows, ToyMethod(), CPU)
    assert batch.positions.tolist() == [0, 2, 3]
    assert torch.equal(batch.tiles, torch.from_numpy(rows[TILE][[0, 2, 3]]).permute(0, 3, 1, 2))
    assert batch.student_tiles is None
    rows[STATUS][:] = QUARANTINED
    assert list(to_batches(rows, ToyMethod(), CPU)) == []


def test_a_batch_holds_images_of_one_size():
    rows = toy_rows(np.arange(3))
    sizes = [(TILE_PX, TILE_PX), (TILE_PX, 2 * TILE_PX), (TILE_PX, TILE_PX)]
    rows[TILE] = of_arrays([np.full((*size, 3), index, np.uint8) for index, size in enumerate(sizes)])
    batches = list(to_batches(rows, ToyMethod(), CPU))
    assert sorted((tuple(batch.tiles.shape[2:]), batch.positions.tolist()) for batch in batches) == [
        ((TILE_PX, TILE_PX), [0, 2]),
        ((TILE_PX, 2 * TILE_PX), [1]),
    ]
    assert all((batch.tiles[:, 0, 0, 0] == batch.positions).all() for batch in batches)


def test_columns_of_an_object_store_are_copied_and_the_student_s_tiles_come_along():
    rows = toy_rows(np.arange(2))
    rows[STUDENT_TILE] = np.ascontiguousarray(rows[TILE][:, ::2, ::2])
    for column in rows.values():
        column.flags.writeable = False
    (batch,) = to_batches(rows, ToyMethod(), CPU)
    before = rows[TILE].copy()
    batch.tiles.zero_()
    assert np.array_equal(rows[TILE], before)
    assert batch.student_tiles.shape == (2, 3, TILE_PX // 2, TILE_PX // 2)


def test_a_rank_without_tiles_has_a_batch_of_the_same_make():
    method = ToyMethod()
    (batch,), idle = to_batches(toy_rows(np.arange(1)), method, CPU), idle_batch(method, TILE_PX, CPU)
    assert idle.tiles.dtype == torch.uint8 and idle.tiles.shape == batch.tiles.shape
    assert {name: one.shape for name, one in idle.responses.items()} == {n: one.shape for n, one in batch.responses.items()}
    assert idle.positions.dtype == batch.positions.dtype == torch.int64
    assert POSITION not in idle.responses
