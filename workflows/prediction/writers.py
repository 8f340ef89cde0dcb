"""What makes the files of a slide, part by part: a `Writer` each for nuclei, tables of tiles, and maps."""

from abc import ABC, abstractmethod
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa

from csat.columns import OK, POSITION, RESPONSE_PREFIX, STATUS
from csat.prediction.geojson import write_nuclei_geojson
from csat.prediction.heatmap import write_overlay
from csat.prediction.nuclei import NUCLEI_SCHEMA, UNTYPED
from csat.prediction.ome_tif import write_heatmap, write_mask
from csat.prediction.parts import Tables
from csat.prediction.seams import Seams
from csat.prediction.slide_frame import Place, SlideFrame
from csat.prediction.slide_maps import Cells, SlideMap, cells_of, grid_of_tiles, grid_of_um
from csat.prediction.summary import mask_summary, nuclei_summary, tiles_summary
from csat.prediction.table import SlideTable, embedding_rows, nuclei_table, tile_rows
from csat.prediction.tiles_geojson import write_tiles_geojson
from csat.slides.reader import open_slide
from csat.storage import files
from csat.tiles.manifest import SlideTiles
from workflows.prediction import choice
from workflows.prediction.columns import AT, HEAT, LABELS, NUCLEI, TILES
from workflows.prediction.framed_reader import GEOMETRY
from workflows.prediction.job import PredictJob

ROW = "row"  # of a parquet: the column of its tables that says which image a line is about
SHOWN = {choice.NUCLEI_GEOJSON: "outlines", choice.CELLS_GEOJSON: "cells", choice.CENTROIDS_GEOJSON: "centroids"}
THUMBNAIL_PX = 2048  # longer edge of heatmap.png


@dataclass(frozen=True, kw_only=True)
class SlideTask:
    """One slide, as its writers see it."""

    job: PredictJob
    slide: SlideTiles
    folder: str  # URI, of its files
    frame: SlideFrame
    tiles: pa.Table  # of TILE_SCHEMA, all of them

    @property
    def is_rows(self) -> bool:
        """Its tiles lie on no slide: each row of a parquet is an image of its own."""
        return self.slide.kind == "parquet"

    def uri(self, file: str) -> str:
        return files.join(self.folder, file)

    def places(self, tiles: pa.Table, *, crop_px: int | None = None) -> list[Place]:
        """What answers about these tiles cover.

        Args:
            crop_px: Of the answer; None: of what the model answers at most.
        """
        columns = {name: tiles[name].to_numpy() for name in GEOMETRY}
        model = self.job.model
        return self.frame.places(columns, tile_px=model.tile_px, crop_px=model.crop_px if crop_px is None else crop_px)

    def schema(self, columns: pa.Schema) -> pa.Schema:
        """Of a table of the slide: with the column ROW, where it is rows."""
        return pa.schema([pa.field(ROW, pa.int32()), *columns]) if self.is_rows else pa.schema(list(columns))


class Writer(ABC):
    """One or several files of a slide. A context manager: left by an error, it leaves no file behind."""

    def __init__(self, task: SlideTask):
        self.task = task
        self.stack = ExitStack()  # what is open while parts come in

    def __enter__(self) -> "Writer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return self.stack.__exit__(kind, error, trace)

    @abstractmethod
    def add(self, tables: Tables) -> None:
        """Take what the next part says."""

    @abstractmethod
    def finish(self, tissue_mm2: float) -> dict[str, Any]:
        """All parts have come: complete the files. Returns figures for the slide's row of the summary."""


def make_writers(task: SlideTask) -> list[Writer]:
    """Writers of all files of a slide that the job asks for. Of a parquet, whose rows are no slide, tables alone."""
    wanted, model = set(task.job.files), task.job.model
    writers: list[Writer] = [NucleiWriter(task)] if choice.NUCLEI in wanted else []
    if {choice.TILES, choice.TILES_GEOJSON} & wanted:
        writers.append(TilesWriter(task))
    if choice.EMBEDDINGS in wanted:
        writers.append(EmbeddingsWriter(task))
    if task.is_rows:
        return writers
    if {choice.HEATMAP, choice.HEATMAP_PNG} & wanted:
        (answer,) = choice.heat_source(model)
        writers.append(CellMapWriter(task, HEAT, answer) if model.spec(answer).is_dense else TileMapWriter(task, answer))
    if choice.MASK in wanted:
        writers.append(CellMapWriter(task, LABELS, choice.CLASS_MASK))
    return writers


class NucleiWriter(Writer):
    """nuclei.parquet and, of that, what QuPath reads: nuclei of all tiles, each once."""

    def __init__(self, task: SlideTask):
        super().__init__(task)
        self._row, self._places = task.tiles[ROW].to_numpy(), task.places(task.tiles)
        self._image: int | None = None  # row of a parquet whose tiles are being joined; of a slide 0
        self._seams: Seams | None = None
        self._first = 0  # of that image's tiles
        classes = task.job.model.classes or (UNTYPED,)
        table = nuclei_table(task.uri(choice.NUCLEI), task.frame, classes=classes, schema=task.schema(NUCLEI_SCHEMA))
        self._table = self.stack.enter_context(table)

    def add(self, tables: Tables) -> None:
        tiles, nuclei = tables[TILES], tables[NUCLEI]
        positions, status = tiles[POSITION].to_numpy(), tiles[STATUS].to_numpy()
        starts, stops = (np.searchsorted(nuclei[POSITION].to_numpy(), positions, side=side) for side in ("left", "right"))
        found = nuclei.drop_columns([POSITION])
        spans = zip(positions.tolist(), status.tolist(), starts.tolist(), stops.tolist(), strict=True)
        for position, code, start, stop in spans:
            index = position - self.task.slide.first
            if self._image != self._row[index]:
                self._next_image(index)
            kept = self._seams.add(index - self._first, found.slice(start, stop - start) if code == OK else None)
            self._table.write(_with_row(kept, self._image) if self.task.is_rows else kept)

    def finish(self, tissue_mm2: float) -> dict[str, Any]:
        if self._seams is not None:
            self._seams.finish()
        self.stack.close()
        uri = self.task.uri(choice.NUCLEI)
        for file, shown in SHOWN.items():
            if file in self.task.job.files and not self.task.is_rows:
                write_nuclei_geojson(uri, self.task.folder, self.task.frame, shown=shown)
        return nuclei_summary(uri, tissue_mm2)

    def _next_image(self, index: int) -> None:
        """The tiles from this one on lie on another image: of a slide, all do from the first."""
        if self._seams is not None:
            self._seams.finish()
        self._image, self._first = int(self._row[index]), index
        stop = int(np.searchsorted(self._row, self._image, side="right")) if self.task.is_rows else len(self._row)
        self._seams = Seams(self._places[index:stop], self.task.frame)


class TilesWriter(Writer):
    """tiles.parquet and, of that, tiles.geojson.gz: the probabilities of each tile that has an answer."""

    def __init__(self, task: SlideTask):
        super().__init__(task)
        self._classes = task.job.classes_of(choice.LABEL)
        schema = task.schema(tile_rows([], np.zeros((0, len(self._classes))), self._classes).schema)
        self._table = self.stack.enter_context(SlideTable(task.uri(choice.TILES), schema, task.frame, classes=self._classes))

    def add(self, tables: Tables) -> None:
        tiles = _answered(tables)
        rows = tile_rows(self.task.places(tiles), _vectors(tiles, choice.LABEL), self._classes)
        self._table.write(_with_row(rows, tiles[ROW]) if self.task.is_rows else rows)

    def finish(self, tissue_mm2: float) -> dict[str, Any]:
        self.stack.close()
        uri = self.task.uri(choice.TILES)
        if choice.TILES_GEOJSON in self.task.job.files and not self.task.is_rows:
            write_tiles_geojson(uri, self.task.folder, self.task.frame)
        return tiles_summary(uri)


class EmbeddingsWriter(Writer):
    """embeddings.parquet: the feature vector of each tile that has an answer."""

    def __init__(self, task: SlideTask):
        super().__init__(task)
        (self._answer,) = choice.SOURCES[choice.EMBEDDINGS](task.job.model)
        size = task.job.model.spec(self._answer).channels
        schema = task.schema(embedding_rows([], np.zeros((0, size))).schema)
        self._table = self.stack.enter_context(SlideTable(task.uri(choice.EMBEDDINGS), schema, task.frame))

    def add(self, tables: Tables) -> None:
        tiles = _answered(tables)
        if not len(tiles):
            return
        rows = embedding_rows(self.task.places(tiles), _vectors(tiles, self._answer))
        self._table.write(_with_row(rows, tiles[ROW]) if self.task.is_rows else rows)

    def finish(self, tissue_mm2: float) -> dict[str, Any]:
        self.stack.close()
        return {}


class CellMapWriter(Writer):
    """heatmap.ome.tif and heatmap.png, or mask.ome.tif, of what a model says of pixels: gathered on this node's disk."""

    def __init__(self, task: SlideTask, column: str, answer: str):
        super().__init__(task)
        self._column, self._crop_px = column, task.job.model.spec(answer).crop_px
        self._classes = task.job.classes_of(answer)
        (wanted,) = [each for each in task.job.maps if each.name == column]
        grid = grid_of_um(task.frame, wanted.cell_um)
        channels = 1 if wanted.labels else len(self._classes)
        self._map = self.stack.enter_context(SlideMap(grid, channels, labels=wanted.labels))

    def add(self, tables: Tables) -> None:
        tiles = _answered(tables)
        cells, at = tiles[self._column].to_pylist(), tiles[self._column + AT].to_pylist()
        for place, data, (row, column, *shape) in zip(self.task.places(tiles, crop_px=self._crop_px), cells, at, strict=True):
            self._map.add(Cells(row, column, np.frombuffer(data, np.uint8).reshape(shape)), place)

    def finish(self, tissue_mm2: float) -> dict[str, Any]:
        if self._column == LABELS:
            write_mask(self.task.uri(choice.MASK), self._map, self._classes)
            return mask_summary(self._map, self._classes)
        _write_heat(self.task, self._map, self._classes)
        return {}


class TileMapWriter(Writer):
    """heatmap.ome.tif and heatmap.png of what a model says of whole tiles: a cell for each."""

    def __init__(self, task: SlideTask, answer: str):
        super().__init__(task)
        self._answer, self._classes = answer, task.job.classes_of(answer)
        grid = grid_of_tiles(task.frame, task.places(task.tiles))
        self._map = self.stack.enter_context(SlideMap(grid, len(self._classes)))

    def add(self, tables: Tables) -> None:
        tiles = _answered(tables)
        for place, values in zip(self.task.places(tiles), _vectors(tiles, self._answer), strict=True):
            self._map.add(cells_of(values, place, self._map.grid), place)

    def finish(self, tissue_mm2: float) -> dict[str, Any]:
        _write_heat(self.task, self._map, self._classes)
        return {}


def _write_heat(task: SlideTask, heatmap: SlideMap, classes: tuple[str, ...]) -> None:
    if choice.HEATMAP in task.job.files:
        write_heatmap(task.uri(choice.HEATMAP), heatmap, classes)
    if choice.HEATMAP_PNG in task.job.files:
        reader = open_slide(task.slide.slide, task.slide.kind, cache=task.job.config.readers.slide_cache())
        try:
            thumbnail = reader.thumbnail(THUMBNAIL_PX)
        finally:
            reader.close()
        write_overlay(task.uri(choice.HEATMAP_PNG), thumbnail, heatmap, classes)


def _answered(tables: Tables) -> pa.Table:
    tiles = tables[TILES]
    return tiles.filter(pa.array(tiles[STATUS].to_numpy() == OK))


def _vectors(tiles: pa.Table, answer: str) -> np.ndarray:
    """float16 `[n, C]`."""
    column = tiles[RESPONSE_PREFIX + answer].combine_chunks()
    return column.flatten().to_numpy().reshape(len(tiles), column.type.list_size)


def _with_row(table: pa.Table, row: int | pa.ChunkedArray) -> pa.Table:
    column = pa.repeat(pa.scalar(row, pa.int32()), len(table)) if isinstance(row, int) else row
    return table.append_column(ROW, column)
