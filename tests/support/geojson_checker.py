"""What QuPath asks of a GeoJSON file, checked by the text alone: nothing of this project and no geometry library is used."""

import gzip
import json
import math
import re
import uuid

TYPES = ("detection", "cell", "annotation", "tile")
GEOMETRIES = ("Polygon", "MultiPolygon", "Point")
MOST_MEASUREMENTS = 3  # of a detection or a cell
FEATURE_KEYS = {"type", "id", "geometry", "nucleusGeometry", "properties"}
PROPERTY_KEYS = {"objectType", "classification", "measurements", "metadata", "isLocked", "name", "color"}


def read_checked(path, *, width_px, height_px, slack_px=0.0):
    """The features of a file, or AssertionError saying what QuPath would not take.

    Args:
        width_px, height_px: Of the image as QuPath opens it: every object has to lie on it.
        slack_px: How far objects may reach beyond it.
    """
    assert str(path).endswith(".geojson.gz"), path
    with gzip.open(path, "rt", encoding="utf-8") as file:
        collection = json.load(file, parse_constant=_no_constant)
    assert collection["type"] == "FeatureCollection" and set(collection) == {"type", "features"}
    for feature in collection["features"]:
        _check_feature(feature)
        for ring in _rings(feature["geometry"]):
            for x, y in ring:
                assert -slack_px <= x <= width_px + slack_px and -slack_px <= y <= height_px + slack_px, (x, y)
    ids = [feature["id"] for feature in collection["features"]]
    assert len(set(ids)) == len(ids), "ids are given twice"
    return collection["features"]


def _check_feature(feature):
    assert feature["type"] == "Feature" and set(feature) <= FEATURE_KEYS, set(feature)
    assert str(uuid.UUID(feature["id"])) == feature["id"]
    properties = feature["properties"]
    assert set(properties) <= PROPERTY_KEYS, set(properties)
    kind = properties["objectType"]
    assert kind in TYPES
    assert ("nucleusGeometry" in feature) == (kind == "cell")
    for name in ("geometry", "nucleusGeometry"):
        if name in feature:
            _check_geometry(feature[name])
    classification = properties["classification"]
    assert set(classification) == {"name", "color"} and classification["name"]
    assert len(classification["color"]) == 3 and all(type(c) is int and 0 <= c <= 255 for c in classification["color"])
    measurements = properties["measurements"]
    assert kind == "tile" or len(measurements) <= MOST_MEASUREMENTS
    assert all(type(value) in (int, float) and math.isfinite(value) for value in measurements.values())
    assert all(type(value) is str for value in properties.get("metadata", {}).values())


def _check_geometry(geometry):
    assert geometry["type"] in GEOMETRIES and set(geometry) == {"type", "coordinates"}, geometry["type"]
    for ring in _rings(geometry):
        for point in ring:
            assert len(point) == 2 and all(re.fullmatch(r"-?\d+(\.\d)?", repr(value)) for value in point), point
    if geometry["type"] != "Point":
        for ring in _rings(geometry):
            assert len(ring) >= 4 and ring[0] == ring[-1], ring
            assert _is_simple(ring), ring
            assert _area(ring) > 0, ring


def _rings(geometry):
    coordinates = geometry["coordinates"]
    return {"Point": [[coordinates]], "Polygon": coordinates}.get(
        geometry["type"], [ring for polygon in coordinates for ring in polygon] if geometry["type"] == "MultiPolygon" else None
    )


def _is_simple(ring):
    """No point twice, no two edges that meet but neighbours at their common point."""
    points = ring[:-1]
    if len(set(map(tuple, points))) < len(points):
        return False
    edges = list(zip(ring[:-1], ring[1:], strict=True))
    for i, (a, b) in enumerate(edges):
        for j in range(i + 1, len(edges)):
            c, d = edges[j]
            is_next = j == i + 1 or (i == 0 and j == len(edges) - 1)
            if not is_next and _meet(a, b, c, d):
                return False
    return True


def _turn(a, b, c):
    value = (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
    return 0 if abs(value) < 1e-9 else (1 if value > 0 else -1)


def _meet(a, b, c, d):
    turns = _turn(a, b, c), _turn(a, b, d), _turn(c, d, a), _turn(c, d, b)
    if turns[0] != turns[1] and turns[2] != turns[3]:
        return True
    boxes = ((a, b, c), (a, b, d), (c, d, a), (c, d, b))
    return any(turn == 0 and _within(*box) for turn, box in zip(turns, boxes, strict=True))


def _within(a, b, p):
    return min(a[0], b[0]) <= p[0] <= max(a[0], b[0]) and min(a[1], b[1]) <= p[1] <= max(a[1], b[1])


def _area(ring):
    return abs(sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in zip(ring[:-1], ring[1:], strict=True))) / 2


def _no_constant(name):
    raise AssertionError(f"{name} is no number of JSON")
