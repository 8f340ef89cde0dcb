"""Tiles in QuPath."""

from csat.prediction.tiles_geojson import write_tiles_geojson
from tests.csat.prediction.tiles import FRAME, written_tiles
from tests.support.geojson_checker import read_checked


def test_tiles_in_qupath(tmp_path):
    path = write_tiles_geojson(written_tiles(tmp_path), str(tmp_path), FRAME)
    features = read_checked(path, width_px=1900, height_px=800)
    assert [feature["geometry"]["coordinates"][0][0] for feature in features] == [[0, 0], [256, 0], [1644, 544]]
    assert [feature["properties"]["classification"]["name"] for feature in features] == ["tumour", "a/b", "tumour"]
    assert features[1]["properties"]["measurements"] == {"Probability tumour": 0.125, "Probability a/b": 0.875}
    assert features[2]["properties"]["measurements"] == {"Probability tumour": 0.5}
    assert {feature["properties"]["objectType"] for feature in features} == {"tile"}
