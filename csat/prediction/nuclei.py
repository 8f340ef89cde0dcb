"""The nuclei of one answer: a row each with place, type, area, probability and outline, on the slide. Runs beside the network.

A nucleus that touches the edge of what the answer covers is marked `is_cut`, unless the slide ends there; a neighbouring tile
may have seen it whole. Which of the rows are kept is decided in `csat.prediction.seams`.
"""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import shapely

from csat.instances import POST_MPP, instances_from_hv
from csat.prediction.outlines import boxes_of, outlines_of
from csat.prediction.slide_frame import Place, SlideFrame

UNTYPED = "nucleus"  # class of all nuclei where the model tells no types apart
FRAME_UM = 4.0  # at the edges, where nuclei are cut: see `instances_from_hv`
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
    """The nuclei of an answer with HoVer-Net's maps, by HoVer-Net's post-processing (`instances_from_hv`).

    Args:
        maps: `np` float `[1, n, m]` in [0, 1] and `hv` float `[2, n, m]`, with types `tp` float `[1 + T, n, m]`, probabilities
            whose first channel is the background; others are ignored.
        place: What they cover; see `SlideFrame.place`.
        frame: Of the slide.
        types: Names of the channels of `tp`, background first (`ResponseSpec.channel_names`).
        threshold: Probability from which a pixel is nucleus.

    Returns:
        A table of FOUND_SCHEMA.
    """
    probability = np.asarray(maps["np"], np.float32)[0]
    across, _ = place.pixel(probability.shape)
    mpp = POST_MPP if frame.mpp_x is None else frame.mpp_x * across
    frame_px = min(round(FRAME_UM / mpp), min(probability.shape) // 4)
    hv = np.asarray(maps["hv"], np.float32)
    instances = instances_from_hv(probability, hv, mpp=mpp, threshold=threshold, frame_px=frame_px)
    return nuclei_of_instances(instances, probability, place, frame, types=types, tp=maps.get("tp") if len(types) else None)


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
        tp: float `[1 + T, n, m]` or None: see `nuclei_of_tile`.

    Returns:
        A table of FOUND_SCHEMA, in the order of the instances.
    """
    across, down = place.pixel(instances.shape)
    boxes = boxes_of(instances)
    pixels = np.flatnonzero(instances)
    rows, columns = np.divmod(pixels, instances.shape[1])
    owner = instances.ravel()[pixels] - 1
    count = np.bincount(owner, minlength=len(boxes))

    def mean(values: np.ndarray) -> np.ndarray:
        return np.bincount(owner, weights=values, minlength=len(boxes)) / np.maximum(count, 1)

    x = np.round(place.left + (mean(columns) + 0.5) * across, CENTROID_DECIMALS)
    y = np.round(place.top + (mean(rows) + 0.5) * down, CENTROID_DECIMALS)
    names, shares = _types(len(boxes), pixels, mean, types, tp)
    polygons = outlines_of(instances, boxes, left=place.left, top=place.top, across=across, down=down)
    top, left = place.top + boxes[:, 0] * down, place.left + boxes[:, 1] * across
    bottom, right = place.top + (boxes[:, 2] + 1) * down, place.left + (boxes[:, 3] + 1) * across
    values = {
        "id": ids_of(frame, x, y),
        "class": names,
        "prob": mean(np.asarray(probability).ravel()[pixels]),
        "class_prob": shares,
        "x_px": x,
        "y_px": y,
        "area_um2": count * (across * down * frame.um2_per_px2),
        "is_cut": _is_cut(boxes, instances.shape, place, frame),
        "geometry": shapely.to_wkb(polygons),
        **dict(zip(BOX, (left, top, right, bottom), strict=True)),
    }
    return pa.table([_column(values[field.name], field.type) for field in FOUND_SCHEMA], schema=FOUND_SCHEMA)


def ids_of(frame: SlideFrame, x_px: np.ndarray, y_px: np.ndarray) -> list[str]:
    """A UUID (version 5) for each centroid: the same on every run, and of the same slide wherever it lies.

    Named by the centroid in um to two decimals, or in px where the resolution is not known.
    """
    x, y = (np.round(each * (mpp or 1.0), CENTROID_DECIMALS) for each, mpp in ((x_px, frame.mpp_x), (y_px, frame.mpp_y)))
    space = frame.ids.bytes
    digests = (hashlib.sha1(space + b"%.2f,%.2f" % place, usedforsecurity=False) for place in zip(x, y, strict=True))
    return [_uuid5(digest.digest()) for digest in digests]


def _column(values: np.ndarray | list[str], kind: pa.DataType) -> pa.Array:
    """NaN is null."""
    return pa.array(values, kind, mask=np.isnan(values) if pa.types.is_floating(kind) else None)


def _uuid5(digest: bytes) -> str:
    """As `uuid.uuid5` makes it of the same digest, four times faster."""
    text = digest.hex()
    variant = "89ab"[int(text[16], 16) & 3]
    return f"{text[:8]}-{text[8:12]}-5{text[13:16]}-{variant}{text[17:20]}-{text[20:32]}"


def _types(num_nuclei, pixels, mean, types, tp) -> tuple[list[str], np.ndarray]:
    """Class of each nucleus, the type of the largest mean probability, and that type's share."""
    if tp is None:
        return [UNTYPED] * num_nuclei, np.full(num_nuclei, np.nan)
    said = np.stack([mean(channel.ravel()[pixels]) for channel in np.asarray(tp)[1:]], 1).reshape(num_nuclei, len(types) - 1)
    best = said.argmax(1)
    shares = said[np.arange(num_nuclei), best] / np.maximum(said.sum(1), 1e-12)
    return [types[1 + index] for index in best.tolist()], shares


def _is_cut(boxes: np.ndarray, shape: tuple[int, int], place: Place, frame: SlideFrame) -> np.ndarray:
    """bool `[N]`: at an edge of the answer beyond which the slide goes on."""
    height, width = shape
    across, down = place.pixel(shape)
    is_inner = (  # more than half a pixel of the slide lies beyond
        place.top > down / 2,
        place.left > across / 2,
        place.bottom < frame.height_px - down / 2,
        place.right < frame.width_px - across / 2,
    )
    touches = (boxes[:, 0] == 0, boxes[:, 1] == 0, boxes[:, 2] == height - 1, boxes[:, 3] == width - 1)
    return np.any([touch & inner for touch, inner in zip(touches, is_inner, strict=True)], axis=0)
