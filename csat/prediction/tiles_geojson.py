"""The tiles of a slide as QuPath's tile objects, with the most probable class and all probabilities."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from csat.prediction.geojson import BATCH, feature_collection
from csat.prediction.nuclei import ids_of
from csat.prediction.palette import Colour, colours_of
from csat.prediction.slide_frame import SlideFrame
from csat.prediction.table import read_about
from csat.storage import files
from csat.storage.uris import join


def write_tiles_geojson(tiles_uri: str, folder_uri: str, frame: SlideFrame) -> str:
    """tiles.geojson.gz from a table of `csat.prediction.table.tile_rows`: a rectangle for each tile.

    Tiles that overlap show as they were cut. Coordinates are those of the table less the slide's bounds, as QuPath has them.

    Returns:
        The file's URI.
    """
    classes = read_about(tiles_uri)["classes"]
    uri = join(folder_uri, "tiles.geojson.gz")
    with files.open_native(tiles_uri) as native, pq.ParquetFile(native) as parquet, feature_collection(uri) as add:
        for batch in parquet.iter_batches(BATCH):
            add(_tiles(batch, frame, classes, colours_of(classes)))
    return uri


def _tiles(batch: pa.RecordBatch, frame: SlideFrame, classes: list[str], colours: dict[str, Colour]) -> list[str]:
    """A feature a row, as JSON."""
    left, top, width, height = (batch[name].to_numpy().astype(np.int64) for name in ("minx", "miny", "width", "height"))
    ids = ids_of(frame, left + width / 2, top + height / 2)
    left, top = left - frame.origin_px[0], top - frame.origin_px[1]
    probabilities = np.stack([batch[f"prob_{name}"].to_numpy() for name in classes], 1)
    labels = {name: json.dumps({"name": name, "color": list(colours[name])}) for name in classes}
    keys = [json.dumps(f"Probability {name}") for name in classes]
    features = []
    for row, (x0, y0, x1, y1) in enumerate(zip(*(e.tolist() for e in (left, top, left + width, top + height)), strict=True)):
        ring = f"[[{x0},{y0}],[{x1},{y0}],[{x1},{y1}],[{x0},{y1}],[{x0},{y0}]]"
        said = probabilities[row]
        known = [f"{key}:{round(float(value), 4)}" for key, value in zip(keys, said, strict=True) if np.isfinite(value)]
        name = classes[int(np.nan_to_num(said, nan=-1).argmax())]
        features.append(
            f'{{"type":"Feature","id":"{ids[row]}","geometry":{{"type":"Polygon","coordinates":[{ring}]}},"properties":'
            f'{{"objectType":"tile","classification":{labels[name]},"measurements":{{{",".join(known)}}}}}}}'
        )
    return features
