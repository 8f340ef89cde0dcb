"""GeoJSON as QuPath reads it, streamed from the parquet: memory holds one batch, whatever the slide has.

QuPath crops a slide to its bounds where it states some: coordinates are those of the parquet less (bounds x, bounds y). QuPath
keeps all objects in memory, so that files are split above `MAX_OBJECTS`, and there is a variant with centroids alone.
"""

import gzip
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely

from csat.prediction.outlines import DECIMALS
from csat.prediction.palette import colours_of
from csat.prediction.slide_frame import SlideFrame
from csat.prediction.table import read_about
from csat.storage import files
from csat.storage.uris import join

Shown = Literal["outlines", "cells", "centroids"]
STEMS = {"outlines": "nuclei", "cells": "cells", "centroids": "nuclei-centroids"}  # names of the files

MAX_OBJECTS = 500_000  # of one file: QuPath needs minutes to open more
BATCH = 10_000  # rows in memory
COMPRESSION = 4  # zlib's level
CELL_UM = 2.0  # how far a cell reaches beyond its nucleus
MEASUREMENTS = (("Area µm^2", "area_um2", 2), ("Probability", "prob", 3), ("Class probability", "class_prob", 3))
COLUMNS = ["id", "class", "geometry", "x_px", "y_px", "is_cut", *(column for _, column, _ in MEASUREMENTS)]


def write_nuclei_geojson(
    nuclei_uri: str,
    folder_uri: str,
    frame: SlideFrame,
    *,
    shown: Shown = "outlines",
    max_objects: int = MAX_OBJECTS,
) -> list[str]:
    """One object per nucleus, from the table that `csat.prediction.table.nuclei_table` wrote.

    Args:
        nuclei_uri: The parquet, complete.
        folder_uri: Where the files are to lie.
        frame: Of the slide.
        shown: "outlines" and "centroids" are detections, the latter as points, for slides that QuPath can hardly hold. Of
            "cells" the border lies `CELL_UM` beyond the nucleus (2 px where the slide's resolution is not known); cells of
            neighbours may overlap.
        max_objects: Of one file.

    Returns:
        The files' URIs: STEMS[shown].geojson.gz; of several nuclei-1-of-3.geojson.gz and so on.
    """
    colours = colours_of(read_about(nuclei_uri)["classes"])
    stem = STEMS[shown]
    with files.open_native(nuclei_uri) as native, pq.ParquetFile(native) as parquet:
        num_files = max(1, -(-parquet.metadata.num_rows // max_objects))
        names = [stem if num_files == 1 else f"{stem}-{number}-of-{num_files}" for number in range(1, num_files + 1)]
        uris = [join(folder_uri, f"{name}.geojson.gz") for name in names]
        batches = parquet.iter_batches(min(BATCH, max_objects), columns=COLUMNS)
        rest: pa.RecordBatch | None = None
        for uri in uris:
            with feature_collection(uri) as add:
                room = max_objects
                while room and (batch := rest if rest is not None else next(batches, None)) is not None:
                    rest = batch.slice(room) if len(batch) > room else None
                    room -= min(room, len(batch))
                    add(_nuclei(batch.slice(0, len(batch) - len(rest or ())), frame, colours, shown))
    return uris


@contextmanager
def feature_collection(uri: str) -> Iterator:
    """A compressed FeatureCollection that appears when the context ends well: gives a function that takes lists of features.

    The same features make the same bytes: the file holds no time and no name.
    """
    with files.open_output(uri) as file, gzip.GzipFile("", "wb", COMPRESSION, file, mtime=0) as packed:
        packed.write(b'{"type":"FeatureCollection","features":[')
        yield _adder(packed)
        packed.write(b"\n]}\n")


def _adder(packed: BinaryIO):
    separator = "\n"

    def add(features: list[str]) -> None:
        nonlocal separator
        if features:
            packed.write((separator + ",\n".join(features)).encode())
            separator = ",\n"

    return add


def _nuclei(batch: pa.RecordBatch, frame: SlideFrame, colours: dict, shown: Shown) -> list[str]:
    """A feature a row, as JSON."""
    columns = {name: batch[name].to_pylist() for name in batch.schema.names if name not in ("geometry", "x_px", "y_px")}
    if shown == "centroids":
        places = np.round(np.stack([batch["x_px"], batch["y_px"]], 1) - frame.origin_px, DECIMALS)
        geometries = [f'"geometry":{{"type":"Point","coordinates":[{x!r},{y!r}]}}' for x, y in places.tolist()]
    else:
        outlines = shapely.from_wkb(batch["geometry"].to_numpy(zero_copy_only=False))
        geometries = _geometries(outlines, frame, shown)
    classes = {
        name: json.dumps({"name": name, "color": list(colours.get(name, (128, 128, 128)))}) for name in set(columns["class"])
    }
    kind = "cell" if shown == "cells" else "detection"
    measures = [_rounded(columns[column], decimals) for _, column, decimals in MEASUREMENTS]
    keys = [json.dumps(name, ensure_ascii=False) for name, _, _ in MEASUREMENTS]
    features = []
    for row, (id_, name, is_cut) in enumerate(zip(columns["id"], columns["class"], columns["is_cut"], strict=True)):
        figures = ",".join(
            f"{key}:{values[row]}" for key, values in zip(keys, measures, strict=True) if values[row] is not None
        )
        metadata = ',"metadata":{"cut":"true"}' if is_cut else ""
        features.append(
            f'{{"type":"Feature","id":"{id_}",{geometries[row]},"properties":{{"objectType":"{kind}",'
            f'"classification":{classes[name]},"measurements":{{{figures}}}{metadata}}}}}'
        )
    return features


def _geometries(outlines: np.ndarray, frame: SlideFrame, shown: Shown) -> list[str]:
    """`"geometry":…`, of cells with `"nucleusGeometry":…` beside it."""
    nuclei = _shifted(outlines, frame)
    if shown == "outlines":
        return [f'"geometry":{text}' for text in shapely.to_geojson(nuclei)]
    reach = CELL_UM / (((frame.mpp_x or 1.0) + (frame.mpp_y or 1.0)) / 2)
    cells = _shifted(shapely.buffer(outlines, reach, quad_segs=2), frame)
    invalid = ~shapely.is_valid(cells)
    cells[invalid] = shapely.convex_hull(cells[invalid])
    pairs = zip(shapely.to_geojson(cells), shapely.to_geojson(nuclei), strict=True)
    return [f'"geometry":{cell},"nucleusGeometry":{nucleus}' for cell, nucleus in pairs]


def _shifted(polygons: np.ndarray, frame: SlideFrame) -> np.ndarray:
    """In QuPath's coordinates, with one decimal, and no point twice for that."""
    moved = shapely.transform(polygons, lambda points: np.round(points - frame.origin_px, DECIMALS))
    return shapely.remove_repeated_points(moved)


def _rounded(values: list[float | None], decimals: int) -> list[float | None]:
    """For JSON, which has no NaN: those become None, too."""
    return [None if value is None or value != value else round(value, decimals) for value in values]
