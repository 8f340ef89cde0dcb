"""Maps of a slide: values lie where they belong at every scale, nothing drifts, and memory does not follow the slide."""

import numpy as np
import pytest

from csat.prediction.slide_frame import Place, SlideFrame
from csat.prediction.slide_maps import SlideMap, cells_of, grid_of_tiles, grid_of_um
from tests.csat.prediction.oracle import frame_for, painted, places_on


def truth_on(mask, grid):
    """float `[h, w]`: the part of each cell that the mask has, by brute force on pixels cut in eight."""
    fine = mask.repeat(8, 0).repeat(8, 1).astype(np.float32)
    rows = np.arange(grid.height * 1.0) * grid.cell_y * 8
    columns = np.arange(grid.width * 1.0) * grid.cell_x * 8
    out = np.zeros((grid.height, grid.width), np.float32)
    for i, row in enumerate(rows):
        strip = fine[round(row) : round(row + grid.cell_y * 8)].mean(0)
        for j, column in enumerate(columns):
            out[i, j] = strip[round(column) : round(column + grid.cell_x * 8)].mean()
    return out


def gathered(mask, frame, grid, *, order=None, **options):
    """The map of an answerer that is always right."""
    places = places_on(frame)
    with SlideMap(grid, 1 if options.get("labels") else 2, **options) as slide_map:
        for index in range(len(places)) if order is None else order:
            left, top, right, bottom = map(round, places[index])
            said = mask[top:bottom, left:right].astype(np.float32)
            slide_map.add(cells_of(np.stack([1 - said, said]), places[index], grid, **options), places[index])
        return slide_map.read(0)


@pytest.mark.parametrize("cell_um", [0.5, 1.0, 2.0, 3.3])
def test_a_map_is_where_the_slide_is(cell_um):
    """Tiles of 128 px with unequal last ones; 3.3 um are 6.6 px: cells begin between pixels."""
    mask = painted()[:300, :333] > 0
    frame = frame_for(mask)
    grid = grid_of_um(frame, cell_um)
    said = gathered(mask, frame, grid)
    true = truth_on(mask, grid)
    inner = np.s_[: int(300 * 0.5 // cell_um), : int(333 * 0.5 // cell_um)]  # cells that lie on the slide as a whole
    assert np.abs(said[1] / 255 - true)[inner].max() < 0.03
    assert np.abs(said[0].astype(int) + said[1] - 255).max() <= 1


def test_the_order_of_tiles_does_not_matter():
    mask = painted()[:300, :333] > 0
    frame = frame_for(mask)
    grid = grid_of_um(frame, 2.0)
    order = np.random.default_rng(0).permutation(len(places_on(frame)))
    assert np.array_equal(gathered(mask, frame, grid), gathered(mask, frame, grid, order=order))


def test_margins_are_used_only_where_there_is_no_neighbour():
    """Two tiles that contradict each other: the border is the middle of their overlap; beyond a missing one it is the edge."""
    frame = SlideFrame(slide="a.svs", width_px=216, height_px=128, mpp_x=0.5, mpp_y=0.5)
    grid = grid_of_um(frame, 2.0)
    left, right = Place(0, 0, 128, 128), Place(88, 0, 216, 128)
    ones, twos = np.full((1, 128, 128), 0.2, np.float32), np.full((1, 128, 128), 0.6, np.float32)
    with SlideMap(grid, 1) as slide_map:
        slide_map.add(cells_of(ones, left, grid), left)
        assert (slide_map.read(0)[0] > 0).sum(1).tolist() == [32] * 32
        slide_map.add(cells_of(twos, right, grid), right)
        assert (slide_map.read(0)[0, 5] == 51).sum() == 27 and (slide_map.read(0)[0, 5] == 153).sum() == 27


def test_one_cell_for_each_tile_of_a_classifier():
    places = [Place(x, y, x + 128, y + 128) for y in (0, 128, 256) for x in (0, 128, 256, 372)]
    frame = SlideFrame(slide="a.svs", width_px=500, height_px=384, mpp_x=0.5, mpp_y=0.5)
    grid = grid_of_tiles(frame, places)
    assert (grid.width, grid.height) == (4, 3)
    with SlideMap(grid, 1) as slide_map:
        for index, place in enumerate(places):
            slide_map.add(cells_of(np.array([index / 20]), place, grid), place)
        assert np.array_equal(slide_map.read(0)[0], np.round(np.arange(12) * 255 / 20).reshape(3, 4))


def test_labels_are_the_most_probable_class_and_stay_labels_on_coarser_levels():
    mask = painted() > 0
    frame = frame_for(mask)
    grid = grid_of_um(frame, 0.5)
    said = gathered(mask, frame, grid, labels=True)
    assert np.array_equal(said[0], mask + 1)
    with SlideMap(grid, 1, labels=True) as slide_map:
        for place in places_on(frame):
            left, top, right, bottom = map(round, place)
            part = mask[top:bottom, left:right].astype(np.float32)
            slide_map.add(cells_of(np.stack([1 - part, part]), place, grid, labels=True), place)
        slide_map.build_pyramid()
        assert slide_map.levels == [(1, 768, 768), (1, 384, 384)]
        coarse = slide_map.read(1)[0]
        assert set(np.unique(coarse)) == {1, 2}
        share = mask.reshape(384, 2, 384, 2).mean((1, 3))
        assert (coarse[share > 0.5] == 2).all() and (coarse[share < 0.5] == 1).all()


def test_probabilities_are_halved_by_their_mean_without_drift():
    frame = SlideFrame(slide="a.svs", width_px=1001, height_px=1203, mpp_x=1.0, mpp_y=1.0)
    grid = grid_of_um(frame, 1.0)
    values = np.random.default_rng(0).random((1, 1203, 1001), np.float32)
    with SlideMap(grid, 1) as slide_map:
        slide_map.add(cells_of(values, Place(0, 0, 1001, 1203), grid), Place(0, 0, 1001, 1203))
        slide_map.build_pyramid()
        assert slide_map.levels == [(1, 1203, 1001), (1, 602, 501), (1, 301, 251)]
        fine, coarse = slide_map.read(0)[0].astype(float), slide_map.read(1)[0]
        assert np.abs(fine[:1202, :1000].reshape(601, 2, 500, 2).mean((1, 3)) - coarse[:601, :500]).max() <= 0.5


def test_an_answer_beyond_the_edge_of_the_slide_adds_nothing():
    frame = SlideFrame(slide="a.svs", width_px=100, height_px=100, mpp_x=0.5, mpp_y=0.5)
    grid = grid_of_um(frame, 2.0)
    with SlideMap(grid, 1) as slide_map:
        slide_map.add(cells_of(np.ones((1, 64, 64)), Place(200, 0, 264, 64), grid), Place(200, 0, 264, 64))
        assert not slide_map.read(0).any()
