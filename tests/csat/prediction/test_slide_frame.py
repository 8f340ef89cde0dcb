"""Where tiles lie on real and synthetic slides."""

import cv2
import numpy as np
import pyarrow as pa
import pytest

from csat.instances import relabel
from csat.prediction.geojson import write_nuclei_geojson
from csat.prediction.nuclei import nuclei_of_instances
from csat.prediction.seams import Seams
from csat.prediction.slide_frame import frame_of
from csat.prediction.table import nuclei_table
from csat.slides.images import Level
from csat.slides.openslide_reader import _bounds_of
from csat.slides.reader import open_slide, read_tile
from csat.slides.synthetic import make_slides
from csat.tiles.grid import TilingConfig
from csat.tiles.sources import SlideRow
from csat.tiles.tiling import tile_slide
from tests.csat.prediction.oracle import painted
from tests.support.bounded_slide import write_bounded
from tests.support.geojson_checker import read_checked

BOUNDS = {f"openslide.bounds-{name}": str(value) for name, value in dict(x=0, y=30, width=500, height=400).items()}


@pytest.mark.parametrize("mpp", [0.5, 0.53, 1.1])
def test_a_pixel_of_a_tile_lies_where_the_slide_has_it(tmp_path, mpp):
    """The tile, put back at its place, is the slide."""
    (path,) = make_slides(tmp_path, num_slides=1, size_px=1024, mpp=0.25)
    reader = open_slide(str(path), "wsi")
    frame = frame_of(str(path), reader)
    assert (frame.width_px, frame.height_px, frame.mpp_x, frame.bounds) == (1024, 1024, 0.25, None)
    config = TilingConfig(mpp=mpp, tile_px=64, min_tissue=0.0, cover_edges=True)
    tiles = tile_slide(SlideRow(slide=str(path), kind="wsi"), config)
    columns = {name: np.asarray(tiles[name]) for name in ("x_px", "y_px", "level", "read_px", "aspect")}
    places = frame.places(columns, tile_px=64)
    assert max(place.right for place in places) == pytest.approx(1024, abs=1.0)
    full = reader.read(0, 0, 0, 1024).astype(np.float32)
    for index in (0, len(places) // 2, len(places) - 1):
        row = {name: column[index].item() for name, column in columns.items()}
        tile = read_tile(reader, **row, tile_px=64).astype(np.float32)
        left, top, right, bottom = places[index]
        assert right - left == pytest.approx(64 * mpp / 0.25, rel=0.02)
        y, x = (
            (start + (np.arange(64) + 0.5) * (stop - start) / 64).astype(int) for start, stop in ((top, bottom), (left, right))
        )
        errors = {}
        for shift in (-6, 0, 6):
            there = full[np.clip(y, 0, 1023)[:, None], np.clip(x + shift, 0, 1023)[None]]
            errors[shift] = np.abs(there - tile).mean()
        assert errors[0] == min(errors.values())


def test_what_viewers_crop_a_slide_to():
    canvas = Level(600, 500, 1.0)
    assert _bounds_of(BOUNDS, canvas) == (0, 30, 500, 400)
    assert _bounds_of({**BOUNDS, "openslide.bounds-width": "600", "openslide.bounds-height": "500"}, canvas) is None
    assert _bounds_of({name: value for name, value in BOUNDS.items() if "width" not in name}, canvas) is None
    assert _bounds_of({}, canvas) is None


def test_a_slide_with_bounds_from_its_pixels_to_qupath(tmp_path):
    """The table has the canvas' coordinates, and the GeoJSON those of the scanned part, as QuPath shows it."""
    labels = painted()[:500, :600]
    labels = relabel(labels)
    pixels = np.where(labels[..., None] > 0, (90, 40, 120), (235, 215, 230)).astype(np.uint8)
    path = tmp_path / "part.scn"
    write_bounded(path, pixels, canvas_px=(2000, 1500), corner_px=(700, 300))
    reader = open_slide(str(path), "wsi")
    frame = frame_of(str(path), reader)
    assert (frame.width_px, frame.height_px, frame.mpp_x) == (2000, 1500, 0.5)
    assert frame.bounds == (700, 300, 600, 500) and frame.origin_px == (700, 300)
    assert np.array_equal(reader.read(700, 300, 0, (600, 500)), pixels)
    config = TilingConfig(mpp=0.5, tile_px=128, overlap_px=40, min_tissue=0.0, cover_edges=True)
    tiles = tile_slide(SlideRow(slide=str(path), kind="wsi"), config)
    columns = {name: np.asarray(tiles[name]) for name in ("x_px", "y_px", "level", "read_px", "aspect")}
    places = frame.places(columns, tile_px=128)
    seams, kept = Seams(places, frame), []
    for index, place in enumerate(places):
        tile = read_tile(reader, **{name: column[index].item() for name, column in columns.items()}, tile_px=128)
        nucleus = (tile[..., 1] < 100).astype(np.uint8)
        instances = relabel(cv2.connectedComponents(nucleus)[1])
        kept.append(seams.add(index, nuclei_of_instances(instances, nucleus.astype(np.float32), place, frame)))
    nuclei = pa.concat_tables(kept)
    uri = str(tmp_path / "nuclei.parquet")
    with nuclei_table(uri, frame, classes=["nucleus"]) as table:
        table.write(nuclei)
    (written,) = write_nuclei_geojson(uri, str(tmp_path), frame)
    features = read_checked(written, width_px=600, height_px=500, slack_px=0.1)
    there = cv2.connectedComponentsWithStats((labels > 0).astype(np.uint8))[3][1:] + 0.5
    assert len(features) == len(nuclei) == len(there) > 50
    expected = sorted(map(tuple, np.round(there + (700, 300), 6).tolist()))
    assert np.allclose(sorted(zip(*(nuclei[name].to_pylist() for name in ("x_px", "y_px")), strict=True)), expected, atol=1e-5)
    for feature, row in zip(features, nuclei.to_pylist(), strict=True):
        points = np.array(feature["geometry"]["coordinates"][0])
        middle = (points.min(0) + points.max(0)) / 2 + (700, 300)
        assert feature["id"] == row["id"] and np.abs(middle - (row["x_px"], row["y_px"])).max() < 12
