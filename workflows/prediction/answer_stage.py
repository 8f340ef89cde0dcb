"""The second stage of a prediction: the model answers. Pixels end here, and only what files are made of goes on.

What is wrong with a tile, and what with the model, `teachers.stage.TeacherStage` tells apart: one bad tile is a row with a
reason, a broken model stops the run.
"""

from collections.abc import Sequence

import numpy as np

from csat.columns import OK, RESPONSE_PREFIX, STATUS, TILE
from csat.prediction.answers import Answers
from csat.prediction.slide_maps import cells_of, grid_of_um
from teachers.contract import Teacher
from teachers.stage import TeacherStage
from workflows.prediction.columns import AT, AT_SIZE, FRAME, NETWORK
from workflows.prediction.config import AnswersConfig
from workflows.prediction.description import Description
from workflows.prediction.framed_reader import GEOMETRY, frame_of_cell
from workflows.prediction.job import MapWanted
from workflows.prediction.model import description_of, open_model
from workflows.prediction.who import who


class AnswerStage:
    """A loaded model as a stage of the stream: loads once, then answers batches."""

    def __init__(
        self,
        model: AnswersConfig,
        description: Description,
        *,
        device: str,
        kept: Sequence[str],
        maps: Sequence[MapWanted] = (),
    ):
        """
        Args:
            model: Which.
            description: As the driver found it: an actor that finds other weights stops the run.
            device: Where it runs, as torch names it.
            kept: Answers that go on as they are, RESPONSE_PREFIX + name.
            maps: Dense answers that go on as cells of the slide's map, `name` and `name + AT`.
        """
        self._kept = {RESPONSE_PREFIX + name for name in kept}
        self._maps, self._description = maps, description
        wanted = [spec.name for spec in description.specs if spec.name in {*kept, *(each.answer for each in maps)}]
        self._stage = TeacherStage(
            description.name,
            wanted=wanted,
            device=device,
            expected_sha256=description.about["sha256"],
            called="model",
            loader=lambda name, weights, options, *, device, wanted: _Answering(model, description, device, wanted),
        )

    def __call__(self, columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Rows with pixels in, rows with answers out: zeros, or no cells, where the tile is not OK."""
        rows = self._stage(columns)
        kept = {
            name: column
            for name, column in rows.items()
            if name != TILE and (not name.startswith(RESPONSE_PREFIX) or name in self._kept)
        }
        for wanted in self._maps:
            kept |= self._cells(rows, wanted)
        return {**kept, NETWORK: np.full(len(kept[STATUS]), who(), object)}

    def _cells(self, rows: dict[str, np.ndarray], wanted: MapWanted) -> dict[str, np.ndarray]:
        num_rows = len(rows[STATUS])
        values, at = np.full(num_rows, b"", object), np.zeros((num_rows, AT_SIZE), np.int32)
        crop_px = self._description.spec(wanted.answer).crop_px
        for row in np.flatnonzero(rows[STATUS] == OK).tolist():
            frame = frame_of_cell(rows[FRAME][row])
            tile = {name: rows[name][row].item() for name in GEOMETRY}
            place = frame.place(**tile, tile_px=self._description.tile_px, crop_px=crop_px)
            answer = rows[RESPONSE_PREFIX + wanted.answer][row]
            cells = cells_of(answer, place, grid_of_um(frame, wanted.cell_um), labels=wanted.labels)
            values[row], at[row] = cells.values.tobytes(), (cells.row, cells.column, *cells.values.shape)
        return {wanted.name: values, wanted.name + AT: at}


class _Answering(Teacher):
    """A model that answers as the stage wants it: float16, and only what is wanted."""

    def __init__(self, model: AnswersConfig, description: Description, device: str, wanted: Sequence[str]):
        answers: Answers = open_model(model, tile_px=description.tile_px, mpp=description.mpp, device=device)
        self._answers = answers
        self.spec = description_of(answers).as_teacher(wanted)

    def respond(self, tiles: np.ndarray) -> dict[str, np.ndarray]:
        said = self._answers.answer(tiles)
        return {spec.name: said[spec.name].astype(np.float16) for spec in self.spec.responses}
