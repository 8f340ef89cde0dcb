"""Pictures for the page: the fields that are most like the others, and those that are least, with what was said of them."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from csat.columns import POSITION
from csat.errors import SlideError
from csat.prediction.overlays import with_classes, with_nuclei
from csat.slides.reader import open_slide, read_tile
from csat.storage import files
from workflows.prediction import choice
from workflows.prediction.fields import rank
from workflows.prediction.framed_reader import GEOMETRY, frame_as_read
from workflows.prediction.job import PredictJob
from workflows.prediction.model import open_model

logger = logging.getLogger("predict")

SHOWN_PX = 512  # edge of a field on the page
GAP_PX = 8  # between a tile and what was said of it


def show_fields(job: PredictJob, records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """As the page takes them: `show` typical fields and as many odd ones, of all slides that kept any.

    Returns:
        For each: `image` uint8 [H, W, 3], the tile beside the tile with what was said; `kind`, `slide`, `x_px`, `y_px`, `odd`,
        `told`.
    """
    fields = [(record, field) for record in records for field in record["fields"]]
    odd, told = rank([field for _, field in fields])
    order = np.argsort(odd, kind="stable").tolist()
    count = min(job.config.show, len(order) // 2)
    chosen = [("typical", row) for row in order[:count]] + [("odd", row) for row in order[::-1][:count]]
    pictures = []
    for kind, row in chosen:
        record, field = fields[row]
        try:
            image = _picture(job, record, field)
        except SlideError as error:  # it was read before; the page is no reason to fail
            logger.warning("a field is not shown: %s", error)
            continue
        about = {"slide": record["name"], "x_px": field["x_px"], "y_px": field["y_px"], "odd": odd[row], "told": told[row]}
        pictures.append({"kind": kind, "image": image, **about})
    return pictures


def _picture(job: PredictJob, record: Mapping[str, Any], field: Mapping[str, Any]) -> np.ndarray:
    """The tile, and beside it the tile with nuclei outlined or classes coloured."""
    model = job.model
    slide = next(slide for slide in job.slides if slide.slide == record["slide"])
    (tile_row,) = job.manifest.read_slide(slide).slice(field[POSITION] - slide.first, 1).to_pylist()
    reader = open_slide(record["slide"], record["kind"], cache=job.config.readers.slide_cache())
    try:
        where = {name: tile_row[name] for name in GEOMETRY}
        tile = read_tile(reader, **where, tile_px=model.tile_px, row=tile_row["row"])
        scale = {name: tile_row[name] for name in ("mpp", "read_px", "width_px", "aspect", "level")}
        frame = frame_as_read(record["slide"], reader, **scale)
    finally:
        reader.close()
    place = frame.place(**where, tile_px=model.tile_px)
    edge = max(SHOWN_PX, model.tile_px)
    plain = cv2.resize(tile, (edge, edge), interpolation=cv2.INTER_CUBIC)
    if choice.NUCLEI in job.files:
        uri = files.join(job.layout.slide_folder(record["name"]), choice.NUCLEI)
        said = with_nuclei(plain, uri, place, row=tile_row["row"] if record["kind"] == "parquet" else None)
    elif job.maps:
        said = with_classes(plain, _answer_again(job, tile), job.classes_of(job.maps[0].answer))
    else:
        return plain
    return np.concatenate([plain, np.full((edge, GAP_PX, 3), 255, np.uint8), said], axis=1)


def _answer_again(job: PredictJob, tile: np.ndarray) -> np.ndarray:
    """float32 `[C, tile_px, tile_px]`: what the model says of every pixel, which no file has; 0 where it says nothing."""
    model, answer = job.model, job.maps[0].answer
    answers = open_model(job.config.model, tile_px=model.tile_px, mpp=model.mpp, device="cpu")
    crop_px = model.spec(answer).crop_px
    return np.pad(answers.answer(tile[None])[answer][0], ((0, 0), (crop_px, crop_px), (crop_px, crop_px)))
