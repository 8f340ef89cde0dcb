"""Tables of tiles and embeddings, and the summary of a slide."""

import numpy as np
import pandas
import pyarrow.parquet as pq
import pytest

from csat.prediction.slide_frame import Place, SlideFrame
from csat.prediction.slide_maps import SlideMap, cells_of, grid_of_um
from csat.prediction.summary import mask_summary, nuclei_summary, seen_areas, slide_row, tiles_summary, write_summary
from csat.prediction.table import SlideTable, embedding_rows, nuclei_table, read_about, tile_rows
from csat.prediction.tiles_geojson import write_tiles_geojson
from tests.csat.prediction.oracle import frame_for, painted, places_on, put_together
from tests.support.geojson_checker import read_checked

CLASSES = ("tumour", "a/b")
FRAME = SlideFrame(slide="/s/a.svs", width_px=2000, height_px=1000, mpp_x=0.5, mpp_y=0.5, bounds=(100, 200, 1900, 800))
PLACES = [Place(100, 200, 356, 456), Place(356, 200, 612, 456), Place(1744, 744, 2000, 1000)]
SAID = np.array([[0.75, 0.25], [0.125, 0.875], [0.5, np.nan]])


def written(tmp_path):
    uri = str(tmp_path / "tiles.parquet")
    rows = tile_rows(PLACES, SAID, CLASSES)
    with SlideTable(uri, rows.schema, FRAME, classes=CLASSES) as table:
        table.write(rows)
    return uri


def test_tiles_have_wsinfers_columns(tmp_path):
    tiles = pandas.read_parquet(written(tmp_path))
    assert list(tiles.columns) == ["slide", "minx", "miny", "width", "height", "prob_tumour", "prob_a/b"]
    assert tiles.iloc[1].tolist() == ["/s/a.svs", 356, 200, 256, 256, 0.125, 0.875]


def test_a_table_says_what_its_coordinates_are(tmp_path):
    about = read_about(written(tmp_path))
    assert about["bounds"] == [100, 200, 1900, 800] and about["classes"] == list(CLASSES) and about["mpp_x"] == 0.5
    assert "subtract bounds" in about["coordinates"]


def test_tiles_in_qupath(tmp_path):
    path = write_tiles_geojson(written(tmp_path), str(tmp_path), FRAME)
    features = read_checked(path, width_px=1900, height_px=800)
    assert [feature["geometry"]["coordinates"][0][0] for feature in features] == [[0, 0], [256, 0], [1644, 544]]
    assert [feature["properties"]["classification"]["name"] for feature in features] == ["tumour", "a/b", "tumour"]
    assert features[1]["properties"]["measurements"] == {"Probability tumour": 0.125, "Probability a/b": 0.875}
    assert features[2]["properties"]["measurements"] == {"Probability tumour": 0.5}
    assert {feature["properties"]["objectType"] for feature in features} == {"tile"}


def test_embeddings_are_lists_of_float16(tmp_path):
    uri = str(tmp_path / "embeddings.parquet")
    features = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
    features[0, 0] = 1e9
    rows = embedding_rows(PLACES, features)
    with SlideTable(uri, rows.schema, FRAME) as table:
        table.write(rows)
    read = pq.read_table(uri)
    assert (
        read.column_names == ["slide", "x_px", "y_px", "feature"]
        and str(read.schema.field("feature").type.value_type) == "halffloat"
    )
    back = np.stack(read["feature"].to_pylist())
    assert back[0, 0] == np.finfo(np.float16).max and np.allclose(back.ravel()[1:], features.ravel()[1:], atol=2e-3)
    assert read["x_px"].to_pylist() == [100, 356, 1744]


def test_areas_count_once_and_not_beyond_the_slide():
    places = [Place(0, 0, 100, 100), Place(50, 0, 150, 100), Place(1950, 0, 2050, 100)]
    seen, tissue = seen_areas(FRAME, places, np.array([1.0, 0.5, np.nan]))
    um2 = 0.25
    assert seen == pytest.approx((150 + 50) * 100 * um2 / 1e6)
    assert tissue == pytest.approx((50 + 0.75 * 50 + 0.5 * 50 + 50) * 100 * um2 / 1e6)
    assert seen_areas(FRAME, [], np.zeros(0)) == (0, 0)
    no_mpp = SlideFrame(slide="a", width_px=100, height_px=100)
    assert np.isnan(seen_areas(no_mpp, places, np.ones(3))).all()


def test_the_summary_of_nuclei_is_that_of_their_table(tmp_path):
    labels = painted()
    frame = frame_for(labels)
    nuclei, _ = put_together(labels, frame, places_on(frame))
    uri = str(tmp_path / "nuclei.parquet")
    with nuclei_table(uri, frame, classes=("nucleus", "other")) as table:
        table.write(nuclei)
    row = nuclei_summary(uri, 0.1)
    assert row["nuclei"] == row["nuclei_nucleus"] == labels.max() and row["nuclei_other"] == 0 and row["nuclei_cut"] == 0
    assert row["per_mm2_nucleus"] == pytest.approx(labels.max() / 0.1) and row["per_mm2_other"] == 0
    assert row["area_um2_nucleus"] == pytest.approx((labels > 0).sum() * 0.25 / labels.max(), rel=1e-4)
    assert row["area_um2_other"] is None and nuclei_summary(uri, float("nan"))["per_mm2"] is None


def test_the_summary_of_tiles_and_of_a_mask(tmp_path):
    said = tiles_summary(written(tmp_path))
    assert said["tiles_tumour"] == 2 and said["tiles_a/b"] == 1 and said["mean_tumour"] == pytest.approx(SAID[:, 0].mean())
    grid = grid_of_um(FRAME, 1.0)
    with SlideMap(grid, 1, labels=True) as mask:
        values = np.zeros((2, 200, 400), np.float32)
        values[0, :, :100], values[1, :, 100:] = 1, 1
        mask.add(cells_of(values, Place(0, 0, 400, 200), grid, labels=True), Place(0, 0, 400, 200))
        areas = mask_summary(mask, CLASSES)
    assert areas == {"mm2_tumour": pytest.approx(50 * 100 / 1e6), "mm2_a/b": pytest.approx(150 * 100 / 1e6)}


def test_a_row_for_each_slide(tmp_path):
    first = slide_row(FRAME, tiles=9, answered=8, seen_mm2=1.5, tissue_mm2=1.0, nuclei=7)
    other = slide_row(FRAME, tiles=3, answered=0, seen_mm2=float("nan"), tissue_mm2=float("nan"), reason="unreadable")
    write_summary(str(tmp_path / "summary.parquet"), [first, other])
    rows = pq.read_table(tmp_path / "summary.parquet").to_pylist()
    assert rows[0]["nuclei"] == 7 and rows[0]["reason"] is None and rows[0]["mpp"] == 0.5
    assert rows[1]["seen_mm2"] is None and rows[1]["reason"] == "unreadable" and rows[1]["tiles_answered"] == 0
