"""Where tiles lie: inside the slide, over all of it, at the best level, at the wanted resolution."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from csat.errors import ConfigError, SlideError
from csat.slides.images import Level
from csat.slides.mpp import Mpp
from csat.tiles.grid import TilingConfig, plan_grid

PYRAMID = [Level(40_000, 30_000, 1.0), Level(10_000, 7_500, 4.0), Level(2_500, 1_875, 16.0)]


def _stated(mpp: float, down: float | None = None) -> Mpp:
    return Mpp(mpp, down or mpp, "stated")


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
    assert plan_grid("b.svs", [Level(400, 300, 1.0)], resolution, asked).read_px < 256  # of a slide without millions of tiles


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


@given(_grids())
def test_covering_the_edges_leaves_no_pixel_out_and_moves_no_other_tile(case):
    levels, resolution, config = case
    try:
        grids = [plan_grid("s", levels, resolution, replace(config, cover_edges=covers)) for covers in (False, True)]
    except SlideError:
        return
    for name, extent, aspect in (("x_px", levels[0].width_px, 1.0), ("y_px", levels[0].height_px, grids[1].aspect)):
        plain, covering = (np.unique(getattr(grid, name)) for grid in grids)
        footprint_px = grids[1].footprint_px * aspect
        assert covering[: len(plain)].tolist() == plain.tolist() and len(covering) - len(plain) in (0, 1)
        assert covering[0] == 0 and extent - 1 < covering[-1] + footprint_px <= extent + 1e-6
        assert (np.diff(covering) <= math.ceil(footprint_px)).all()


def test_a_footprint_that_is_whole_but_for_rounding_reaches_the_edge():
    """Two tiles of 300.00000000000006 px in 600: the second would begin at 299 and leave the last pixel out."""
    levels = [Level(600, 600, 1.0), Level(399, 399, 1.5000000000000002)]
    config = TilingConfig(mpp=0.5, tile_px=32, overlap_px=0)
    grid = plan_grid("s", levels, Mpp(0.1015625, 0.05345394736842105, "stated"), replace(config, cover_edges=True))
    assert grid.footprint_px * grid.aspect == pytest.approx(300, abs=1e-9)
    assert np.unique(grid.y_px).tolist() == [0, 300]


@given(_grids(), st.integers(1, 7))
def test_with_a_margin_what_is_answered_reaches_from_edge_to_edge(case, margin_px):
    """The outermost tiles reach beyond the slide by the margin that a model leaves out, to the nearest level-0 pixel."""
    levels, resolution, config = case
    config = replace(config, overlap_px=max(config.overlap_px, 2 * margin_px), cover_edges=True, margin_px=margin_px)
    try:
        grid = plan_grid("s", levels, resolution, config)
    except SlideError as error:
        assert error.reason == "too_small"
        return
    for positions, extent, footprint_px in (
        (grid.x_px, levels[0].width_px, grid.footprint_px),
        (grid.y_px, levels[0].height_px, grid.footprint_px * grid.aspect),
    ):
        margin = footprint_px * margin_px / config.tile_px
        starts = np.unique(positions) + margin
        ends = starts + footprint_px - 2 * margin
        assert abs(starts[0]) <= 0.5 + 1e-6 and abs(ends[-1] - extent) <= 0.5 + 1e-6
        assert (starts[1:] < ends[:-1] + 1).all(), "no more of a gap between than steps of whole pixels leave"


def test_a_margin_is_less_than_half_a_tile():
    with pytest.raises(ConfigError, match="data.margin_px must be 0 or more, and less than half of tile_px, not 64"):
        TilingConfig(tile_px=128, margin_px=64)
