"""GeoJSON against QuPath's rules by a checker of our own, against the parquet, and re-read with shapely."""

import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import shapely

from csat.prediction.geojson import write_nuclei_geojson
from csat.prediction.nuclei import NUCLEI_SCHEMA
from csat.prediction.table import nuclei_table
from tests.csat.prediction.oracle import frame_for, painted, places_on, put_together
from tests.support.geojson_checker import read_checked

CLASSES = ("nucleus", "other <b>")


@pytest.fixture(scope="module")
def nuclei():
    labels = painted()
    frame = frame_for(labels)
    return put_together(labels, frame, places_on(frame))[0]


def written(folder, nuclei, frame, **options):
    """(parquet, its rows, the features of the GeoJSON files)"""
    uri = str(folder / "nuclei.parquet")
    with nuclei_table(uri, frame, classes=CLASSES) as table:
        for start in range(0, len(nuclei), 100):
            table.write(nuclei.slice(start, 100))
    paths = write_nuclei_geojson(uri, str(folder), frame, **options)
    _, _, width, height = frame.bounds or (0, 0, frame.width_px, frame.height_px)
    slack = 10.0 if options.get("shown") == "cells" else 0.05
    features = [read_checked(path, width_px=width, height_px=height, slack_px=slack) for path in paths]
    return uri, pq.read_table(uri), features


def outlines_in(features, key="geometry"):
    return shapely.from_geojson([str(feature[key]).replace("'", '"') for feature in features])


def test_one_valid_object_for_each_row(tmp_path, nuclei):
    uri, table, (features,) = written(tmp_path, nuclei, frame_for(painted()))
    assert [feature["id"] for feature in features] == table["id"].to_pylist() == nuclei["id"].to_pylist()
    found = outlines_in(features)
    assert shapely.is_valid(found).all() and shapely.equals(found, shapely.from_wkb(table["geometry"].to_numpy())).all()
    assert {feature["properties"]["objectType"] for feature in features} == {"detection"}
    areas = [feature["properties"]["measurements"]["Area µm^2"] for feature in features]
    assert np.allclose(areas, table["area_um2"], atol=0.006)


def test_the_same_bytes_on_a_rerun(tmp_path, nuclei):
    contents = []
    for run in ("one", "other"):
        (tmp_path / run).mkdir()
        written(tmp_path / run, nuclei, frame_for(painted()))
        contents.append((tmp_path / run / "nuclei.geojson.gz").read_bytes())
    assert contents[0] == contents[1]


def test_bounds_are_subtracted_for_qupath_and_not_in_the_table(tmp_path, nuclei):
    plain = frame_for(painted())
    frame = frame_for(painted(), bounds=(50, 20, plain.width_px - 50, plain.height_px - 20))
    inside = nuclei.filter((np.asarray(nuclei["x_px"]) > 80) & (np.asarray(nuclei["y_px"]) > 50))
    _, table, (features,) = written(tmp_path, inside, frame)
    moved = shapely.transform(outlines_in(features), lambda points: points + (50, 20))
    assert shapely.equals_exact(moved, shapely.from_wkb(table["geometry"].to_numpy()), 1e-6).all()


def test_cells_have_their_nucleus_inside(tmp_path, nuclei):
    _, _, (features,) = written(tmp_path, nuclei, frame_for(painted()), shown="cells")
    cells, inner = outlines_in(features), outlines_in(features, "nucleusGeometry")
    assert shapely.is_valid(cells).all() and shapely.covers(shapely.buffer(cells, 0.1), inner).all()
    assert {feature["properties"]["objectType"] for feature in features} == {"cell"}


def test_centroids_alone(tmp_path, nuclei):
    _, table, (features,) = written(tmp_path, nuclei, frame_for(painted()), shown="centroids")
    places = [feature["geometry"]["coordinates"] for feature in features]
    assert np.allclose(places, np.stack([table["x_px"], table["y_px"]], 1), atol=0.051)


def test_many_objects_are_several_files(tmp_path, nuclei):
    _, table, files = written(tmp_path, nuclei, frame_for(painted()), max_objects=70)
    assert [len(features) for features in files[:-1]] == [70] * (len(files) - 1)
    assert [feature["id"] for features in files for feature in features] == table["id"].to_pylist()
    assert len(list(tmp_path.glob("nuclei-*-of-*.geojson.gz"))) == len(files) > 1


def test_an_empty_slide_is_an_empty_collection(tmp_path):
    _, table, (features,) = written(tmp_path, NUCLEI_SCHEMA.empty_table(), frame_for(painted()))
    assert features == [] and len(table) == 0


def test_what_is_not_known_is_left_out_and_names_are_escaped(tmp_path, nuclei):
    rows = nuclei.slice(0, 3).to_pylist()
    rows[0] |= {"area_um2": None, "class": 'a "quoted" \\ name'}
    rows[1] |= {"prob": float("nan"), "is_cut": True}
    table = nuclei.slice(0, 0).from_pylist(rows, schema=NUCLEI_SCHEMA)
    _, _, (features,) = written(tmp_path, table, frame_for(painted()))
    first, second, third = (feature["properties"] for feature in features)
    assert set(first["measurements"]) == {"Probability"} and first["classification"]["name"] == 'a "quoted" \\ name'
    assert set(second["measurements"]) == {"Area µm^2"} and second["metadata"] == {"cut": "true"}
    assert set(third["measurements"]) == {"Area µm^2", "Probability"} and "metadata" not in third


def test_geopandas_opens_the_table_without_this_package(tmp_path, nuclei):
    uri, table, _ = written(tmp_path, nuclei, frame_for(painted()))
    code = (
        "import sys, geopandas; nuclei = geopandas.read_parquet(sys.argv[1]); assert 'csat' not in sys.modules;"
        "assert nuclei.geometry.is_valid.all() and nuclei.crs is None and set(nuclei.geom_type) == {'Polygon'};"
        "print(len(nuclei), *nuclei.columns)"
    )
    done = subprocess.run([sys.executable, "-c", code, uri], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    number, *columns = done.stdout.split()
    assert int(number) == len(nuclei) == len(table)
    assert columns[:7] == ["slide", "id", "class", "prob", "x_px", "y_px", "area_um2"]


def test_a_file_that_fails_half_way_is_not_there(tmp_path, nuclei):
    frame = frame_for(painted())
    with pytest.raises(ValueError, match="stop"), nuclei_table(str(tmp_path / "n.parquet"), frame, classes=CLASSES) as table:
        table.write(nuclei)
        raise ValueError("stop")
    assert list(tmp_path.iterdir()) == []
