"""Outlines lie on the pixels' edges, are valid, and none is lost, whatever the instance looks like."""

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from csat.prediction.outlines import outlines_of, regions_of
from tests.csat.prediction.oracle import painted


def outlines(instances, **place):
    return outlines_of(regions_of(instances[None]), **{"left": 0.0, "top": 0.0, "across": 1.0, "down": 1.0, **place})


def test_a_rectangle_has_its_edges_within_half_a_pixel():
    instances = np.zeros((40, 40), np.int32)
    instances[5:25, 10:30] = 1
    (polygon,) = outlines(instances, left=100.0, top=200.0, across=2.0, down=3.0)
    assert polygon.bounds == pytest.approx((120.0, 215.0, 160.0, 275.0), abs=1.5)
    assert polygon.area == pytest.approx(40 * 60, rel=0.06)  # its corners are rounded


def test_areas_and_shapes_of_nuclei_are_those_of_their_pixels():
    instances = painted()
    found = outlines(instances, across=2.0, down=2.0)
    pixels = 4 * np.bincount(instances.ravel())[1:]
    assert shapely.is_valid(found).all() and (shapely.get_type_id(found) == shapely.GeometryType.POLYGON).all()
    large = pixels > 4 * 40
    assert 0.985 < (shapely.area(found) / pixels)[large].mean() < 1.01
    assert shapely.get_num_coordinates(found).mean() < 15
    rows, columns = np.nonzero(instances)
    centres = shapely.points(2 * columns + 1.0, 2 * rows + 1.0)
    assert shapely.contains(found[instances[rows, columns] - 1], centres).mean() > 0.93


def test_coordinates_have_one_decimal():
    points = shapely.get_coordinates(outlines(painted(), left=0.37, top=0.11, across=2.151, down=2.151))
    assert np.allclose(points, np.round(points, 1), atol=1e-9)


@pytest.mark.parametrize(
    "drawn", [["#"], ["##"], ["#.", ".#"], ["#.#", ".#.", "#.#"], ["###", "#.#", "###"], ["#......#", "########"]]
)
def test_odd_shapes_are_one_valid_polygon(drawn):
    instances = np.array([[character == "#" for character in line] for line in drawn], np.int32)
    for across in (0.5, 1.0, 4.3):
        (polygon,) = outlines(instances, across=across, down=across)
        assert polygon.is_valid and polygon.geom_type == "Polygon" and polygon.area > 0


def test_of_several_pieces_the_largest():
    instances = np.zeros((20, 20), np.int32)
    instances[2:4, 2:4] = instances[8:18, 8:18] = 1
    (polygon,) = outlines(instances)
    assert polygon.bounds == pytest.approx((8, 8, 18, 18), abs=0.5)


@settings(max_examples=60)
@given(arrays(np.int32, (9, 9), elements=st.integers(0, 2)), st.sampled_from([0.4, 1.0, 2.15]))
def test_whatever_the_pixels_every_instance_has_a_valid_polygon(instances, across):
    present = np.unique(instances[instances > 0])
    instances = np.searchsorted(np.concatenate([[0], present]), instances).astype(np.int32)
    found = outlines(instances, across=across, down=across, left=1000.3, top=77.7)
    assert len(found) == len(present)
    assert shapely.is_valid(found).all() and (shapely.area(found) > 0).all()
    assert (shapely.get_type_id(found) == shapely.GeometryType.POLYGON).all()
    rings = [shapely.get_coordinates(each)[1:].tolist() for each in found]
    assert all(len(set(map(tuple, ring))) == len(ring) for ring in rings), "a point twice"


def test_no_instance_no_outline():
    assert len(outlines(np.zeros((5, 5), np.int32))) == 0
