"""Where tiles meet, each nucleus is kept once and none vanishes: known nuclei, an oracle, and every odd grid."""

import cv2
import numpy as np
import pytest
import shapely
from scipy.ndimage import find_objects, label

from csat.instances import relabel
from csat.prediction.nuclei import NUCLEI_SCHEMA
from csat.prediction.seams import Seams
from csat.prediction.slide_frame import Place
from tests.csat.prediction.oracle import TILE_PX, answered_in, found_in, frame_for, painted, places_on, put_together

BORDER_PX = 10  # how near to a core's border counts as at a border


def whole(labels):
    """What a model finds that sees the slide at once."""
    height, width = labels.shape
    return found_in(labels, Place(0, 0, width, height), frame_for(labels))


def same_nuclei(said, true):
    return sorted(said["id"].to_pylist()) == sorted(true["id"].to_pylist())


def disks(size_px, centres, radius_px):
    rows, columns = np.mgrid[:size_px, :size_px]
    labels = np.zeros((size_px, size_px), np.int32)
    for number, (x, y) in enumerate(centres, 1):
        labels[(columns - x) ** 2 + (rows - y) ** 2 <= radius_px**2] = number
    return relabel(labels)


def pieces(labels):
    """The connected pieces: of a painted nucleus that another one covers in the middle, each counts for itself."""
    count, found = 0, np.zeros_like(labels)
    for number, where in enumerate(find_objects(labels), 1):
        each, num = label(labels[where] == number)
        found[where] += np.where(each > 0, each + count, 0)
        count += num
    return found


def test_every_nucleus_once_whatever_the_order():
    labels = painted()
    frame = frame_for(labels)
    places = places_on(frame)
    nuclei, counts = put_together(labels, frame, places)
    assert len(places) == 81 and labels.max() > 150
    assert same_nuclei(nuclei, whole(labels)) and counts["kept"] == len(nuclei) and counts["cut"] == 0
    order = np.random.default_rng(0).permutation(len(places)).tolist()
    again, _ = put_together(labels, frame, places, order=order)
    assert again.equals(nuclei)


@pytest.mark.parametrize("width, height", [(700, 768), (251, 600), (130, 300), (128, 128), (768, 129)])
def test_unequal_last_tiles_and_one_tile(width, height):
    """The last tiles overlap their neighbours by up to all but a pixel."""
    labels = relabel(painted()[:height, :width])
    frame = frame_for(labels)
    nuclei, _ = put_together(labels, frame, places_on(frame))
    assert same_nuclei(nuclei, whole(labels))


def test_level_0_is_finer_than_the_tiles():
    labels = painted()[:400, :500]
    labels = relabel(labels)
    frame = frame_for(labels, scale=2)
    nuclei, _ = put_together(labels, frame, places_on(frame), scale=2)
    assert same_nuclei(nuclei, whole(labels)) and np.asarray(nuclei["x_px"]).max() > 500


def test_an_empty_slide_and_a_slide_without_tiles():
    labels = np.zeros((300, 300), np.int32)
    frame = frame_for(labels)
    nuclei, counts = put_together(labels, frame, places_on(frame))
    assert len(nuclei) == 0 and nuclei.schema == NUCLEI_SCHEMA and counts["kept"] == 0
    assert len(put_together(labels, frame, [])[0]) == 0


def test_nuclei_as_large_as_the_overlap_are_whole_larger_ones_are_marked():
    """Disks on borders and corners of cores: with tiles of 128 px every 88, borders lie at 108, 196, …"""
    centres = [(x, y) for x in (60, 108, 196, 240) for y in (60, 152, 196)]
    for radius_px in (10, 18):
        labels = disks(304, centres, radius_px)
        frame = frame_for(labels)
        assert same_nuclei(put_together(labels, frame, places_on(frame))[0], whole(labels))
    labels = disks(304, [(152, 152)], 75)  # 75 um across; a tile has 64 um
    nuclei, counts = put_together(labels, frame, places_on(frame))
    assert counts["cut"] == len(nuclei) >= 1 and all(nuclei["is_cut"].to_pylist())
    area = shapely.union_all(shapely.from_wkb(nuclei["geometry"].to_numpy())).area
    assert area > 0.8 * (labels > 0).sum()


def test_a_large_nucleus_that_one_tile_sees_whole_is_taken_from_there():
    """Its visible part has its centroid in the core of a tile that cuts it; the neighbour has all of it."""
    labels = disks(304, [(100, 64)], 30)  # reaches to 130: the tile from 0 to 128 cuts it, the one from 88 cuts it as well
    frame = frame_for(labels)
    places = [Place(0, 0, 128, 304), Place(60, 0, 188, 304), Place(176, 0, 304, 304)]
    nuclei, _ = put_together(labels, frame, places)
    assert same_nuclei(nuclei, whole(labels)) and nuclei["is_cut"].to_pylist() == [False]


def test_where_a_tile_is_missing_its_neighbours_answer_and_what_reaches_into_it_is_marked():
    labels = painted()
    frame = frame_for(labels)
    places = places_on(frame)
    missing = {31, 40}
    nuclei, counts = put_together(labels, frame, places, missing=missing)
    seen = np.zeros(labels.shape, bool)
    for index, place in enumerate(places):
        if index not in missing:
            left, top, right, bottom = map(round, place)
            seen[top:bottom, left:right] = True
    known = {row["id"]: row for row in whole(labels).to_pylist()}
    entire = {label for label in np.unique(labels[labels > 0]) if seen[labels == label].all()}
    partly = {label for label in np.unique(labels[labels > 0]) if seen[labels == label].any()} - entire
    assert partly and entire
    kept = nuclei.to_pylist()
    ids = list(known)
    assert {row["id"] for row in kept if not row["is_cut"]} == {ids[label - 1] for label in entire}
    assert counts["cut"] == sum(row["is_cut"] for row in kept)
    at = [labels[int(row["y_px"]), int(row["x_px"])] for row in kept if row["is_cut"]]
    assert set(at) - {0} <= partly and len(at) >= 0.8 * len(partly)


def test_two_tiles_that_place_a_nucleus_beyond_the_border_each_do_not_lose_it():
    """The answers differ by 2 px: each tile's centroid lies in the other's core."""
    frame = frame_for(np.zeros((128, 216), np.int32))
    places = [Place(0, 0, 128, 128), Place(88, 0, 216, 128)]
    left, right = disks(216, [(110, 64)], 8)[:128], disks(216, [(106, 64)], 8)[:128]
    seams = Seams(places, frame)
    first = seams.add(0, found_in(left, places[0], frame))
    second = seams.add(1, found_in(right, places[1], frame))
    assert len(first) + len(second) == 1 and seams.counts["kept"] == 1
    both = Seams(places, frame)  # and the other way round: each in its own core
    both.add(0, found_in(right, places[0], frame))
    assert len(both.add(1, found_in(left, places[1], frame))) == 1 and both.counts["twin"] == 1


@pytest.mark.parametrize("x", [96, 104])
def test_what_only_a_neighbour_saw_is_not_kept(x):
    """Near the border or not: else there would be more nuclei at borders than elsewhere."""
    frame = frame_for(np.zeros((128, 216), np.int32))
    places = [Place(0, 0, 128, 128), Place(88, 0, 216, 128)]
    seams = Seams(places, frame)
    seams.add(0, found_in(np.zeros((128, 216), np.int32), places[0], frame))
    said = seams.add(1, found_in(disks(216, [(x, 64)], 5)[:128], places[1], frame))
    assert len(said) == 0 and seams.counts["beyond"] == 1


def test_memory_holds_a_few_bands():
    labels = painted()
    frame = frame_for(labels)
    places = places_on(frame)
    seams, most = Seams(places, frame), 0
    for index, place in enumerate(places):
        seams.add(index, found_in(labels, place, frame))
        most = max(most, len(seams._tables))
    assert most <= 3 * 9 and not seams._tables and not seams._settled and len(seams._kept.area) == 0


def test_a_tile_that_was_not_reported_is_an_error():
    labels = painted()
    frame = frame_for(labels)
    seams = Seams(places_on(frame), frame)
    seams.add(0, None)
    with pytest.raises(ValueError, match="80 of 81 tiles were not reported"):
        seams.finish()
    with pytest.raises(ValueError, match="twice"):
        seams.add(0, None)


def test_counts_and_dice_at_borders_are_those_elsewhere_and_none_is_doubled():
    """Tiles of 128 px, HoVer-Net's maps and post-processing: what lies within 10 px of a core's border, and the rest."""
    labels = pieces(painted(1536, seed=0))
    frame = frame_for(labels)
    places = places_on(frame)
    nuclei, _ = put_together(labels, frame, places, find=answered_in)
    lefts = sorted({place.left for place in places})
    borders = np.array([(one + TILE_PX + other) / 2 for one, other in zip(lefts, lefts[1:], strict=False)])
    near = np.abs(np.arange(1536)[:, None] + 0.5 - borders).min(1) <= BORDER_PX
    is_border = near[:, None] | near
    said = np.zeros(labels.shape, np.int32)
    outlines = shapely.from_wkb(nuclei["geometry"].to_numpy())
    for outline in outlines:
        points = (shapely.get_coordinates(outline) - 0.5) * 16  # OpenCV counts from the middle of a pixel
        cv2.fillPoly(said, [np.round(points).astype(np.int32)], 1, shift=4)
    rows, columns = np.nonzero(labels)
    area = np.bincount(labels[rows, columns])[1:]
    true = np.stack([np.bincount(labels[rows, columns], each)[1:] / area for each in (columns, rows)], 1)
    hit = labels[np.asarray(nuclei["y_px"]).astype(int), np.asarray(nuclei["x_px"]).astype(int)]
    found, dice = [], []
    for zone in (is_border, ~is_border):
        in_zone = zone[true[:, 1].astype(int), true[:, 0].astype(int)]
        found.append(np.isin(np.flatnonzero(in_zone) + 1, hit).mean())
        both, one, other = ((each & zone).sum() for each in ((said > 0) & (labels > 0), said > 0, labels > 0))
        dice.append(2 * both / (one + other))
        assert in_zone.sum() > 350
    assert abs(found[0] - found[1]) < 0.005 and abs(dice[0] - dice[1]) < 0.005, (found, dice)
    assert min(found) > 0.99 and min(dice) > 0.93 and (hit > 0).all()
    assert len(np.unique(hit)) >= 0.995 * len(hit)  # three are split, each by the watershed of a single tile
    first, second = shapely.STRtree(outlines).query(outlines)
    first, second = first[first < second], second[first < second]
    shared = shapely.area(shapely.intersection(outlines[first], outlines[second]))
    smaller = np.minimum(shapely.area(outlines[first]), shapely.area(outlines[second]))
    assert (shared < 0.5 * smaller).all()
