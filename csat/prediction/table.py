"""The tables of a slide, written as streams: nuclei as GeoParquet, tiles with WSInfer's columns, embeddings.

All coordinates are level-0 px of the full canvas. The file's metadata (key `csat`, JSON) says so, and has the slide's size,
its resolution, what QuPath subtracts (`bounds`), and the classes in their order. A file appears when it is complete.
"""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from csat.prediction.nuclei import NUCLEI_SCHEMA
from csat.prediction.slide_frame import Place, SlideFrame
from csat.storage import files
from csat.words import printable

ROW_GROUP = 50_000  # rows; with outlines about 20 MB before compression
COORDINATES = "level-0 pixels of the full canvas; QuPath shows the part within bounds: subtract bounds x and y"
GEOMETRY = {"encoding": "WKB", "geometry_types": ["Polygon"], "crs": None}
GEO = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": GEOMETRY}}


class SlideTable:
    """A parquet file of one slide that grows by row groups; memory holds one. Use it as a context manager.

    What `write` was given appears under the file's name when the context ends well, and not at all when it raises.
    """

    def __init__(self, uri: str, schema: pa.Schema, frame: SlideFrame, *, classes: Sequence[str] = (), geo: bool = False):
        """
        Args:
            uri: Where it is to lie.
            schema: Of what `write` takes; a column `slide` is put before it.
            frame: Of the slide.
            classes: In the model's order; they fix the colours.
            geo: It has a column `geometry`: say so as GeoParquet does.
        """
        about = {"coordinates": COORDINATES, **asdict(frame), "classes": list(classes)}
        metadata = {"csat": json.dumps(about), **({"geo": json.dumps(GEO)} if geo else {})}
        self.num_rows = 0
        self._schema = pa.schema([pa.field("slide", pa.string()), *schema]).with_metadata(metadata)
        self._slide = printable(frame.slide)
        self._uri = uri
        self._waiting: list[pa.Table] = []
        self._stack = ExitStack()

    def __enter__(self) -> "SlideTable":
        with ExitStack() as stack:
            file = stack.enter_context(files.open_output(self._uri))
            self._writer = stack.enter_context(pq.ParquetWriter(file, self._schema, compression="zstd"))
            self._stack = stack.pop_all()
        return self

    def write(self, table: pa.Table) -> None:
        """Rows to add; columns that the file does not have are left out."""
        if not len(table):
            return
        slide = pa.repeat(pa.scalar(self._slide, pa.string()), len(table))
        arrays = [slide if name == "slide" else table[name] for name in self._schema.names]
        self._waiting.append(pa.table(arrays, schema=self._schema))
        self.num_rows += len(table)
        while sum(map(len, self._waiting)) >= ROW_GROUP:
            self._write_group()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        if error is None:
            try:
                self._write_group()
            except BaseException as failure:
                self._stack.__exit__(type(failure), failure, failure.__traceback__)
                raise
        return self._stack.__exit__(kind, error, trace)

    def _write_group(self) -> None:
        """The first rows that wait, in one piece: a file's bytes do not depend on the tables in which its rows came."""
        if self._waiting:
            rows = pa.concat_tables(self._waiting).combine_chunks()
            self._writer.write_table(rows.slice(0, ROW_GROUP))
            self._waiting = [rows.slice(ROW_GROUP)] if len(rows) > ROW_GROUP else []


def nuclei_table(uri: str, frame: SlideFrame, *, classes: Sequence[str], schema: pa.Schema = NUCLEI_SCHEMA) -> SlideTable:
    """The file nuclei.parquet of a slide, for tables of NUCLEI_SCHEMA, or of one that has columns beside.

    GeoParquet 1.1: geopandas, SpatialData, QGIS and DuckDB open it. Coordinates have no reference system (`crs` null).
    """
    return SlideTable(uri, schema, frame, classes=classes, geo=True)


def tile_rows(places: Sequence[Place], probabilities: np.ndarray, classes: Sequence[str]) -> pa.Table:
    """Rows of tiles.parquet: minx, miny, width, height (level-0 px, whole), and prob_CLASS of each class.

    Args:
        places: Of the tiles.
        probabilities: float `[n, C]`; of dense answers, their means.
        classes: Names of the columns.
    """
    edges = np.round(np.array(places, np.float64).reshape(-1, 4)).astype(np.int32)
    columns = [*edges[:, :2].T, *(edges[:, 2:] - edges[:, :2]).T, *np.asarray(probabilities, np.float32).T]
    return pa.table([pa.array(column) for column in columns], schema=_tiles_schema(classes))


def embedding_rows(places: Sequence[Place], features: np.ndarray) -> pa.Table:
    """Rows of embeddings.parquet: x_px, y_px (the tile's upper left corner), feature (list of float16).

    Args:
        features: float `[n, D]`; what float16 cannot hold becomes its largest number.
    """
    features = np.asarray(features, np.float32)
    limit = float(np.finfo(np.float16).max)
    edges = np.round(np.array(places, np.float64).reshape(-1, 4)).astype(np.int32)
    flat = pa.array(np.clip(features, -limit, limit).astype(np.float16).ravel())
    lists = pa.ListArray.from_arrays(np.arange(len(features) + 1, dtype=np.int32) * features.shape[1], flat)
    return pa.table([edges[:, 0], edges[:, 1], lists], schema=_embeddings_schema(features.shape[1]))


def _tiles_schema(classes: Sequence[str]) -> pa.Schema:
    place = [(name, pa.int32()) for name in ("minx", "miny", "width", "height")]
    return pa.schema([*place, *((f"prob_{name}", pa.float32()) for name in classes)])


def _embeddings_schema(size: int) -> pa.Schema:
    about = {"size": str(size)}
    feature = pa.field("feature", pa.list_(pa.field("element", pa.float16(), nullable=False)), metadata=about)
    return pa.schema([("x_px", pa.int32()), ("y_px", pa.int32()), feature])


def read_about(uri: str) -> dict:
    """What a table of ours says of its slide: see the head of this file."""
    with files.open_native(uri) as file:
        return json.loads(pq.read_schema(file).metadata[b"csat"])
