"""Instance maps → outlines: closed, simple polygons that lie on the pixels' edges, as QuPath and shapely want them.

`cv2.findContours` runs through the centres of the border's pixels: a nucleus of 8 px radius loses a tenth of its area. So an
instance is enlarged twice and followed along its pixels' corners; the stairs are smoothed by a running mean, which leaves few
points for Douglas and Peucker, and these are rounded to one decimal. Over 420 painted nuclei at 0.5 um/px the areas are 0.998
of the pixels' on average, with 11 points each (without smoothing 1.037 and 22 points). What is not simple after that is
repaired; no instance is lost.

Neighbours share corners, so each instance is followed by itself. All instances of a batch of maps are drawn beside each other
on one sheet for that, and OpenCV is called once.
"""

from typing import NamedTuple

import cv2
import numpy as np
import shapely
from scipy.ndimage import find_objects

ENLARGED = 2  # sub-pixels per pixel; the corners of pixels are whole numbers
DECIMALS = 1  # of level-0 px
SMOOTHED = (-2, -1, 0, 1, 2)  # points of the running mean, half a pixel of the map apart
BRIDGE_PX = 0.2  # joins lobes that touch in one point; level-0 px
CORNERS = np.ones((2, 2), np.uint8)
SHEET_PX = 1024  # width of the sheet, pixels of the maps


class Regions(NamedTuple):
    """The instances of maps of one size, numbered 0 … N - 1 through all maps, as lists of pixels."""

    tile: np.ndarray  # int64 [N]: of which map
    boxes: np.ndarray  # int64 [N, 4]: first row, first column, last row, last column, in its map
    pixels: np.ndarray  # int64 [P]: where in the raveled stack of maps
    rows: np.ndarray  # int64 [P], in its map
    columns: np.ndarray
    owner: np.ndarray  # int64 [P]: of which instance


def regions_of(instances: np.ndarray) -> Regions:
    """The instances of maps.

    Args:
        instances: int32 `[B, H, W]`, 0 is background; of each map instances 1 … n, all of them there.
    """
    num_maps, height, width = instances.shape
    boxes = [_boxes(labels) for labels in instances]
    counts = np.array([len(each) for each in boxes], np.int64)
    pixels = np.flatnonzero(instances)
    tile, within = np.divmod(pixels, height * width)
    rows, columns = np.divmod(within, width)
    owner = instances.ravel()[pixels] - 1 + (np.cumsum(counts) - counts)[tile]
    return Regions(np.repeat(np.arange(num_maps), counts), np.concatenate(boxes), pixels, rows, columns, owner)


def outlines_of(
    regions: Regions,
    *,
    left: np.ndarray | float,
    top: np.ndarray | float,
    across: np.ndarray | float,
    down: np.ndarray | float,
    tolerance_px: float = 0.5,
) -> np.ndarray:
    """The outline of each instance; of one in several pieces, that of the largest. Holes are filled.

    Args:
        regions: The instances.
        left, top: Of each instance or of all: where its map's upper left corner lies, level-0 px.
        across, down: Likewise, level-0 px per pixel of the map.
        tolerance_px: How far the simplified outline may lie from the other, pixels of the map; 0: not simplified.

    Returns:
        object `[N]` of shapely polygons: valid, closed, counted in level-0 px with one decimal.
    """
    count = len(regions.tile)
    if not count:
        return np.empty(0, object)
    left, top, across, down = (np.broadcast_to(np.asarray(each, np.float64), count) for each in (left, top, across, down))
    points, lengths = _closed(*_simplified(*_contours(regions), tolerance_px * ENLARGED))
    scale = np.stack([across, down], 1) / ENLARGED
    points = points * np.repeat(scale, lengths, 0) + np.repeat(np.stack([left, top], 1), lengths, 0)
    points, ends = np.round(points, DECIMALS), np.concatenate([[0], np.cumsum(lengths)])
    polygons = shapely.from_ragged_array(shapely.GeometryType.POLYGON, points, (ends, np.arange(count + 1)))
    again = np.flatnonzero((points[1:] == points[:-1]).all(1))  # a point twice, which rounding made so
    twice = np.unique(np.searchsorted(ends, again, side="right") - 1)
    polygons[twice] = shapely.remove_repeated_points(polygons[twice])
    for index in np.flatnonzero(~shapely.is_valid(polygons)):
        place = {"left": left[index], "top": top[index], "across": across[index], "down": down[index]}
        polygons[index] = _repaired(polygons[index], regions.boxes[index], **place)
    return polygons


def _boxes(labels: np.ndarray) -> np.ndarray:
    corners = [(y.start, x.start, y.stop - 1, x.stop - 1) for y, x in find_objects(labels)]
    return np.array(corners, np.int64).reshape(-1, 4)


def _contours(regions: Regions) -> tuple[np.ndarray, np.ndarray]:
    """int32 `[P, 2]`, x and y of the corners along the edge of each instance in turn, half pixels of its map; and how many
    there are of each, int64 `[N]`. Rings are not closed."""
    shift, shape = _places_on_sheet(regions.boxes)
    sheet = np.zeros(shape, np.int32)
    sheet[regions.rows + shift[regions.owner, 0], regions.columns + shift[regions.owner, 1]] = regions.owner + 1
    mask = (sheet > 0).view(np.uint8)
    corners = np.zeros((ENLARGED * shape[0] + 1, ENLARGED * shape[1] + 1), np.uint8)
    corners[:-1, :-1] = cv2.resize(mask, None, fx=ENLARGED, fy=ENLARGED, interpolation=cv2.INTER_NEAREST)
    corners = cv2.dilate(corners, CORNERS, anchor=(1, 1))
    found, _ = cv2.findContours(corners, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    x, y = np.array([contour[0, 0] for contour in found]).T // ENLARGED  # each begins with a corner of its own pixels
    owner = sheet[y, x] - 1
    order = np.argsort(owner) if len(found) == len(regions.boxes) else _largest(found, owner)
    contours = [found[index] for index in order.tolist()]
    lengths = np.array([len(contour) for contour in contours])
    return np.concatenate(contours)[:, 0] - np.repeat(ENLARGED * shift[:, ::-1], lengths, 0), lengths


def _places_on_sheet(boxes: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
    """int64 `[N, 2]`, rows and columns from where each instance lies in its map to its place on the sheet; and its shape.

    The tallest first, from left to right on shelves, with a pixel between.
    """
    height, width = (boxes[:, 2:] - boxes[:, :2] + 1).T
    order = np.argsort(-height, kind="stable")
    start = np.cumsum(width[order] + 1) - (width[order] + 1)
    shelf, column = np.divmod(start, SHEET_PX)
    _, first = np.unique(shelf, return_index=True)
    shelf_height = height[order][first] + 1
    row = (np.cumsum(shelf_height) - shelf_height)[np.searchsorted(start[first], start, side="right") - 1]
    shift = np.empty((len(boxes), 2), np.int64)
    shift[order] = np.stack([row, column], 1)
    return shift - boxes[:, :2], (int(shelf_height.sum()), int((column + width[order]).max()) + 1)


def _largest(found: list[np.ndarray], owner: np.ndarray) -> np.ndarray:
    """int64 `[N]`: of each instance, in their order, the contour that encloses most; the first of equals."""
    area = np.zeros(len(found))
    several = np.flatnonzero(np.bincount(owner)[owner] > 1)
    area[several] = [cv2.contourArea(found[index]) for index in several.tolist()]
    order = np.lexsort([np.arange(len(found)), -area, owner])
    return order[np.unique(owner[order], return_index=True)[1]]


def _simplified(points: np.ndarray, lengths: np.ndarray, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
    """float32 `[P, 2]`, few points of each ring, which is not closed; and how many of each."""
    ends = np.cumsum(lengths)
    smooth = _smooth(points, ends - lengths, lengths)
    if not tolerance:
        return smooth, lengths
    rings = []
    for stop, count in zip(ends.tolist(), lengths.tolist(), strict=True):
        ring = smooth[stop - count : stop]
        simple = cv2.approxPolyDP(ring, tolerance, True)
        rings.append(simple[:, 0] if len(simple) > 2 else ring)
    return np.concatenate(rings), np.array([len(ring) for ring in rings])


def _smooth(points: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """float32 `[P, 2]`: the running mean along each ring, which has five points or more."""
    sums = np.zeros_like(points)
    for step in SMOOTHED:  # as if all were one line; then where rings begin and end
        low, high = max(0, -step), len(points) - max(0, step)
        sums[low:high] += points[low + step : high + step]
    reach = max(SMOOTHED)
    for position in range(-reach, reach):
        around = (position + np.array(SMOOTHED)[:, None]) % lengths
        sums[starts + position % lengths] = points[starts + around].sum(0)
    return sums.astype(np.float32) / np.float32(len(SMOOTHED))


def _closed(points: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rings with their first point at the end once more."""
    ends = np.cumsum(lengths + 1)
    taken = np.arange(ends[-1]) - np.repeat(np.arange(len(lengths)), lengths + 1)
    taken[ends - 1] = np.cumsum(lengths) - lengths
    return points[taken], lengths + 1


def _repaired(
    polygon: shapely.Polygon, box: np.ndarray, *, left: float, top: float, across: float, down: float
) -> shapely.Polygon:
    """A valid polygon for one that is not: its own area, lobes joined; failing that its hull, or the box of its pixels."""
    for whole in (shapely.buffer(shapely.make_valid(polygon), BRIDGE_PX, quad_segs=1), shapely.convex_hull(polygon)):
        parts = [part for part in shapely.get_parts(whole) if shapely.get_type_id(part) == shapely.GeometryType.POLYGON]
        for part in sorted(parts, key=shapely.area, reverse=True)[:1]:
            ring = shapely.get_coordinates(shapely.get_exterior_ring(part))
            rounded = shapely.polygons(np.round(ring, DECIMALS))
            if shapely.is_valid(rounded) and shapely.area(rounded):
                return rounded
    first_row, first_column, last_row, last_column = box.tolist()
    x = np.round([left + first_column * across, left + (last_column + 1) * across], DECIMALS)
    y = np.round([top + first_row * down, top + (last_row + 1) * down], DECIMALS)
    return shapely.box(x[0], y[0], x[1], y[1])
