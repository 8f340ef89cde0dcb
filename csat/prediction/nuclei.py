"""The nuclei of answers: a row each with place, type, area, probability and outline, on the slide. Runs beside the network.

A nucleus that touches the edge of what the answer covers is marked `is_cut`, unless the slide ends there; a neighbouring tile
may have seen it whole. Which of the rows are kept is decided in `csat.prediction.seams`.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import pyarrow as pa
import shapely

from csat.instances import POST_MPP, instances_from_hv
from csat.prediction.outlines import Regions, outlines_of, regions_of
from csat.prediction.slide_frame import Place, SlideFrame

UNTYPED = "nucleus"  # class of all nuclei where the model tells no types apart
FRAME_UM = 4.0  # at the edges, where nuclei are cut: see `instances_from_hv`
PIXELS_AT_ONCE = 2**21  # of the maps of answers that are put through together: bounds the memory
CENTROID_DECIMALS = 6  # so that a float's last bits decide nothing
COLUMNS = (
    ("id", pa.string()),  # UUID of the slide's file name and the centroid in um (in px where the resolution is not known)
    ("class", pa.string()),
    ("prob", pa.float32()),  # mean nucleus probability of its pixels
    ("x_px", pa.float64()),  # centroid of its pixels, level 0, full canvas
    ("y_px", pa.float64()),
    ("area_um2", pa.float32()),  # of its pixels; null where the resolution is not known
    ("class_prob", pa.float32()),  # share of its class among the types, mean over its pixels; null where there are no types
    ("is_cut", pa.bool_()),  # touches the edge of what was seen, and the slide goes on there
    ("geometry", pa.binary()),  # WKB polygon, level 0, full canvas
)
NUCLEI_SCHEMA = pa.schema(COLUMNS)
BOX = ("left", "top", "right", "bottom")
# What one answer gives: the same, and the box of its pixels, by which neighbours are found.
FOUND_SCHEMA = pa.schema([*COLUMNS, *((name, pa.float64()) for name in BOX)])


def nuclei_of_tile(
    maps: Mapping[str, np.ndarray],
    place: Place,
    frame: SlideFrame,
    *,
    types: Sequence[str] = (),
    threshold: float = 0.5,
) -> pa.Table:
    """`nuclei_of_tiles` of one answer, whose maps lack the first axis."""
    maps = {name: values[None] for name, values in maps.items()}
    return nuclei_of_tiles(maps, [place], [frame], types=types, threshold=threshold)[0]


def nuclei_of_tiles(
    maps: Mapping[str, np.ndarray],
    places: Sequence[Place],
    frames: Sequence[SlideFrame],
    *,
    types: Sequence[str] = (),
    threshold: float = 0.5,
) -> tuple[pa.Table, np.ndarray]:
    """The nuclei of answers with HoVer-Net's maps, by HoVer-Net's post-processing (`instances_from_hv`).

    The same of an answer, whatever others it comes with: they only share the cost of a call.

    Args:
        maps: `np` float `[B, 1, n, m]` in [0, 1] and `hv` float `[B, 2, n, m]`, with types `tp` float `[B, 1 + T, n, m]`,
            probabilities whose first channel is the background; others are ignored.
        places: What each answer covers; see `SlideFrame.place`.
        frames: Of the slide of each.
        types: Names of the channels of `tp`, background first (`ResponseSpec.channel_names`).
        threshold: Probability from which a pixel is nucleus.

    Returns:
        A table of FOUND_SCHEMA, answer after answer; and of which answer each nucleus is, int64 `[N]`.
    """
    size = max(1, PIXELS_AT_ONCE // max(1, maps["np"][0].size))
    if len(places) > size:
        parts = [np.s_[start : start + size] for start in range(0, len(places), size)]
        of_part = partial(nuclei_of_tiles, types=types, threshold=threshold)
        found = [of_part({name: maps[name][part] for name in maps}, places[part], frames[part]) for part in parts]
        tiles = [tile + part.start for part, (_, tile) in zip(parts, found, strict=True)]
        return pa.concat_tables(table for table, _ in found), np.concatenate(tiles)
    probability, hv = (np.asarray(maps[name], np.float32) for name in ("np", "hv"))
    instances = [
        _instances(each[0], both, place, frame, threshold)
        for each, both, place, frame in zip(probability, hv, places, frames, strict=True)
    ]
    tp = maps.get("tp") if len(types) else None
    return _table(np.stack(instances), probability[:, 0], places, frames, types=types, tp=tp)


def nuclei_of_instances(
    instances: np.ndarray,
    probability: np.ndarray,
    place: Place,
    frame: SlideFrame,
    *,
    types: Sequence[str] = (),
    tp: np.ndarray | None = None,
) -> pa.Table:
    """The same of an instance map, for whatever finds its nuclei in another way.

    Args:
        instances: int `[n, m]`, 0 background, nuclei 1 … N without gaps (`csat.instances.relabel`).
        probability: float `[n, m]` in [0, 1]: that a pixel is nucleus.
        tp: float `[1 + T, n, m]` or None: see `nuclei_of_tiles`.

    Returns:
        A table of FOUND_SCHEMA, in the order of the instances.
    """
    tp = None if tp is None else tp[None]
    return _table(instances[None], probability[None], [place], [frame], types=types, tp=tp)[0]


def ids_of(frame: SlideFrame, x_px: np.ndarray, y_px: np.ndarray) -> list[str]:
    """A UUID (version 5) for each centroid: the same on every run, and of the same slide wherever it lies.

    Named by the centroid in um to two decimals, or in px where the resolution is not known.
    """
    return _ids([frame], np.zeros(len(x_px), np.int64), x_px, y_px)


def _ids(frames: Sequence[SlideFrame], tile: np.ndarray, x_px: np.ndarray, y_px: np.ndarray) -> list[str]:
    """Of what lies on several slides; `tile`: on which."""
    mpp = np.array([(frame.mpp_x or 1.0, frame.mpp_y or 1.0) for frame in frames])[tile]
    places = np.round(np.stack([x_px, y_px], 1) * mpp, CENTROID_DECIMALS).tolist()
    spaces = [frame.ids.bytes for frame in frames]
    named = (spaces[index] + b"%.2f,%.2f" % (x, y) for index, (x, y) in zip(tile.tolist(), places, strict=True))
    return [_uuid5(hashlib.sha1(name, usedforsecurity=False).hexdigest()) for name in named]


def _uuid5(digest: str) -> str:
    """As `uuid.uuid5` makes it of the same digest, four times faster."""
    variant = "89ab"[int(digest[16], 16) & 3]
    return f"{digest[:8]}-{digest[8:12]}-5{digest[13:16]}-{variant}{digest[17:20]}-{digest[20:32]}"


def _instances(probability: np.ndarray, hv: np.ndarray, place: Place, frame: SlideFrame, threshold: float) -> np.ndarray:
    """int32 `[n, m]` of one answer."""
    across, _ = place.pixel(probability.shape)
    mpp = POST_MPP if frame.mpp_x is None else frame.mpp_x * across
    frame_px = min(round(FRAME_UM / mpp), min(probability.shape) // 4)
    return instances_from_hv(probability, hv, mpp=mpp, threshold=threshold, frame_px=frame_px)


def _table(
    instances: np.ndarray,
    probability: np.ndarray,
    places: Sequence[Place],
    frames: Sequence[SlideFrame],
    *,
    types: Sequence[str],
    tp: np.ndarray | None,
) -> tuple[pa.Table, np.ndarray]:
    """As `nuclei_of_tiles`, of instance maps `[B, n, m]`."""
    regions = regions_of(instances)
    tile, boxes, owner = regions.tile, regions.boxes, regions.owner
    left, top = (np.array([getattr(place, side) for place in places])[tile] for side in ("left", "top"))
    across, down = np.array([place.pixel(instances.shape[1:]) for place in places])[tile].T
    count = np.bincount(owner, minlength=len(tile))

    def mean(values: np.ndarray) -> np.ndarray:
        return np.bincount(owner, weights=values, minlength=len(tile)) / np.maximum(count, 1)

    x = np.round(left + (mean(regions.columns) + 0.5) * across, CENTROID_DECIMALS)
    y = np.round(top + (mean(regions.rows) + 0.5) * down, CENTROID_DECIMALS)
    names, shares = _types(regions, mean, types, tp)
    polygons = outlines_of(regions, left=left, top=top, across=across, down=down)
    um2 = np.array([frame.um2_per_px2 for frame in frames])[tile]
    values = {
        "id": _ids(frames, tile, x, y),
        "class": names,
        "prob": mean(np.asarray(probability).ravel()[regions.pixels]),
        "class_prob": shares,
        "x_px": x,
        "y_px": y,
        "area_um2": count * (across * down * um2),
        "is_cut": _is_cut(regions, instances.shape[1:], places, frames),
        "geometry": shapely.to_wkb(polygons),
        "left": left + boxes[:, 1] * across,
        "top": top + boxes[:, 0] * down,
        "right": left + (boxes[:, 3] + 1) * across,
        "bottom": top + (boxes[:, 2] + 1) * down,
    }
    arrays = [_column(values[field.name], field.type) for field in FOUND_SCHEMA]
    return pa.table(arrays, schema=FOUND_SCHEMA), tile


def _column(values: np.ndarray | list[str], kind: pa.DataType) -> pa.Array:
    """NaN is null."""
    return pa.array(values, kind, mask=np.isnan(values) if pa.types.is_floating(kind) else None)


def _types(
    regions: Regions, mean: Callable[[np.ndarray], np.ndarray], types: Sequence[str], tp: np.ndarray | None
) -> tuple[list[str], np.ndarray]:
    """Class of each nucleus, the type of the largest mean probability, and that type's share."""
    num_nuclei = len(regions.tile)
    if tp is None:
        return [UNTYPED] * num_nuclei, np.full(num_nuclei, np.nan)
    channels = np.moveaxis(np.asarray(tp), 1, 0)[1:].reshape(len(types) - 1, -1)[:, regions.pixels]
    said = np.stack([mean(channel) for channel in channels], 1).reshape(num_nuclei, len(types) - 1)
    best = said.argmax(1)
    shares = said[np.arange(num_nuclei), best] / np.maximum(said.sum(1), 1e-12)
    return [types[1 + index] for index in best.tolist()], shares


def _is_cut(regions: Regions, shape: tuple[int, int], places: Sequence[Place], frames: Sequence[SlideFrame]) -> np.ndarray:
    """bool `[N]`: at an edge of the answer beyond which the slide goes on."""
    height, width = shape
    is_inner = []  # more than half a pixel of the slide lies beyond the upper, left, lower, right edge
    for place, frame in zip(places, frames, strict=True):
        across, down = place.pixel(shape)
        below, beside = frame.height_px - place.bottom, frame.width_px - place.right
        is_inner.append((place.top > down / 2, place.left > across / 2, below > down / 2, beside > across / 2))
    touches = regions.boxes == (0, 0, height - 1, width - 1)
    return (touches & np.array(is_inner)[regions.tile]).any(1)
