"""Columns of arrays that differ in size: grouped without losing a row, dense where they can be."""

import numpy as np

from csat.columns import of_arrays, rows_by_size, take_rows


def test_rows_of_one_size_come_together_and_none_is_lost():
    column = of_arrays([np.full((height, 2), index) for index, height in enumerate((3, 4, 3, 5, 4))])
    groups = rows_by_size(column, np.array([0, 1, 2, 4]))
    assert [group.tolist() for group in groups] == [[0, 2], [1, 4]]
    np.testing.assert_array_equal(take_rows(column, groups[1]), np.stack([column[1], column[4]]))


def test_a_dense_column_is_one_group_and_is_not_copied():
    column = np.arange(12).reshape(4, 3)
    (group,) = rows_by_size(column, np.arange(4))
    assert take_rows(column, group) is column
    assert rows_by_size(column, np.arange(0)) == []


def test_arrays_of_one_shape_stay_rows_of_their_own():
    column = of_arrays([np.zeros((2, 2)), np.ones((2, 2))])
    assert column.shape == (2,) and column.dtype == object
    assert take_rows(np.array(["a", "b"], object), np.array([1])).tolist() == ["b"]
