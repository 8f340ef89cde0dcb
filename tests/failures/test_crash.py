"""A slide that takes each reader down with it: Ray starts the actor again, and the slide is given up instead of the run."""

import os
import time

import numpy as np
import pyarrow as pa
import pytest
import ray.data

from csat.columns import OK, POSITION, QUARANTINED, REASON, STATUS
from csat.errors import ConfigError
from csat.runs.plan import Intervals, Plan
from csat.slides.crashes import CrashLog
from csat.slides.synthetic import make_slides
from csat.tiles.grid import TilingConfig
from csat.tiles.manifest import ManifestConfig
from csat.tiles.manifest_writer import ManifestWriter
from csat.tiles.planned_reader import SLOT, PlannedReader
from csat.tiles.sources import SlideRow, list_slides
from csat.tiles.tiling import tile_slide
from tests.failures.crashing import CrashingReader
from workflows.shell import tile_slides

pytestmark = [pytest.mark.ray, pytest.mark.thorough]


def test_tiling_that_hangs_on_a_slide_ends_in_an_error(ray_cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(tile_slides, "TASK_TIMEOUT_S", 1.0)
    slide = list_slides([str(make_slides(tmp_path, num_slides=1, size_px=256, seed=1)[0])])[0]
    with pytest.raises(ConfigError, match="_000.svs: tiling it has not ended within 1 s"):
        list(tile_slides._take([slide], ray.remote(max_retries=0)(lambda: time.sleep(600)).remote(), start=None))


def test_an_image_that_crashes_its_task_costs_none_of_those_that_it_shares_it_with(ray_cluster):
    images = [SlideRow(slide=f"{number}.png", kind="image") for number in range(5)]

    @ray.remote(max_retries=0, num_cpus=0.1)
    def tile(group):
        if images[2] in group:
            os.abort()
        return [("no_tissue", slide.slide) for slide in group]

    groups = list(tile_slides._grouped(images, max_images=3))
    assert list(map(len, groups)) == [3, 2]
    outcomes = list(tile_slides._in_order(tile.remote, groups, in_flight=4))
    assert [slide for slide, _ in outcomes] == images
    assert [reason for _, (reason, _) in outcomes] == ["no_tissue"] * 2 + ["unreadable"] + ["no_tissue"] * 2


def test_a_slide_that_crashes_its_reader_costs_its_own_tiles_and_no_other(ray_cluster, tmp_path):
    slides = list_slides([str(path) for path in make_slides(tmp_path / "slides", num_slides=2, size_px=256, seed=1)])
    tiling = TilingConfig(tile_px=64)
    writer = ManifestWriter(str(tmp_path / "manifest"), ManifestConfig(chunk_tiles=4), "f" * 64, slides=slides, tiling=tiling)
    for slide in slides:
        writer.add(slide, tile_slide(slide, tiling))
    manifest = writer.close()
    plan = Plan(manifest.chunks["rows"], manifest.chunks["shard"], num_epochs=1, seed=0)
    reader = CrashingReader(tile_px=64, crashes=CrashLog("run", str(tmp_path / "crashes")))

    rows = (
        ray.data.from_arrow([pa.table({SLOT: np.array([slot])}) for slot in range(plan.num_slots)])
        .map_batches(
            PlannedReader,
            fn_constructor_args=(manifest.uri, plan, Intervals(), reader),
            batch_size=None,
            num_cpus=0.5,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=1),
        )
        .select_columns([POSITION, STATUS, REASON, "slide"])
        .take_all()
    )
    assert sorted(row[POSITION] for row in rows) == list(range(plan.num_positions))
    for row in rows:
        is_crashing = row["slide"].endswith("_000.svs")
        assert row[STATUS] == (QUARANTINED if is_crashing else OK), row
        assert not is_crashing or "crashed 2 processes" in row[REASON]
    assert {row[STATUS] for row in rows} == {OK, QUARANTINED}
