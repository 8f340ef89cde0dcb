"""Whole images, and pieces of tissue, as rows of their own size."""

import numpy as np
import pytest

from csat.errors import SlideError
from csat.slides.reader import open_slide, read_tile
from csat.slides.synthetic import paint
from csat.tiles.grid import TilingConfig
from csat.tiles.sources import list_slides
from csat.tiles.tiling import tile_slide
from tests.csat.tiles.pictures import save_image


def test_an_image_is_one_row_of_its_own_size(tmp_path):
    image = save_image(tmp_path / "a.png", paint(128, seed=1)[0][:70, :101])
    (row,) = tile_slide(image, TilingConfig(mpp=None, whole="image", min_tissue=0)).to_pylist()
    assert (row["width_px"], row["height_px"], row["read_px"], row["footprint_px"]) == (101, 70, 101, 101)
    reader = open_slide(image.slide, image.kind)
    where = {name: row[name] for name in ("x_px", "y_px", "level", "read_px", "row")}
    np.testing.assert_array_equal(read_tile(reader, **where, tile_px=(101, 70)), paint(128, seed=1)[0][:70, :101])


def test_a_whole_slide_is_seen_at_the_wanted_resolution(slide):
    (row,) = tile_slide(slide, TilingConfig(mpp=2.0, whole="image", min_tissue=0)).to_pylist()
    assert (row["width_px"], row["height_px"]) == (384, 384) and row["mpp"] == pytest.approx(2.0)
    assert row["footprint_px"] == 1536


@pytest.mark.parametrize(
    ("settings", "reason", "message"),
    [
        (dict(max_px=100), "too_large", "has 101 x 70 px as it is, and data.max_px is 100"),
        (dict(mpp=2.0, source_mpp=0.25), "too_small", "has 12 x 8 px at 2 um/px, and the shorter edge must have 16 px"),
        (dict(min_tissue=1.0), "no_tissue", "less than 100% of it is tissue"),
    ],
)
def test_images_that_cannot_be_seen_whole_say_why(tmp_path, settings, reason, message):
    image = save_image(tmp_path / "a.png", paint(128, seed=1)[0][:70, :101])
    with pytest.raises(SlideError, match=message) as caught:
        tile_slide(image, TilingConfig(**{"mpp": None, "whole": "image", "min_tissue": 0.0, **settings}))
    assert caught.value.reason == reason


def test_each_piece_of_a_slide_is_a_row(tmp_path):
    pixels = np.full((600, 900, 3), 245, np.uint8)
    pixels[50:250, 40:400] = (190, 90, 160)
    pixels[300:560, 600:840] = (150, 80, 170)
    table = tile_slide(save_image(tmp_path / "a.png", pixels), TilingConfig(mpp=None, whole="tissue"))
    places = table.select(["x_px", "y_px", "width_px", "height_px"]).to_pylist()
    for place, expected in zip(places, [(40, 50, 360, 200), (600, 300, 240, 260)], strict=True):
        assert np.abs(np.subtract(list(place.values()), expected)).max() <= 3


def test_the_training_images_of_a_labelled_set_are_whole_images_too(tmp_path):
    """pretrain.csv, as finetune.py writes it: slide, patient, mpp; the resolution that it says is the one that counts."""
    for name in ("a", "b"):
        save_image(tmp_path / f"{name}.png", paint(128, seed=1)[0][:70, :100])
    table = tmp_path / "pretrain.csv"
    table.write_text(f"slide,patient,mpp\n{tmp_path}/a.png,p1,0.5\n{tmp_path}/b.png,p2,0.25\n")
    config = TilingConfig(mpp=1.0, whole="image", min_tissue=0)
    rows = [row for slide in list_slides([str(table)]) for row in tile_slide(slide, config).to_pylist()]
    assert [(row["patient"], row["width_px"], row["height_px"]) for row in rows] == [("p1", 50, 35), ("p2", 25, 17)]
