"""What is held out: whole patients, or blocks of slides; never a pixel on both sides."""

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csat.errors import ConfigError
from csat.tiles.grid import TILE_SCHEMA, TilingConfig
from csat.tiles.holdout import HoldoutError, short_names
from csat.tiles.manifest import ManifestConfig, fingerprint
from csat.tiles.manifest_writer import ManifestWriter, as_begun, write_as_held_out
from csat.tiles.sources import SlideRow
from tests.csat.tiles.manifests import PRINT, read, rows_of, table_of, write


def test_whole_patients_are_held_out(tmp_path):
    rows = rows_of(20, patients=10)
    config = ManifestConfig(holdout_fraction=0.2, max_holdout_tiles=1000)
    manifest = write(tmp_path / "a", rows, [10] * 20, config)
    train, held = read(manifest), read(manifest.holdout())
    assert len({row["patient"] for row in held}) == 2 and len(held) == 40 and len(train) == 160
    assert not {row["patient"] for row in held} & {row["patient"] for row in train}
    assert manifest.index["holdout"] == {"num_tiles": 40, "not_kept": 0, "on_the_border": 0}
    assert manifest.holdout().chunks["rows"].sum() == 40

    other = write(tmp_path / "b", rows, [10] * 20, ManifestConfig(holdout_fraction=0.2, seed=3))
    assert {row["patient"] for row in read(other.holdout())} != {row["patient"] for row in held}


@pytest.mark.parametrize("count", [2, 3, 7])
def test_few_slides_still_give_one_to_hold_out(tmp_path, count):
    manifest = write(tmp_path, rows_of(count), [10] * count, ManifestConfig(holdout_fraction=0.05))
    assert len({row["slide"] for row in read(manifest.holdout())}) == 1
    assert len({row["slide"] for row in read(manifest)}) == count - 1


def test_no_more_held_out_tiles_are_kept_than_asked(tmp_path):
    config = ManifestConfig(holdout_fraction=0.5, max_holdout_tiles=30, chunk_tiles=16)
    manifest = write(tmp_path, rows_of(6), [100] * 6, config)
    held = read(manifest.holdout())
    assert len(held) == 30 and manifest.num_tiles == 300 and manifest.index["holdout"]["not_kept"] == 270
    assert len({row["slide"] for row in held}) == 3  # a sample of all, not the first that came


@pytest.mark.parametrize("by", ["slide", "tile"])
def test_the_same_slides_in_another_folder_hold_out_the_same_tiles(tmp_path, by):
    def held_in(folder: str) -> set[tuple]:
        rows = [SlideRow(slide=f"{folder}/{name}.svs", kind="wsi") for name in ("a/1", "b/1", *"23456789")]
        config = ManifestConfig(holdout_fraction=0.3, holdout_by=by, max_holdout_tiles=1000)
        held = read(write(tmp_path / folder.replace("/", "_"), rows, [100] * len(rows), config).holdout())
        return {(row["slide"].removeprefix(folder), row["x_px"], row["y_px"]) for row in held}

    assert held_in("/slides") == held_in("s3://bucket/other/place")


def test_a_name_is_as_long_as_it_takes_to_be_unique():
    slides = ["/data/a/x.svs", "/data/b/x.svs", "/data/b/y.svs", "/z/b/x.svs"]
    assert dict(short_names(slides)) == {
        "/data/a/x.svs": "a/x.svs",
        "/data/b/x.svs": "data/b/x.svs",
        "/data/b/y.svs": "y.svs",
        "/z/b/x.svs": "z/b/x.svs",
    }


def test_one_slide_cannot_be_held_out_whole(tmp_path):
    with pytest.raises(ConfigError, match="only 1.*manifest.holdout_by tile"):
        ManifestWriter(str(tmp_path), ManifestConfig(holdout_fraction=0.1), PRINT, TilingConfig(), rows_of(1))
    with pytest.raises(ConfigError, match="only 1"):
        ManifestWriter(str(tmp_path), ManifestConfig(holdout_fraction=0.1), PRINT, TilingConfig(), rows_of(4, patients=1))
    config = ManifestConfig(holdout_fraction=0.1, holdout_by="tile")
    manifest = write(tmp_path, rows_of(1), [400], config)
    assert manifest.num_tiles + manifest.holdout().num_tiles == 400


def test_when_only_held_out_slides_have_tiles_the_cure_is_named(tmp_path):
    rows, config = rows_of(2), ManifestConfig(holdout_fraction=0.1)
    held = read(write(tmp_path / "a", rows, [5, 5], config).holdout())[0]["slide"]
    other = next(index for index, row in enumerate(rows) if row.slide != held)
    with pytest.raises(ConfigError, match="all 5 tiles are held out.*manifest.holdout_by tile"):
        write(tmp_path / "b", rows, [5, 5], config, bad=[other])
    with pytest.raises(ConfigError, match="holds out no tile at all.*manifest.holdout_by tile"):
        write(tmp_path / "c", rows, [5, 5], config, bad=[1 - other])


def held_out_as(tmp_path, rows, sizes, *, whole=False, **options):
    """(manifest, its held-out tiles, how) of slides, where nothing is said of how."""
    config = ManifestConfig(holdout_fraction=0.1, max_holdout_tiles=10_000)
    manifest, done = write_as_held_out(lambda choice: write(tmp_path, rows, sizes, choice, **options), config, whole=whole)
    return manifest, manifest.holdout(), (done.holdout_by, done.holdout_fraction)


def test_slides_where_there_are_several_else_blocks(tmp_path):
    for name, rows in {"two": rows_of(2), "patients": rows_of(4, patients=2)}.items():
        manifest, held, how = held_out_as(tmp_path / name, rows, [400] * len(rows))
        assert how == ("slide", 0.1) and held.num_tiles == manifest.num_tiles > 0
    for name, rows in {"one": rows_of(1), "one patient": rows_of(3, patients=1)}.items():
        manifest, held, how = held_out_as(tmp_path / name, rows, [400] * len(rows))
        assert how == ("tile", 0.1) and held.num_tiles > 0
        assert manifest.num_tiles + held.num_tiles == 400 * len(rows)


@pytest.mark.parametrize("bad", [0, 1])
def test_one_of_two_slides_that_gives_nothing_leaves_blocks_of_the_other(tmp_path, bad):
    manifest, held, how = held_out_as(tmp_path, rows_of(2), [400, 400], bad=[bad])
    assert how == ("tile", 0.1) and held.num_tiles > 0 and manifest.num_tiles + held.num_tiles == 400
    assert manifest.slides == {"given": 2, "tiled": 1, "quarantined": 1} and manifest.quarantine().num_rows == 1


def test_a_slide_of_one_block_is_trained_on_whole(tmp_path):
    manifest, held, how = held_out_as(tmp_path, rows_of(1), [3])
    assert how == ("tile", 0.0) and held is None and manifest.num_tiles == 3


def test_one_image_seen_whole_has_no_blocks(tmp_path):
    manifest, held, how = held_out_as(tmp_path, rows_of(1), [400], whole=True)
    assert how == ("tile", 0.0) and held is None and manifest.num_tiles == 400


def test_what_is_asked_for_by_name_is_done_or_refused(tmp_path):
    config = ManifestConfig(holdout_fraction=0.1, holdout_by="slide")
    with pytest.raises(HoldoutError, match="only 1"):
        write_as_held_out(lambda choice: write(tmp_path, rows_of(1), [400], choice), config, whole=False)
    with pytest.raises(ConfigError, match="no slide gave a tile"):  # no way to hold out is of any help
        held_out_as(tmp_path, rows_of(2), [9, 9], bad=[0, 1])


def test_a_rerun_takes_what_the_run_did():
    def done(recorded, whole=False, **settings):
        config = as_begun(ManifestConfig(**{"holdout_fraction": 0.1, **settings}), recorded, whole=whole)
        return config.holdout_by, config.holdout_fraction

    for by, fraction in (("slide", 0.1), ("tile", 0.1), ("tile", 0.0)):  # "slide": of an earlier version, too
        assert done({"holdout_by": by, "holdout_fraction": fraction}) == (by, fraction)
    assert done({}) == done({"holdout_by": None, "holdout_fraction": 0.1}) == (None, 0.1)  # ended before it was settled
    assert done({"holdout_by": "slide", "holdout_fraction": 0.2}) == (None, 0.1), "another fraction is another run"
    assert done({"holdout_by": "tile", "holdout_fraction": 0.1}, holdout_by="slide") == ("slide", 0.1)


def test_an_earlier_version_s_manifest_is_the_same_one():
    """It knew no null: "slide" was the default, of manifests without held-out tiles too."""
    rows, tiling = rows_of(3), TilingConfig()
    for fraction in (0.0, 0.1):
        left_open = ManifestConfig(holdout_fraction=fraction)
        named = ManifestConfig(holdout_fraction=fraction, holdout_by="slide")
        assert fingerprint(rows, tiling, left_open, sizes=[1, 2, 3]) == fingerprint(rows, tiling, named, sizes=[1, 2, 3])
    by_tile = ManifestConfig(holdout_fraction=0.1, holdout_by="tile")
    assert fingerprint(rows, tiling, by_tile, sizes=[1, 2, 3]) != fingerprint(rows, tiling, named, sizes=[1, 2, 3])


@settings(max_examples=25, deadline=None)
@given(
    overlap=st.sampled_from([0.0, 0.25, 0.5, 0.75]),
    fraction=st.floats(0.05, 0.5),
    seed=st.integers(0, 50),
    block_tiles=st.integers(1, 5),
    footprint_px=st.sampled_from([256, 515, 1024]),
    down_px=st.sampled_from([1.0, 0.5, 1.5]),
)
def test_no_pixel_is_on_both_sides(tmp_path_factory, overlap, fraction, seed, block_tiles, footprint_px, down_px):
    aspect = math.floor(footprint_px * down_px) / footprint_px  # a tile is a whole number of pixels high
    step_px = math.ceil(footprint_px * (1 - overlap))
    options = dict(holdout_fraction=fraction, holdout_by="tile", seed=seed, holdout_block_tiles=block_tiles)
    config = ManifestConfig(**options, max_holdout_tiles=10_000)
    layout = dict(columns=20, step_px=step_px, footprint_px=footprint_px, aspect=aspect)
    try:
        manifest = write(tmp_path_factory.mktemp("m"), rows_of(1), [400], config, **layout)
    except ConfigError as error:  # few blocks hold a whole tile, or every tile reaches into a held-out one
        assert overlap > 0 and ("left to train on" in str(error) or "holds out no tile" in str(error))
        return
    train, held = read(manifest), read(manifest.holdout())
    corners = [np.array([(row["x_px"], row["y_px"]) for row in rows]) for rows in (train, held)]
    apart = np.abs(corners[0][:, None] - corners[1][None]) >= [footprint_px, round(footprint_px * aspect)]
    assert apart.any(axis=2).all()
    assert len(train) + len(held) + manifest.index["holdout"]["on_the_border"] == 400
    if not overlap:
        assert manifest.index["holdout"]["on_the_border"] == 0
        num_blocks = math.ceil(20 / block_tiles) ** 2
        assert len(held) <= (fraction * num_blocks + 1) * block_tiles**2


def test_held_out_blocks_are_squares_of_neighbours(tmp_path):
    config = ManifestConfig(holdout_fraction=0.2, holdout_by="tile", max_holdout_tiles=10_000)
    held = read(write(tmp_path, rows_of(1), [400], config).holdout())
    blocks = {}
    for row in held:
        blocks.setdefault((row["x_px"] // 2048, row["y_px"] // 2048), []).append(row)
    assert len(blocks) == 5 and all(len(rows) == 16 for rows in blocks.values())  # 20 x 20 tiles: 25 blocks of 4 x 4


def test_rows_of_a_parquet_are_held_out_by_patient_or_in_runs(tmp_path):
    row = SlideRow(slide="/tiles.parquet", kind="parquet")
    table = table_of(row, 320).drop_columns(["x_px", "y_px", "row", "patient"])
    zeros, index = pa.array(np.zeros(320, np.int32)), np.arange(320, dtype=np.int32)
    given_columns = dict(x_px=zeros, y_px=zeros, row=pa.array(index), patient=pa.array([f"p{i // 16}" for i in index]))
    table = pa.table(
        {name: given_columns.get(name, table[name] if name in table.column_names else None) for name in TILE_SCHEMA.names}
    )
    for by in ("tile", "slide"):
        config = ManifestConfig(holdout_fraction=0.3, holdout_by=by, max_holdout_tiles=1000, seed=1)
        writer = ManifestWriter(str(tmp_path / by), config, PRINT, TilingConfig(), [row])
        writer.add(row, table.cast(TILE_SCHEMA))
        manifest = writer.close()
        held = {r["row"] // 16 for r in read(manifest.holdout())}
        assert held and not held & {r["row"] // 16 for r in read(manifest)}
        assert manifest.num_tiles + manifest.holdout().num_tiles == 320


def test_single_tile_images_are_held_out_one_by_one(tmp_path):
    config = ManifestConfig(holdout_fraction=0.25, holdout_by="tile", max_holdout_tiles=1000)
    manifest = write(tmp_path, rows_of(200), [1] * 200, config)
    assert 30 <= manifest.holdout().num_tiles <= 70 and manifest.num_tiles + manifest.holdout().num_tiles == 200
