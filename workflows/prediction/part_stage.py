"""The third stage of a prediction: nuclei of maps, and tables, on CPUs beside the network. Its rows say only what was written.

No torch: many of these may run beside one network.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import cv2
import numpy as np
import pyarrow as pa

from csat.columns import OK, POSITION, QUARANTINED, READ_S, REASON, RESPONSE_PREFIX, STATUS, TEACHER_S
from csat.prediction.nuclei import FOUND_SCHEMA, nuclei_of_tiles
from csat.prediction.parts import Parts, Tables
from csat.tiles.manifest import SlideTiles
from csat.words import last_line, printable
from workflows.prediction.columns import (
    AT,
    AT_SIZE,
    BYTES,
    FIRST,
    FRAME,
    HEAT,
    LABELS,
    NETWORK,
    NUCLEI,
    OUTLINE_S,
    OUTLINER,
    READER,
    SLIDE_INDEX,
    STOP,
    TILES,
)
from workflows.prediction.framed_reader import GEOMETRY, frame_of_cell
from workflows.prediction.who import who

KEPT = (*GEOMETRY, "row", "tissue")  # of a tile, as the manifest has them
PLACED_SCHEMA = pa.schema([pa.field(POSITION, pa.int64()), *FOUND_SCHEMA])
MAX_REASON_CHARS = 300


class PartStage:
    """Answered rows in, parts written, and a row for each part out.

    Args:
        parts: Where they go.
        slides: Of the manifest, in its order.
        tile_px: Edge of the tiles.
        crop_px: Of the maps of nuclei.
        maps: Answers that nuclei are made of; () where none are looked for.
        types: Names of the channels of `tp`, background first.
    """

    def __init__(
        self,
        parts: Parts,
        slides: Sequence[SlideTiles],
        *,
        tile_px: int,
        crop_px: int,
        maps: Sequence[str],
        types: Sequence[str],
    ):
        cv2.setNumThreads(1)  # OpenCV would take every core of the node, whatever Ray gave this actor
        self.parts, self.slides = parts, slides
        self.tile_px, self.crop_px, self.maps, self.types = tile_px, crop_px, maps, types
        self._stops = np.array([slide.stop for slide in slides])

    def __call__(self, columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See the class. A tile whose nuclei cannot be made is QUARANTINED.

        Raises:
            StorageError: a part cannot be written.
        """
        written = [self._write(slide_index, rows, columns) for slide_index, rows in self._runs(columns[POSITION])]
        return {name: np.array([row[name] for row in written]) for name in written[0]} if written else {}

    def _runs(self, positions: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """(slide, rows in order of their positions) of what follows each other in one slide."""
        order = np.argsort(positions, kind="stable")
        slide = np.searchsorted(self._stops, positions[order], side="right")
        is_new = (np.diff(positions[order]) != 1) | (np.diff(slide) != 0)
        for run in np.split(order, np.flatnonzero(is_new) + 1):
            if len(run):
                yield int(np.searchsorted(self._stops, positions[run[0]], side="right")), run

    def _write(self, slide_index: int, rows: np.ndarray, columns: dict[str, np.ndarray]) -> dict[str, object]:
        start = time.perf_counter()
        status = columns[STATUS][rows].copy()
        reasons = [printable(str(reason)) for reason in columns[REASON][rows]]
        tables: Tables = {}
        if self.maps:
            answered = np.flatnonzero(status == OK)
            try:
                found = [self._nuclei(rows[answered], columns)]
            except Exception:  # of one tile's maps, whatever a library makes of them; the others are fine
                found = []
                for at in answered.tolist():
                    try:
                        found.append(self._nuclei(rows[at : at + 1], columns))
                    except Exception as error:
                        status[at] = QUARANTINED
                        reasons[at] = printable(f"model_error: no nuclei can be made of its maps: {last_line(error)}")
            tables[NUCLEI] = pa.concat_tables([PLACED_SCHEMA.empty_table(), *found])
        tables[TILES] = self._tiles(rows, columns, status, [reason[:MAX_REASON_CHARS] for reason in reasons])
        positions = columns[POSITION][rows]
        num_bytes = self.parts.write(slide_index, tables, positions=positions)
        return {
            SLIDE_INDEX: slide_index,
            FIRST: int(positions[0]),
            STOP: int(positions[-1]) + 1,
            BYTES: num_bytes,
            READ_S: float(columns[READ_S][rows].sum()),
            TEACHER_S: float(columns[TEACHER_S][rows].sum()),
            OUTLINE_S: time.perf_counter() - start,
            READER: str(columns[READER][rows[0]]),
            NETWORK: str(columns[NETWORK][rows[0]]),
            OUTLINER: who(),
        }

    def _nuclei(self, rows: np.ndarray, columns: Mapping[str, np.ndarray]) -> pa.Table:
        """PLACED_SCHEMA, tile after tile."""
        if not len(rows):
            return PLACED_SCHEMA.empty_table()
        frames, places = [], []
        for row in rows.tolist():
            frame = frame_of_cell(columns[FRAME][row])
            tile = {name: columns[name][row].item() for name in GEOMETRY}
            places.append(frame.place(**tile, tile_px=self.tile_px, crop_px=self.crop_px))
            if columns["kind"][row] == "parquet":  # an image of its own: what lies at the same place in others has another id
                frame = replace(frame, slide=f"{frame.slide}#{columns['row'][row]}")
            frames.append(frame)
        maps = {name: columns[RESPONSE_PREFIX + name][rows] for name in self.maps}
        nuclei, tile_of = nuclei_of_tiles(maps, places, frames, types=self.types)
        return pa.table([pa.array(columns[POSITION][rows][tile_of]), *nuclei.columns], schema=PLACED_SCHEMA)

    def _tiles(
        self, rows: np.ndarray, columns: Mapping[str, np.ndarray], status: np.ndarray, reasons: Sequence[str]
    ) -> pa.Table:
        """A row for each tile: where it lies, what became of it, and what was said of it but for nuclei."""
        arrays: dict[str, pa.Array] = {POSITION: pa.array(columns[POSITION][rows])}
        arrays |= {name: pa.array(columns[name][rows]) for name in KEPT}
        arrays |= {STATUS: pa.array(status), REASON: pa.array(reasons, pa.string())}
        arrays[FRAME] = pa.array(list(map(str, columns[FRAME][rows])), pa.string()).dictionary_encode()
        for name, column in columns.items():
            if name in (HEAT, LABELS):
                arrays[name] = pa.array(column[rows].tolist(), pa.binary())
            elif name in (HEAT + AT, LABELS + AT):
                arrays[name] = pa.FixedSizeListArray.from_arrays(pa.array(column[rows].ravel()), AT_SIZE)
            elif name.startswith(RESPONSE_PREFIX) and name.removeprefix(RESPONSE_PREFIX) not in self.maps:
                vectors = np.ascontiguousarray(column[rows])
                arrays[name] = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
        return pa.table(arrays)
