"""Which fields are shown: the page's typical ones lie in the middle of all, and its odd ones are those that stand out."""

import numpy as np
import pyarrow as pa

from csat.columns import OK, POSITION, QUARANTINED, RESPONSE_PREFIX, STATUS
from workflows.prediction.columns import TILES
from workflows.prediction.fields import FieldSample, rank

CLASSES = {"label": ("tumour",)}


def tables(values, first=0, bad=()):
    positions = np.arange(first, first + len(values))
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.asarray(values, np.float32)), 1)
    status = np.where(np.isin(positions, bad), QUARANTINED, OK)
    zeros = np.zeros(len(values), np.int32)
    columns = {POSITION: positions, "x_px": positions * 10, "y_px": zeros, "row": zeros, STATUS: status}
    return {TILES: pa.table({**columns, RESPONSE_PREFIX + "label": vectors})}


def test_the_odd_one_of_thousands_is_found_and_the_typical_are_in_the_middle():
    values = np.random.default_rng(0).normal(0.5, 0.05, 4000)
    values[1234], values[77] = 0.99, 0.0
    sample = FieldSample(3, CLASSES)
    for first in range(0, 4000, 32):
        sample.add(tables(values[first : first + 32], first, bad=(77,)))
    fields = sample.chosen()
    assert 12 <= len(fields) <= 40 and [field[POSITION] for field in fields] == sorted({field[POSITION] for field in fields})
    odd, told = rank(fields)
    assert fields[odd.argmax()][POSITION] == 1234 and odd.max() > 5
    assert told[odd.argmax()].startswith("probability of tumour 0.99 (median 0.5")
    assert abs(fields[odd.argmin()]["figures"]["probability of tumour"] - 0.5) < 0.02
    assert 77 not in {field[POSITION] for field in fields}, "a tile without an answer is no field"


def test_nothing_is_kept_where_nothing_is_shown_and_fields_that_are_all_alike_are_all_typical():
    sample = FieldSample(0, CLASSES)
    sample.add(tables([0.1, 0.9]))
    assert sample.chosen() == []
    sample = FieldSample(2, CLASSES)
    sample.add(tables([0.5] * 20))
    odd, _ = rank(sample.chosen())
    assert not odd.any()
    assert [len(each) for each in rank([])] == [0, 0]
