"""The first stage: every position of the plan comes out once, with the pixels of its tile, and what is done stays away."""

import numpy as np
import pytest

from csat.columns import OK, POSITION, STATUS, TILE
from csat.runs.plan import Intervals, Plan
from csat.slides.synthetic import make_slides
from csat.tiles.grid import TilingConfig
from csat.tiles.manifest import ManifestConfig
from csat.tiles.manifest_writer import ManifestWriter
from csat.tiles.planned_reader import SLOT, PlannedReader
from csat.tiles.reader import TileReader
from csat.tiles.sources import list_slides
from csat.tiles.tiling import tile_slide

TILE_PX = 64


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    paths = make_slides(tmp_path_factory.mktemp("slides"), num_slides=2, size_px=512, seed=1)
    slides = list_slides([str(path) for path in paths])
    tiling = TilingConfig(tile_px=TILE_PX)
    uri = str(tmp_path_factory.mktemp("manifest"))
    writer = ManifestWriter(uri, ManifestConfig(chunk_tiles=8), "f" * 64, slides=slides, tiling=tiling)
    for slide in slides:
        writer.add(slide, tile_slide(slide, tiling))
    return writer.close()


def read_all(manifest, done=None, **options):
    plan = Plan(manifest.chunks["rows"], manifest.chunks["shard"], num_epochs=2, seed=0)
    done = done or Intervals()
    stage = PlannedReader(manifest.uri, plan, done, TileReader(tile_px=TILE_PX), **options)
    batches = list(stage({SLOT: np.arange(plan.first_slot(done), plan.num_slots)}))
    names = (POSITION, STATUS, TILE, "slide", "x_px", "y_px")
    columns = {name: np.concatenate([batch[name] for batch in batches]) for name in names}
    return plan, columns, batches


def test_every_position_comes_once_and_every_tile_once_an_epoch(manifest):
    plan, columns, _ = read_all(manifest)
    assert sorted(columns[POSITION]) == list(range(plan.num_positions))
    assert (columns[STATUS] == OK).all()
    for epoch in range(2):
        mine = plan.epochs_of(columns[POSITION]) == epoch
        places = set(zip(columns["slide"][mine], columns["x_px"][mine], columns["y_px"][mine], strict=True))
        assert len(places) == manifest.num_tiles


def test_a_position_is_the_same_tile_however_the_run_was_interrupted(manifest):
    plan, whole, _ = read_all(manifest)
    done = Intervals([(0, 13), (15, 20), (manifest.num_tiles, manifest.num_tiles + 3)])
    _, rest, _ = read_all(manifest, done)
    is_done = done.contains(np.arange(plan.num_positions))
    assert sorted(rest[POSITION]) == np.flatnonzero(~is_done).tolist()
    tile_of = {position: (slide, x) for position, slide, x in zip(whole[POSITION], whole["slide"], whole["x_px"], strict=True)}
    for position, slide, x, tile in zip(rest[POSITION], rest["slide"], rest["x_px"], rest[TILE], strict=True):
        assert tile_of[position] == (slide, x)
        np.testing.assert_array_equal(tile, whole[TILE][whole[POSITION] == position][0])


def test_no_batch_is_larger_than_asked(manifest):
    _, _, batches = read_all(manifest, rows_at_once=3)
    assert max(len(batch[POSITION]) for batch in batches) == 3


def test_a_slide_without_a_patient_has_columns_as_the_others(tmp_path):
    paths = make_slides(tmp_path / "slides", num_slides=2, size_px=256, seed=1)
    table = tmp_path / "slides.csv"
    table.write_text(f"slide,patient\n{paths[0]},p1\n{paths[1]},\n")
    slides = list_slides([str(table)])
    tiling = TilingConfig(tile_px=TILE_PX)
    writer = ManifestWriter(str(tmp_path / "manifest"), ManifestConfig(chunk_tiles=4), "f" * 64, slides=slides, tiling=tiling)
    for slide in slides:
        writer.add(slide, tile_slide(slide, tiling))
    _, _, batches = read_all(writer.close())
    assert {str(batch["patient"].dtype) for batch in batches} == {"object"}
    assert {patient for batch in batches for patient in batch["patient"]} == {"p1", ""}
