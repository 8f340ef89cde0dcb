"""The grid's geometry as properties, the choice of level, the refusals, and real slides."""

import io
import math
import os
import shutil
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from csat.columns import OK, STATUS, TILE
from csat.errors import ConfigError, SlideError
from csat.slides.crashes import CrashLog
from csat.slides.images import Level
from csat.slides.mpp import Mpp
from csat.slides.pyramid import read_shrunk
from csat.slides.reader import open_slide
from csat.slides.synthetic import make_slides, paint
from csat.tiles.reader import TileReader
from csat.tiles.sources import SlideRow, list_slides
from csat.tiles.tiling import (
    TILE_SCHEMA,
    TilingConfig,
    cut_slide,
    find_pieces,
    plan_grid,
    read_tile,
    tile_slide,
    tissue_fraction,
)

PYRAMID = [Level(40_000, 30_000, 1.0), Level(10_000, 7_500, 4.0), Level(2_500, 1_875, 16.0)]


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    path = make_slides(tmp_path_factory.mktemp("slides"), num_slides=1, size_px=1536, mpp=0.5, seed=2)[0]
    return SlideRow(slide=str(path), kind="wsi", patient="p1")


def _stated(mpp: float, down: float | None = None) -> Mpp:
    return Mpp(mpp, down or mpp, "stated")


def _save(path, array, **options) -> SlideRow:
    Image.fromarray(array).save(path, **options)
    return SlideRow(slide=str(path), kind="image")


def _png(array) -> bytes:
    data = io.BytesIO()
    Image.fromarray(array).save(data, "PNG")
    return data.getvalue()


# ------------------------------------------------------------------------------------------------------------- the grid


@st.composite
def _grids(draw):
    tile_px = draw(st.integers(16, 128))
    overlap_px = draw(st.integers(0, tile_px * 3 // 4))
    mpp = draw(st.sampled_from([None, 0.25, 0.5, 1.0, 2.0]))
    x = draw(st.floats(0.1, 0.5))
    resolution = _stated(x, draw(st.one_of(st.just(x), st.floats(x / 1.9, x * 1.9))))  # of pixels that may not be square
    levels = [Level(draw(st.integers(600, 3000)), draw(st.integers(600, 3000)), 1.0)]
    for downsample in sorted(draw(st.lists(st.floats(1.5, 20.0), max_size=3))):
        levels.append(Level(int(levels[0].width_px / downsample), int(levels[0].height_px / downsample), downsample))
    config = TilingConfig(mpp=mpp, tile_px=tile_px, overlap_px=overlap_px, allow_upsampling=True, max_upsampling=4.0)
    return levels, resolution, config


@given(_grids())
def test_every_tile_lies_inside_and_neighbours_overlap_by_no_more_than_asked(case):
    levels, resolution, config = case
    try:
        grid = plan_grid("s", levels, resolution, config)
    except SlideError as error:
        assert error.reason == "too_small"
        return
    assert grid.x_px.min() == 0 == grid.y_px.min()
    for positions, extent, footprint_px in (
        (grid.x_px, levels[0].width_px, grid.footprint_px),
        (grid.y_px, levels[0].height_px, grid.footprint_px * grid.aspect),
    ):
        positions = np.unique(positions)
        asked_px = footprint_px * config.overlap_px / config.tile_px
        assert positions[-1] + footprint_px <= extent + 1e-6
        assert extent - (positions[-1] + footprint_px) < footprint_px - asked_px + 1  # nothing more would have fitted
        if len(positions) > 1:
            overlaps_px = footprint_px - np.diff(positions)
            assert overlaps_px.max() <= asked_px + 1e-5 and overlaps_px.min() > asked_px - 1.001
    assert len(set(zip(grid.x_px.tolist(), grid.y_px.tolist(), strict=True))) == len(grid.x_px)


@given(_grids())
def test_the_best_level_is_the_coarsest_that_is_fine_enough(case):
    levels, resolution, config = case
    try:
        grid = plan_grid("s", levels, resolution, config)
    except SlideError:
        return
    if config.mpp is None:
        assert (grid.level, grid.read_px, grid.aspect) == (0, config.tile_px, 1)
        return
    coarser = max(resolution.x, resolution.y)
    if coarser <= 1.01 * min(resolution.x, resolution.y):
        coarser = resolution.mean
    mpps = [coarser * level.downsample for level in levels]
    good = [mpp for mpp in mpps if mpp <= config.mpp * 1.12]
    assert mpps[grid.level] == (max(good) if good else mpps[0])
    read_down_px = round(grid.read_px * grid.aspect)
    at = levels[grid.level].downsample
    for mpp, read_px in ((resolution.x, grid.read_px), (resolution.y, read_down_px)):  # a square in um is a square
        assert abs(read_px / config.tile_px * mpp * at / config.mpp - 1) <= 0.0152 + 0.5 / read_px
    if good:
        assert min(grid.read_px, read_down_px) >= config.tile_px / 1.12 - 1  # hardly enlarged


@pytest.mark.parametrize(
    ("source_mpp", "mpp", "level", "read_px", "footprint_px", "finished_mpp"),
    [
        (0.25, 0.25, 0, 256, 256, 0.25),
        (0.25, 0.5, 0, 512, 512, 0.5),
        (0.25, 1.0, 1, 256, 1024, 1.0),
        (0.2485, 1.0, 1, 256, 1024, 0.994),  # within 1%: read as it is
        (0.2525, 1.0, 1, 256, 1024, 1.01),  # within 1% on the coarse side too
        (0.2325, 0.25, 0, 275, 275, 0.25),  # another scanner's 40x, shrunk by 7%
        (0.263, 0.25, 0, 243, 243, 0.25),  # and one that is enlarged by 5%
        (0.263, 1.0, 1, 243, 972, 1.0),  # from the same level as the others
        (0.28, 1.0, 1, 229, 916, 1.0),  # 12%: the last that is
        (0.281, 1.0, 0, 911, 911, 1.0),  # beyond: the finer level, shrunk
        (0.25, 2.0, 1, 512, 2048, 2.0),
        (0.25, None, 0, 256, 256, 0.25),
    ],
)
def test_levels_by_hand(source_mpp, mpp, level, read_px, footprint_px, finished_mpp):
    grid = plan_grid("s", PYRAMID, _stated(source_mpp), TilingConfig(mpp=mpp))
    assert (grid.level, grid.read_px, grid.footprint_px, grid.aspect) == (level, read_px, footprint_px, 1)
    assert grid.mpp == pytest.approx(finished_mpp, rel=2e-3) and grid.mpp_source == "stated"
    assert len(grid.x_px) == (40_000 // footprint_px) * (30_000 // footprint_px)


@pytest.mark.parametrize(
    ("x", "y", "mpp", "level", "read_px", "down_px"),
    [
        (0.25, 0.5, 0.5, 0, 512, 256),
        (0.5, 0.25, 0.5, 0, 256, 512),
        (0.2499, 0.2502, 0.25, 0, 256, 256),  # a scanner's rounding: square
        (0.25, 0.26, 0.25, 0, 256, 246),
        (0.25, 0.5, 2.0, 1, 512, 256),
        (0.25, 0.5, None, 0, 256, 256),  # pixels as they are
    ],
)
def test_unequal_resolutions_are_read_as_squares_of_tissue(x, y, mpp, level, read_px, down_px):
    grid = plan_grid("s", PYRAMID, _stated(x, y), TilingConfig(mpp=mpp))
    assert (grid.level, grid.read_px, grid.read_px * grid.aspect) == (level, read_px, pytest.approx(down_px))


def test_resolutions_that_no_square_pixels_are_made_of_are_refused():
    with pytest.raises(
        SlideError, match="a.svs: states 0.2 um/px across and 0.41 down, more than 2 times apart.*CSV"
    ) as caught:
        plan_grid("a.svs", PYRAMID, _stated(0.2, 0.41), TilingConfig())
    assert caught.value.reason == "no_mpp"
    assert plan_grid("a.svs", PYRAMID, _stated(0.2, 0.41), TilingConfig(mpp=None)).read_px == 256


def test_a_slide_of_exactly_one_tile_gives_one_and_a_pixel_less_gives_none():
    assert len(plan_grid("s", [Level(256, 256, 1.0)], _stated(0.5), TilingConfig()).x_px) == 1
    with pytest.raises(SlideError, match="255 x 256 px is smaller than one tile of 256 px.*data.tile_px") as caught:
        plan_grid("s", [Level(255, 256, 1.0)], _stated(0.5), TilingConfig())
    assert caught.value.reason == "too_small"


def test_a_slide_without_mpp_says_how_to_give_it():
    with pytest.raises(SlideError, match=r"(?s)slides/a\.svs.*data\.source_mpp 0\.25.*CSV.*mpp") as caught:
        plan_grid("slides/a.svs", PYRAMID, None, TilingConfig())
    assert caught.value.reason == "no_mpp"
    grid = plan_grid("slides/a.svs", PYRAMID, None, TilingConfig(mpp=None))
    assert math.isnan(grid.mpp) and grid.read_px == 256


def test_upsampling_is_refused_until_it_is_allowed():
    allowed = TilingConfig(mpp=0.25, allow_upsampling=True)
    with pytest.raises(SlideError, match=r"b\.svs.*0\.5 um/px.*data\.mpp 0\.5.*data\.allow_upsampling true") as caught:
        plan_grid("b.svs", PYRAMID, _stated(0.5), TilingConfig(mpp=0.25))
    assert caught.value.reason == "needs_upsampling"
    grid = plan_grid("b.svs", PYRAMID, _stated(0.5), allowed)
    assert (grid.level, grid.read_px, grid.mpp) == (0, 128, 0.25)


@pytest.mark.parametrize("resolution", [_stated(0.51), _stated(42.33), _stated(0.3, 0.52)])
def test_no_tile_is_read_from_less_than_a_quarter_of_its_pixels_unless_asked_for(resolution):
    """Nor is that what the message recommends."""
    for allow in (False, True):
        config = TilingConfig(mpp=0.25, allow_upsampling=allow)
        with pytest.raises(SlideError, match=r"data\.max_upsampling 2") as caught:
            plan_grid("b.svs", PYRAMID, resolution, config)
        assert caught.value.reason == "needs_upsampling" and "allow_upsampling true" not in str(caught.value)
    asked = TilingConfig(mpp=0.25, allow_upsampling=True, max_upsampling=200.0)
    assert plan_grid("b.svs", PYRAMID, resolution, asked).read_px < 256


@pytest.mark.parametrize(
    "wrong",
    [
        dict(mpp=0.0),
        dict(mpp=352.8),
        dict(source_mpp=-1.0),
        dict(tile_px=0),
        dict(overlap_px=256),
        dict(overlap_px=-1),
        dict(min_tissue=50.0),
        dict(max_upsampling=0.5),
        dict(tissue_thumbnail_px=0),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(wrong):
    with pytest.raises(ConfigError, match=f"data.{next(iter(wrong))}"):
        TilingConfig(**wrong)


# ------------------------------------------------------------------------------------------------------ tissue fraction


@given(st.integers(0, 2**32 - 1), st.integers(3, 30), st.integers(3, 30), st.floats(0, 0.6), st.floats(0, 0.6))
def test_tissue_fraction_is_the_exact_area(seed, height, width, left, top):
    """Against the same mask enlarged 40 times, on rectangles that lie on that finer grid."""
    mask = np.random.default_rng(seed).random((height, width)) < 0.5
    fine = np.kron(mask, np.ones((40, 40)))
    x, y = round(left * width * 40), round(top * height * 40)
    w, h = max(1, width * 40 // 3), max(1, height * 40 // 3)
    share = tissue_fraction(mask, [x / fine.shape[1]], [y / fine.shape[0]], w / fine.shape[1], h / fine.shape[0])
    assert share[0] == pytest.approx(fine[y : y + h, x : x + w].mean(), abs=1e-9)


# --------------------------------------------------------------------------------------------------------- whole slides


def test_tiles_of_a_slide_hold_the_tissue_that_they_say(slide):
    every = tile_slide(slide, TilingConfig(min_tissue=0.0))
    kept = tile_slide(slide, TilingConfig(min_tissue=0.5))
    assert every.schema == TILE_SCHEMA and every.num_rows == 36 and 0 < kept.num_rows < 36
    assert kept.equals(every.filter(pa.array(every["tissue"].to_numpy() >= 0.5)))
    order = list(zip(every["y_px"].to_pylist(), every["x_px"].to_pylist(), strict=True))
    assert order == sorted(order)
    image, _ = paint(1536, seed=2)
    coloured = np.ptp(image.astype(int), axis=2) > 20
    for row in every.to_pylist():
        x, y = row["x_px"], row["y_px"]
        assert row["tissue"] == pytest.approx(coloured[y : y + 256, x : x + 256].mean(), abs=0.08)
        assert (row["slide"], row["kind"], row["patient"], row["row"]) == (slide.slide, "wsi", "p1", 0)


def test_tiles_read_at_another_resolution_show_the_same_place(slide):
    table = tile_slide(slide, TilingConfig(mpp=1.0, tile_px=128, min_tissue=0.9))
    first = table.to_pylist()[0]
    assert (first["level"], first["read_px"], first["footprint_px"], first["mpp"]) == (0, 256, 256, 1.0)
    reader = open_slide(slide.slide, slide.kind)
    tile = read_tile(reader, **{k: first[k] for k in ("x_px", "y_px", "level", "read_px")}, tile_px=128)
    reader.close()
    image, _ = paint(1536, seed=2)
    area = image[first["y_px"] :, first["x_px"] :][:256, :256].reshape(128, 2, 128, 2, 3).mean(axis=(1, 3))
    assert tile.shape == (128, 128, 3) and np.abs(tile - area).mean() < 4


def test_glass_alone_is_no_tissue(tmp_path):
    row = _save(tmp_path / "glass.png", np.full((600, 600, 3), 243, np.uint8))
    with pytest.raises(SlideError, match=r"glass\.png.*none of its 4 tiles.*50%.*data\.min_tissue") as caught:
        tile_slide(row, TilingConfig(mpp=None))
    assert caught.value.reason == "no_tissue"
    assert tile_slide(row, TilingConfig(mpp=None, min_tissue=0.0)).num_rows == 4


def test_an_image_that_is_all_tissue_is_kept_whole(tmp_path):
    image, _ = paint(1024, seed=1)
    row = _save(tmp_path / "tile.png", np.ascontiguousarray(image[384:640, 384:640]))
    table = tile_slide(row, TilingConfig(source_mpp=0.5))
    assert table.num_rows == 1 and table["tissue"][0].as_py() > 0.9
    with pytest.raises(SlideError, match="source_mpp") as caught:
        tile_slide(row, TilingConfig())
    assert caught.value.reason == "no_mpp"
    assert math.isnan(tile_slide(row, TilingConfig(mpp=None))["mpp"][0].as_py())


def test_a_slide_that_cannot_be_opened_says_why(tmp_path):
    (tmp_path / "broken.svs").write_bytes(b"not a slide")
    for name, reason in (("broken.svs", "unreadable"), ("absent.svs", "missing")):
        with pytest.raises(SlideError, match=name) as caught:
            tile_slide(SlideRow(slide=str(tmp_path / name), kind="wsi"), TilingConfig())
        assert caught.value.reason == reason


def test_encoded_tiles_of_a_parquet_keep_their_rows_patients_and_resolutions(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (4, 64, 64, 3)).astype(np.uint8)
    columns = dict(image=[_png(each) for each in pixels], mpp=[0.5, 0.25, 0.5, 0.25], slide=["a", "a", "b", "b"])
    columns["patient"] = ["p", None, None, "q"]
    path = tmp_path / "tiles.parquet"
    pq.write_table(pa.table(columns), path)
    row = SlideRow(slide=str(path), kind="parquet", num_tiles=4)
    rows = tile_slide(row, TilingConfig(mpp=0.5, tile_px=32)).to_pylist()
    assert [r["row"] for r in rows] == [0] * 4 + [1] + [2] * 4 + [3]  # 64 px at 0.5 are 2 x 2 tiles, at 0.25 just one
    assert [r["read_px"] for r in rows] == [32] * 4 + [64] + [32] * 4 + [64]
    assert [r["patient"] for r in rows] == ["p"] * 4 + ["a"] + ["b"] * 4 + ["q"]
    assert all(math.isnan(r["tissue"]) and r["mpp"] == 0.5 for r in rows)


def _parquet(path, num_rows, **columns) -> SlideRow:
    data = io.BytesIO()
    Image.fromarray(np.full((64, 64, 3), (190, 90, 160), np.uint8)).save(data, "PNG")
    pq.write_table(pa.table({"image": [data.getvalue()] * num_rows, **columns}), path)
    return SlideRow(slide=str(path), kind="parquet", num_tiles=num_rows)


def test_a_row_that_does_not_fit_is_refused_by_itself_and_says_which_column(tmp_path):
    mpps = [0.5, 0.25, None, 9.0, 352.8, 0.1, 0.5]  # of row 5 a tile would need more pixels than it has
    row = _parquet(tmp_path / "a.parquet", 7, mpp=mpps)
    cut = cut_slide(row, TilingConfig(mpp=0.5, tile_px=32))
    assert cut.tiles["row"].unique().to_pylist() == [0, 1, 6]
    refused = {each["row"]: (each["reason"], each["message"]) for each in cut.refused.to_pylist()}
    assert [(index, reason) for index, (reason, _) in refused.items()] == [
        (2, "no_mpp"),
        (3, "needs_upsampling"),
        (4, "no_mpp"),
        (5, "too_small"),
    ]
    assert all(f"a.parquet, row {index}, column mpp: " in message for index, (_, message) in refused.items())
    assert "352.8 is no resolution" in refused[4][1] and "9 um/px" in refused[3][1]
    typed = cut_slide(row, TilingConfig(mpp=0.5, tile_px=32, source_mpp=0.5))
    assert typed.tiles["row"].unique().to_pylist() == [0, 1, 2, 6], "a typed default is for rows that state nothing"
    sources = dict(zip(typed.tiles["row"].to_pylist(), typed.tiles["mpp_source"].to_pylist(), strict=True))
    assert sources == {0: "stated", 1: "stated", 2: "source_mpp", 6: "stated"}
    given = cut_slide(replace(row, mpp=0.5), TilingConfig(mpp=0.5, tile_px=32))
    assert given.refused.num_rows == 0 and set(given.tiles["mpp_source"].to_pylist()) == {"given"}
    as_they_are = cut_slide(row, TilingConfig(mpp=None, tile_px=32))
    assert as_they_are.tiles["row"].unique().to_pylist() == list(range(7)) and as_they_are.refused.num_rows == 0


def test_a_parquet_none_of_whose_rows_fits_is_quarantined_as_a_whole(tmp_path):
    row = _parquet(tmp_path / "a.parquet", 3, mpp=["40x", "9", ""])
    with pytest.raises(
        SlideError, match="a.parquet: none of its 3 rows fits; the first: .*row 0, column mpp: '40x' is no"
    ) as caught:
        tile_slide(row, TilingConfig(mpp=0.5, tile_px=32))
    assert caught.value.reason == "no_mpp"
    with pytest.raises(SlideError, match=r"a.parquet: its finest level has 9 um/px"):
        tile_slide(_parquet(tmp_path / "a.parquet", 2, mpp=[9, 9]), TilingConfig(mpp=0.5, tile_px=32))


def _disc(width: int, height: int) -> np.ndarray:
    """An ellipse that fills the picture: round, where pixels have its aspect."""
    y, x = np.mgrid[:height, :width]
    pixels = np.full((height, width, 3), 245, np.uint8)
    pixels[((x + 0.5) / width - 0.5) ** 2 + ((y + 0.5) / height - 0.5) ** 2 < 0.16] = (160, 70, 150)
    return pixels


@pytest.mark.parametrize("kind", ["plain", "tiled"])
@pytest.mark.parametrize("whole", [None, "image"])
def test_pixels_that_are_not_square_are_seen_as_square_ones(tmp_path, kind, whole):
    """A disc is round to the teacher, in a plain tif as in a tiled one."""
    path = tmp_path / "a.tif"
    tiled = dict(tile=(256, 256)) if kind == "tiled" else {}
    resolution = dict(resolution=(40_000, 20_000), resolutionunit="CENTIMETER")  # 0.25 um/px across, 0.5 down
    tifffile.imwrite(path, _disc(1024, 512), photometric="rgb", compression="zlib", metadata=None, **tiled, **resolution)
    row = SlideRow(slide=str(path), kind="wsi")
    reader = open_slide(row.slide, row.kind)
    assert reader.kind == ("wsi" if kind == "tiled" else "image") and reader.resolution == (0.25, 0.5, "stated")
    (tile,) = tile_slide(row, TilingConfig(mpp=1.0, tile_px=256, min_tissue=0, whole=whole)).to_pylist()
    assert (tile["read_px"], tile["aspect"], tile["footprint_px"]) == (1024, 0.5, 1024)
    assert (tile["width_px"], tile["height_px"], tile["mpp"], tile["tissue"]) == (256, 256, 1.0, pytest.approx(0.5, abs=0.01))
    where = {name: tile[name] for name in ("x_px", "y_px", "level", "read_px", "row", "aspect")}
    seen = read_tile(reader, **where, tile_px=256)
    assert np.abs(seen.astype(int) - _disc(256, 256)).mean() < 2
    shrunk = read_shrunk(reader, seen, **where, factor=4)
    assert shrunk.shape == (64, 64, 3) and np.abs(shrunk.astype(int) - _disc(64, 64)).mean() < 6
    quarters = tile_slide(row, TilingConfig(mpp=0.5, tile_px=256, min_tissue=0))
    assert list(zip(quarters["x_px"].to_pylist(), quarters["y_px"].to_pylist(), strict=True)) == [
        (0, 0),
        (512, 0),
        (0, 256),
        (512, 256),
    ]
    assert quarters["tissue"].to_pylist() == pytest.approx([0.5] * 4, abs=0.02)


def test_a_low_power_scan_is_what_it_states(shared_data):
    row = SlideRow(slide=str(shared_data("slides_mini") / "camelyon16_29um.dcm"), kind="wsi")
    table = tile_slide(row, TilingConfig(mpp=28.97, tile_px=64, min_tissue=0.1))
    assert set(table["read_px"].to_pylist()) == {64} and set(table["mpp_source"].to_pylist()) == {"stated"}


def test_real_slides(shared_data):
    folder = shared_data("slides")
    aperio = SlideRow(slide=str(folder / "CMU-1-Small-Region.svs"), kind="wsi")
    table = tile_slide(aperio, TilingConfig(mpp=0.5))
    assert 25 < table.num_rows < 45 and set(table["read_px"].to_pylist()) == {256}  # 0.499 um/px: as it is
    assert table["mpp"][0].as_py() == pytest.approx(0.499)
    with pytest.raises(SlideError) as caught:
        tile_slide(aperio, TilingConfig(mpp=0.25))
    assert caught.value.reason == "needs_upsampling"

    pyramid = SlideRow(slide=str(folder / "TCGA-V5-A7RE-11A_stitched_pyramid.tiff"), kind="wsi")
    table = tile_slide(pyramid, TilingConfig(mpp=0.5))  # 0.2485 um/px, levels at 1/2/4/8/16
    assert set(table["level"].to_pylist()) == {1} and set(table["footprint_px"].to_pylist()) == {512}
    assert 80 < table.num_rows < 220  # of 22 x 15; about a third is tissue
    dense = tile_slide(pyramid, TilingConfig(mpp=0.5, overlap_px=128))
    assert 3 < dense.num_rows / table.num_rows < 5
    coarse = tile_slide(pyramid, TilingConfig(mpp=3.0, tile_px=64))
    assert set(coarse["level"].to_pylist()) == {3} and set(coarse["read_px"].to_pylist()) == {97}


# ---------------------------------------------------------------------------------------------------------- whole images


def test_an_image_is_one_row_of_its_own_size(tmp_path):
    image = _save(tmp_path / "a.png", paint(128, seed=1)[0][:70, :101])
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
    image = _save(tmp_path / "a.png", paint(128, seed=1)[0][:70, :101])
    with pytest.raises(SlideError, match=message) as caught:
        tile_slide(image, TilingConfig(**{"mpp": None, "whole": "image", "min_tissue": 0.0, **settings}))
    assert caught.value.reason == reason


def test_pieces_of_tissue_are_found_and_specks_are_not():
    mask = np.zeros((200, 300), dtype=bool)
    mask[20:80, 30:110] = True
    mask[100:180, 200:280] = True
    mask[182:190, 200:280] = True  # nearly touches: the same piece
    mask[10:12, 250:252] = True  # a speck
    assert find_pieces(mask).tolist() == [[30, 20, 110, 80], [200, 100, 280, 190]]
    assert find_pieces(np.zeros((20, 20), dtype=bool)).shape == (0, 4)


def test_each_piece_of_a_slide_is_a_row(tmp_path):
    pixels = np.full((600, 900, 3), 245, np.uint8)
    pixels[50:250, 40:400] = (190, 90, 160)
    pixels[300:560, 600:840] = (150, 80, 170)
    table = tile_slide(_save(tmp_path / "a.png", pixels), TilingConfig(mpp=None, whole="tissue"))
    places = table.select(["x_px", "y_px", "width_px", "height_px"]).to_pylist()
    for place, expected in zip(places, [(40, 50, 360, 200), (600, 300, 240, 260)], strict=True):
        assert np.abs(np.subtract(list(place.values()), expected)).max() <= 3


def test_the_training_images_of_a_labelled_set_are_whole_images_too(tmp_path):
    """pretrain.csv, as finetune.py writes it: slide, patient, mpp; the resolution that it says is the one that counts."""
    for name in ("a", "b"):
        _save(tmp_path / f"{name}.png", paint(128, seed=1)[0][:70, :100])
    table = tmp_path / "pretrain.csv"
    table.write_text(f"slide,patient,mpp\n{tmp_path}/a.png,p1,0.5\n{tmp_path}/b.png,p2,0.25\n")
    config = TilingConfig(mpp=1.0, whole="image", min_tissue=0)
    rows = [row for slide in list_slides([str(table)]) for row in tile_slide(slide, config).to_pylist()]
    assert [(row["patient"], row["width_px"], row["height_px"]) for row in rows] == [("p1", 50, 35), ("p2", 25, 17)]


# ------------------------------------------------------------------------------------------------------------ ids and names


@pytest.mark.parametrize(
    "patients",
    [
        pa.array([11, None]),
        pa.array([11.0, None]),
        pa.array([11.0, float("nan")]),
        pa.array(["11", None]).dictionary_encode(),
        pa.array(["11", ""], pa.large_string()),
        pa.array(["11", None]).cast(pa.string_view()),
        pa.array([b"11", None], pa.binary()),
        pa.array([Decimal("11.00"), None]),
    ],
    ids=lambda patients: str(patients.type),
)
@pytest.mark.parametrize("column", ["patient", "slide"])
def test_ids_in_a_parquet_are_text_whatever_their_type(tmp_path, patients, column):
    pixels = np.full((64, 64, 3), 90, np.uint8)
    pq.write_table(pa.table({"image": [_png(pixels)] * 2, column: patients}), tmp_path / "a.parquet")
    row = list_slides([str(tmp_path)])[0]
    assert tile_slide(row, TilingConfig(mpp=None, tile_px=64))["patient"].to_pylist() == ["11", None]


def test_a_column_without_any_id(tmp_path):
    table = pa.table({"image": [_png(np.full((64, 64, 3), 90, np.uint8))] * 2, "patient": pa.nulls(2)})
    pq.write_table(table, tmp_path / "a.parquet")
    row = list_slides([str(tmp_path)])[0]
    assert tile_slide(row, TilingConfig(mpp=None, tile_px=64))["patient"].to_pylist() == [None, None]


def test_what_has_no_utf8_name_is_read_all_the_same(tmp_path, slide):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/Sch\xe4den"))
    folder.mkdir()
    pixels = np.full((64, 64, 3), 90, np.uint8)
    (folder / os.fsdecode(b"Pr\xe4parat.png")).write_bytes(_png(pixels))
    pq.write_table(pa.table({"image": [_png(pixels)], "patient": ["P"]}), sink := io.BytesIO())
    (folder / os.fsdecode(b"T\xfcten.parquet")).write_bytes(sink.getvalue())
    shutil.copy(slide.slide, folder / os.fsdecode(b"Sch\xf6n.svs"))
    tables = [tile_slide(row, TilingConfig(mpp=None, tile_px=64)) for row in list_slides([str(tmp_path)])]
    names = [rf"{tmp_path}/Sch\xe4den/{name}" for name in (r"Pr\xe4parat.png", r"Sch\xf6n.svs", r"T\xfcten.parquet")]
    assert [set(table["slide"].to_pylist()) for table in tables] == [{name} for name in names]
    first = pa.concat_tables([table.slice(0, 1) for table in tables])
    columns = {name: first[name].to_numpy(zero_copy_only=False) for name in first.column_names}
    read = TileReader(tile_px=64, crashes=CrashLog("r", str(tmp_path / "crashes")))(columns)
    assert read[STATUS].tolist() == [OK] * 3 and (read[TILE][[0, 2]] == 90).all()
