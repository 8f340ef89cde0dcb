"""A stream that is begun before it is needed gives the same rows, in the same order."""

import threading

import numpy as np
import pytest

from csat.training.context import TrainContext


def rows(size, first=0, num=3):
    for index in range(first, first + num):
        yield {"position": np.full(size, index)}


def taken(stream):
    return [int(columns["position"][0]) for columns in stream]


def test_the_first_rows_are_made_before_they_are_asked_for():
    is_asked, sizes = threading.Event(), []

    def batches(size):
        sizes.append(size)
        is_asked.set()
        yield from rows(size)

    context = TrainContext(batches=batches)
    context.begin(4)
    assert is_asked.wait(10), "nobody asked for the first rows"
    assert taken(context.batches(4)) == [0, 1, 2] and sizes == [4]


def test_streams_that_follow_begin_when_they_are_asked_for():
    streams = iter([rows(2), rows(2, first=7, num=2)])
    context = TrainContext(batches=lambda size: next(streams), num_streams=2)
    context.begin(2)
    assert [taken(context.batches(2)) for _ in range(2)] == [[0, 1, 2], [7, 8]]


def test_an_empty_stream_is_empty():
    context = TrainContext(batches=lambda size: iter(()))
    context.begin(2)
    assert taken(context.batches(2)) == []


def test_what_the_stream_raises_is_raised_where_its_rows_are_taken():
    def batches(size):
        raise OSError("the store is gone")
        yield

    context = TrainContext(batches=batches)
    context.begin(2)
    with pytest.raises(OSError, match="the store is gone"):
        next(context.batches(2))
