"""The nuclei of one answer: places, areas, types and ids, on slides of any resolution."""

import uuid

import numpy as np
import pyarrow as pa
import pytest
import shapely

from csat.instances import hv_targets, relabel
from csat.prediction import nuclei
from csat.prediction.nuclei import FOUND_SCHEMA, nuclei_of_instances, nuclei_of_tile
from csat.prediction.slide_frame import Place, SlideFrame
from tests.csat.prediction.oracle import MPP, answered_in, cut, found_in, frame_for, painted

TYPES = ("background", "round", "square")


def one_nucleus():
    instances = np.zeros((32, 32), np.int32)
    instances[10:20, 4:16] = 1
    return instances


def test_a_nucleus_lies_where_it_was_seen():
    """A tile of 32 px at 0.5 um/px, of a slide with 0.25 um/px, at (1000, 2000)."""
    frame = SlideFrame(slide="a.svs", width_px=9000, height_px=9000, mpp_x=0.25, mpp_y=0.25, downsamples=(1.0, 4.0))
    place = frame.place(x_px=1000, y_px=2000, level=1, read_px=16, aspect=1.0, tile_px=32)
    assert place == (1000, 2000, 1064, 2064)
    (row,) = nuclei_of_instances(one_nucleus(), np.full((32, 32), 0.75), place, frame).to_pylist()
    assert (row["x_px"], row["y_px"]) == (1000 + 2 * 10, 2000 + 2 * 15)
    assert row["area_um2"] == 10 * 12 * MPP**2
    assert row["prob"] == 0.75 and row["class_prob"] is None and row["class"] == "nucleus" and not row["is_cut"]
    outline = shapely.from_wkb(row["geometry"])
    assert (row["left"], row["top"], row["right"], row["bottom"]) == (1008, 2020, 1032, 2040)
    assert outline.bounds == pytest.approx((1008, 2020, 1032, 2040), abs=1)  # half a pixel of the tile
    assert row["id"] == str(uuid.uuid5(uuid.uuid5(uuid.NAMESPACE_URL, "a.svs"), "255.00,507.50"))


def test_a_crop_moves_the_answer_and_unequal_pixels_stretch_it():
    frame = SlideFrame(slide="a.svs", width_px=9000, height_px=9000, mpp_x=0.5, mpp_y=0.25)
    place = frame.place(x_px=100, y_px=100, level=0, read_px=48, aspect=2.0, tile_px=48, crop_px=8)
    assert place == (108, 116, 140, 180)
    (row,) = nuclei_of_instances(one_nucleus(), np.ones((32, 32)), place, frame).to_pylist()
    assert (row["x_px"], row["y_px"]) == (118, 146)
    assert row["area_um2"] == 10 * 12 * 0.25
    assert place.pixel((32, 32)) == (1, 2)


def test_ids_are_the_same_wherever_the_slide_lies():
    here, there = (SlideFrame(slide=f"{folder}/a.svs", width_px=99, height_px=99) for folder in ("/data", "s3://bucket/b"))
    place = Place(0, 0, 32, 32)
    one, other = (nuclei_of_instances(one_nucleus(), np.ones((32, 32)), place, frame) for frame in (here, there))
    assert one.equals(other)
    assert one["area_um2"].null_count == 1  # the resolution is not known


def test_the_type_is_that_of_the_largest_mean():
    instances = one_nucleus()
    tp = np.zeros((3, 32, 32), np.float32)
    tp[0], tp[1], tp[2] = 0.5, 0.125, 0.375
    (row,) = nuclei_of_instances(
        instances, np.ones((32, 32)), Place(0, 0, 32, 32), frame_for(instances), types=TYPES, tp=tp
    ).to_pylist()
    assert row["class"] == "square" and row["class_prob"] == 0.75


def test_what_touches_the_edge_is_cut_unless_the_slide_ends_there():
    instances = np.ones((1, 1), np.int32).repeat(32, 0).repeat(32, 1)
    frame = SlideFrame(slide="a.svs", width_px=64, height_px=32, mpp_x=0.5, mpp_y=0.5)
    left = nuclei_of_instances(instances, np.ones((32, 32)), Place(0, 0, 32, 32), frame)
    whole = nuclei_of_instances(instances, np.ones((32, 32)), Place(0, 0, 64, 32), frame)
    assert left["is_cut"].to_pylist() == [True] and whole["is_cut"].to_pylist() == [False]


def test_an_answer_without_nuclei_is_an_empty_table():
    nothing = {"np": np.zeros((1, 32, 32), np.float32), "hv": np.zeros((2, 32, 32), np.float32)}
    table = nuclei_of_tile(nothing, Place(0, 0, 32, 32), frame_for(one_nucleus()))
    assert len(table) == 0 and table.schema == FOUND_SCHEMA
    tp = np.zeros((3, 32, 32), np.float32)
    assert len(nuclei_of_tile({**nothing, "tp": tp}, Place(0, 0, 32, 32), frame_for(one_nucleus()), types=TYPES)) == 0


def test_the_maps_of_known_nuclei_give_them_back():
    labels = painted()
    frame, place = frame_for(labels), Place(128, 128, 384, 384)
    said, true = answered_in(labels, place, frame), found_in(labels, place, frame)
    instances = cut(labels, place)
    assert len(true) == instances.max() and 0.95 * len(true) < len(said) <= len(true)
    assert relabel(instances).max() == len(true)
    assert hv_targets(instances).shape == (2, 256, 256)
    x, y = (np.asarray(said[name]).astype(int) - 128 for name in ("x_px", "y_px"))
    assert (instances[y, x] > 0).mean() > 0.98


def test_answers_together_say_what_they_say_one_by_one(monkeypatch):
    """Tiles of two slides with types, one of them empty, in one call, in chunks, and each by itself."""
    labels = painted()
    places = [Place(x, y, x + 256, y + 256) for x, y in ((0, 0), (128, 64), (300, 300), (512, 512), (17, 500))]
    frames = [frame_for(labels), frame_for(labels, slide="/slides/b.svs")]
    frames = [frames[index % 2] for index in range(len(places))]
    instances = [cut(labels, place) * (index != 2) for index, place in enumerate(places)]
    maps = {
        "np": np.stack([(each > 0)[None] for each in instances]).astype(np.float16),
        "hv": np.stack([hv_targets(each) for each in instances]).astype(np.float16),
        "tp": np.random.default_rng(0).random((5, 3, 256, 256)).astype(np.float16),
    }
    single = [
        nuclei_of_tile({name: values[index] for name, values in maps.items()}, place, frame, types=TYPES)
        for index, (place, frame) in enumerate(zip(places, frames, strict=True))
    ]
    assert len(single[2]) == 0 and sum(map(len, single)) > 20
    for pixels_at_once in (2**21, 256**2 * 2):
        monkeypatch.setattr(nuclei, "PIXELS_AT_ONCE", pixels_at_once)
        table, tile = nuclei.nuclei_of_tiles(maps, places, frames, types=TYPES)
        assert table.equals(pa.concat_tables(single))
        assert np.bincount(tile, minlength=5).tolist() == [len(each) for each in single]


@pytest.mark.parametrize("scale", [1, 2])
def test_the_same_nuclei_at_another_scale(scale):
    labels = painted()
    place = Place(128 * scale, 128 * scale, 256 * scale, 256 * scale)
    rows = found_in(labels, place, frame_for(labels, scale=scale), scale=scale)
    ones = found_in(labels, Place(128, 128, 256, 256), frame_for(labels))
    assert rows["id"].equals(ones["id"]) and np.allclose(rows["area_um2"], ones["area_um2"])
