"""Tables of tiles and embeddings, and what they say of themselves."""

import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet as pq

from csat.prediction.table import SlideTable, embedding_rows, read_about
from tests.csat.prediction.tiles import CLASSES, FRAME, PLACES, written_tiles


def test_tiles_have_wsinfers_columns(tmp_path):
    tiles = pandas.read_parquet(written_tiles(tmp_path))
    assert list(tiles.columns) == ["slide", "minx", "miny", "width", "height", "prob_tumour", "prob_a/b"]
    assert tiles.iloc[1].tolist() == ["/s/a.svs", 356, 200, 256, 256, 0.125, 0.875]


def test_a_table_says_what_its_coordinates_are(tmp_path):
    about = read_about(written_tiles(tmp_path))
    assert about["bounds"] == [100, 200, 1900, 800] and about["classes"] == list(CLASSES) and about["mpp_x"] == 0.5
    assert "subtract bounds" in about["coordinates"]


def test_embeddings_are_lists_of_float16(tmp_path):
    uri = str(tmp_path / "embeddings.parquet")
    features = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
    features[0, 0] = 1e9
    rows = embedding_rows(PLACES, features)
    with SlideTable(uri, rows.schema, FRAME) as table:
        table.write(rows)
    read = pq.read_table(uri)
    assert read.column_names == ["slide", "x_px", "y_px", "feature"]
    assert read.schema.field("feature").type.value_type == pa.float16()
    back = np.stack(read["feature"].to_pylist())
    assert back[0, 0] == np.finfo(np.float16).max and np.allclose(back.ravel()[1:], features.ravel()[1:], atol=2e-3)
    assert read["x_px"].to_pylist() == [100, 356, 1744]
