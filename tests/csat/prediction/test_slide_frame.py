"""Where tiles lie on real and synthetic slides."""

import numpy as np
import pytest

from csat.prediction.slide_frame import frame_of
from csat.slides.images import Level
from csat.slides.openslide_reader import _bounds_of
from csat.slides.reader import open_slide, read_tile
from csat.slides.synthetic import make_slides
from csat.tiles.grid import TilingConfig
from csat.tiles.sources import SlideRow
from csat.tiles.tiling import tile_slide

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
