import io
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from csat.errors import DatasetError
from csat.evaluation.predictions import ARRAYS, Predictions, concatenate
from tests.support.made_up import classified, nuclei, segmented

EVERY_KIND = [classified(), segmented(), nuclei(), nuclei(types=("lymphocyte", "tumour"))]
IDS = ["classification", "segmentation", "nuclei", "typed nuclei"]


def assert_same(a: Predictions, b: Predictions) -> None:
    for name in ("task", "classes", "keys", "groups", "views", "unreadable"):
        assert getattr(a, name) == getattr(b, name), name
    np.testing.assert_array_equal(a.loss, b.loss)
    assert a.arrays.keys() == b.arrays.keys()
    for name in a.arrays:
        assert a.arrays[name].dtype == b.arrays[name].dtype
        np.testing.assert_array_equal(a.arrays[name], b.arrays[name])


def through_parquet(predictions: Predictions) -> Predictions:
    buffer = io.BytesIO()
    pq.write_table(predictions.to_table(), buffer, row_group_size=7)  # several chunks per column
    return Predictions.from_table(pq.read_table(io.BytesIO(buffer.getvalue())))


@pytest.mark.parametrize("predictions", EVERY_KIND, ids=IDS)
def test_to_parquet_and_back(predictions):
    predictions = replace(predictions, views=8, unreadable=(("a.png", "unreadable: broken"), ("b.png", "missing: gone")))
    assert set(predictions.arrays) <= set(ARRAYS[predictions.task])
    assert_same(through_parquet(predictions), predictions)


@pytest.mark.parametrize("predictions", EVERY_KIND, ids=IDS)
def test_none_at_all_to_parquet_and_back(predictions):
    empty = predictions.select([])
    assert len(empty) == 0
    assert_same(through_parquet(empty), empty)


def test_the_table_is_readable_without_us():
    table = classified(num_samples=3).to_table()
    assert table.column_names == ["sample", "group", "loss", "probs", "label"]
    assert len(table["probs"][0].as_py()) == 3


def test_another_table_is_refused():
    with pytest.raises(DatasetError, match="columns slide, x_px"):
        Predictions.from_table(pa.table({"slide": ["a"], "x_px": [1]}))


@pytest.mark.parametrize("predictions", EVERY_KIND, ids=IDS)
@pytest.mark.parametrize("num_parts", [1, 2, 5])
def test_together_however_they_were_divided(predictions, num_parts):
    parts = [predictions.select(range(rank, len(predictions), num_parts)) for rank in range(num_parts)]
    assert_same(concatenate(parts[::-1]), predictions)


def test_a_process_without_samples_and_what_was_unreadable():
    whole = classified(num_samples=4)
    broken = replace(whole.select([]), arrays={}, unreadable=(("z.png", "unreadable: broken"),))
    found = concatenate([broken, replace(whole, unreadable=(("a.png", "missing: gone"),))])
    assert found.keys == whole.keys
    assert found.unreadable == (("a.png", "missing: gone"), ("z.png", "unreadable: broken"))
    assert len(concatenate([broken, broken])) == 0


def test_select_keeps_rows_together():
    whole = classified(num_samples=5)
    part = whole.select([3, 1])
    assert part.keys == (whole.keys[3], whole.keys[1])
    assert part.loss.tolist() == whole.loss[[3, 1]].tolist()
    assert part.arrays["label"].tolist() == whole.arrays["label"][[3, 1]].tolist()
