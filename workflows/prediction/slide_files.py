"""The files of one slide, made of its parts in the order of its tiles: memory holds a band of it. Knows no Ray.

Whatever is made again, after a kill, is the same: parts and their order follow from the manifest.
"""

import time
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import numpy as np
import pyarrow as pa

from csat.columns import FILTERED, OK, QUARANTINED, STATUS
from csat.prediction.parts import Tables
from csat.prediction.slide_frame import SlideFrame
from csat.prediction.summary import seen_areas, slide_row
from csat.storage import files
from csat.words import printable
from workflows.prediction.columns import FRAME, TILES
from workflows.prediction.fields import FieldSample
from workflows.prediction.framed_reader import parse_frame
from workflows.prediction.job import PredictJob
from workflows.prediction.quarantined_tiles import QuarantinedTiles
from workflows.prediction.writers import ROW, SlideTask, make_writers

FATES = {OK: "predicted", QUARANTINED: "quarantined", FILTERED: "filtered"}
BAD_TILES = "quarantine.parquet"  # in the folder of a slide of which some tiles gave no answer
NOT_WRITTEN = "unreadable"  # the reason of a slide whose files cannot be made


def write_slide_files(job: PredictJob, slide_index: int) -> dict[str, Any]:
    """Read a slide's parts, write its files, and commit it as done.

    Returns:
        Its record, as `csat.prediction.layout.Layout.records` gives it back.

    Raises:
        StorageError: a part cannot be read, or a file not be written.
    """
    started = time.perf_counter()
    layout, slide = job.layout, job.slides[slide_index]
    if (record := layout.record(slide_index)) is not None:  # by a task of a driver that was killed, and lived on for a moment
        return record
    folder = layout.slide_folder(job.names[slide_index])

    def parts() -> Iterable[Tables]:
        return layout.parts.read(slide_index, first=slide.first, stop=slide.stop)

    status, seen = np.empty(slide.num_tiles, np.uint8), 0
    bad, fields = QuarantinedTiles(slide.slide), FieldSample(job.config.show, job.channel_names)
    frame = _find_frame(parts())
    tiles = job.manifest.read_slide(slide)
    with ExitStack() as stack:
        writers = []
        if frame is not None:
            task = SlideTask(job=job, slide=slide, folder=folder, frame=frame, tiles=tiles)
            writers = [stack.enter_context(writer) for writer in make_writers(task)]
        for tables in parts():
            said = tables[TILES][STATUS].to_numpy()
            status[seen : seen + len(said)] = said
            seen += len(said)
            bad.add(tables[TILES])
            fields.add(tables)
            for writer in writers:
                writer.add(tables)
        row: dict[str, Any] = {"slide": printable(slide.slide), "tiles": slide.num_tiles, "tiles_answered": 0}
        if frame is not None:
            seen_mm2, tissue_mm2 = _areas(task, status == OK)
            row = slide_row(
                frame,
                tiles=slide.num_tiles,
                answered=int((status == OK).sum()),
                seen_mm2=seen_mm2,
                tissue_mm2=tissue_mm2,
            )
            for writer in writers:
                row |= writer.finish(tissue_mm2)
    bad.write(files.join(folder, BAD_TILES))
    record = {
        **_head(job, slide_index),
        "files": sorted(files.base_name(uri) for uri in files.insist(lambda: files.list_dir(folder))),
        **{fate: int((status == code).sum()) for code, fate in FATES.items()},
        "summary": {name: None if isinstance(value, float) and value != value else value for name, value in row.items()},
        "reasons": dict(bad.reasons),
        "fields": fields.chosen(),
        "assembly_s": time.perf_counter() - started,
    }
    layout.mark_done(slide_index, record)
    return record


def mark_failed(job: PredictJob, slide_index: int, message: str) -> dict[str, Any]:
    """Commit a slide whose files cannot be made: whatever its tiles were, all of them count as quarantined."""
    head = _head(job, slide_index)
    record = {
        **head,
        **{fate: 0 for fate in FATES.values()},
        "quarantined": head["tiles"],
        "summary": {"slide": printable(head["slide"]), "tiles": head["tiles"], "tiles_answered": 0},
        "reasons": {f"quarantined: {NOT_WRITTEN}": head["tiles"]},
        "failed": printable(message),
        "files": [],
        "fields": [],
        "assembly_s": 0.0,
    }
    job.layout.mark_done(slide_index, record)
    return record


def _head(job: PredictJob, slide_index: int) -> dict[str, Any]:
    slide = job.slides[slide_index]
    return {"slide": slide.slide, "kind": slide.kind, "name": job.names[slide_index], "tiles": slide.num_tiles}


def _find_frame(parts: Iterable[Tables]) -> SlideFrame | None:
    """The slide's frame as the readers had it; None where the slide could not be opened for any tile."""
    for tables in parts:
        for text in tables[TILES][FRAME].combine_chunks().dictionary.to_pylist():
            if text:
                return parse_frame(text)
    return None


def _areas(task: SlideTask, is_answered: np.ndarray) -> tuple[float, float]:
    """(mm² that were seen, mm² of tissue in them), over all images of a parquet; NaN where the resolution is not known."""
    tiles = task.tiles.filter(pa.array(is_answered))
    places, tissue = task.places(tiles), tiles["tissue"].to_numpy()
    image = tiles[ROW].to_numpy()
    groups = np.split(np.arange(len(image)), np.flatnonzero(np.diff(image)) + 1)
    areas = [seen_areas(task.frame, [places[index] for index in group], tissue[group]) for group in groups]
    return tuple(np.sum(areas, axis=0).tolist())
