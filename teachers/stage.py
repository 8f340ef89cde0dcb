"""The teacher in an actor pool: rows with pixels in, the same rows with responses out.

Ray Data makes the actors (`workflows/pretraining/stream.py` sets how many, their CPUs or GPUs and the batch size); nothing
here needs Ray. torch and OpenCV are loaded where they compute: Ray's coordinator of the stream imports this file too, and does
without. One bad tile costs one quarantine row. A broken teacher stops the run: else it would quarantine the whole data set.
Several teachers are stages that follow each other. The first one that needs it puts the tiles in their view, and what one of
them cannot answer the others still do.
"""

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from csat.columns import (
    OK,
    POSITION,
    RESPONSE_PREFIX,
    STATUS,
    STUDENT_TILE,
    TILE,
    rows_by_size,
    take_rows,
)
from csat.errors import ConfigError, TeacherError
from csat.panel import on_tile
from csat.responses import ResponseSpec
from csat.views.colour_config import ColourConfig
from csat.words import last_line, printable
from teachers.contract import Teacher, check_responses
from teachers.registry import load_teacher
from teachers.rows import shrunk, with_answers

logger = logging.getLogger(__name__)

MAX_REASON_CHARS = 300  # of an exception's text in a quarantine row
MAX_FIRST_FAILURES = 8  # tiles that may fail, each in its own way, before the first one succeeds


class TeacherStage:
    """A loaded teacher as a stage of the stream: loads once, then answers batches."""

    def __init__(
        self,
        name: str,
        weights: str | None = None,
        options: Mapping[str, Any] | None = None,
        wanted: Sequence[str] | None = None,
        *,
        device: str = "cpu",
        threads: int | None = None,
        expected_sha256: str | None = None,
        view_seed: int | None = None,
        turned: Sequence[ResponseSpec] = (),
        colour: ColourConfig | None = None,
        colour_seed: int = 0,
        label: str | None = None,
        shrink: int = 1,
        closes: Sequence[str] = (),
        called: str = "teacher",
        niceness: int = 0,
        loader: Callable[..., Teacher] = load_teacher,
    ):
        """
        Args:
            name, weights, options, device: As `load_teacher` takes them.
            wanted: Responses that become columns; None: all.
            threads: Of torch in this process; None: as it is.
            expected_sha256: Of the weights that the driver saw; None: not compared.
            view_seed: Tiles are put into their view (`d4_of`) *before* the teacher sees them, and leave the stage in it: for
                responses that cannot be carried through a transform afterwards. None: tiles stay as they are.
            turned: What other teachers have said of the tiles as they are, as columns have it: it is put in that view too.
            colour: Colours of tiles are changed by it before the teacher sees them, and they leave the stage so, for methods
                that show teacher and student the same colours. None: they stay as they are.
            colour_seed: Says how, with the position of the tile.
            label: This teacher's name, where there are several: its columns carry it, and a tile on which it fails goes on to
                the others. None: it is the only one.
            shrink: Tiles are averaged over squares of so many pixels before the teacher sees them; they leave as they came.
            closes: The last of several stages: names of all teachers. A tile that none of them has answered is quarantined.
            called: What it is to whoever reads the messages and reasons: teacher, or model.
            niceness: Added to that of this process, so that others come first; it cannot be taken back.
            loader: `load_teacher`, or a stand-in of the same signature.

        Raises:
            ConfigError, TeacherError: as `load_teacher`; and where this node's weights are others than the driver's.
        """
        import cv2

        os.nice(niceness)
        if threads is not None:
            import torch

            torch.set_num_threads(threads)
        cv2.setNumThreads(1)  # OpenCV would take every core of the node, whatever Ray gave this actor
        self.teacher = loader(name, weights, options, device=device, wanted=wanted)
        self.view_seed, self.turned = view_seed, tuple(turned)
        self.label, self.shrink, self.closes = label, shrink, tuple(closes)
        self.called = called
        self.colour, self.colour_seed = None if colour is None else _recolouring(colour), colour_seed
        self._good_tile: np.ndarray | None = None  # one that this teacher has answered
        self._num_failed = 0
        spec = self.teacher.spec
        self.responses = tuple(on_tile(each, label, shrink) for each in spec.responses)  # as columns have them
        if expected_sha256 is not None and spec.weights_sha256 != expected_sha256:
            raise TeacherError(
                f"{called} {name!r}: this node's weights {weights} have the hash {spec.weights_sha256[:16]} and the driver's "
                f"{expected_sha256[:16]}: the same path holds different files. Put the weights in a bucket, or copy them again"
            )

    def __call__(self, columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Answer a batch.

        Args:
            columns: With POSITION, TILE, STATUS and REASON; the arrays may be read-only and are left alone. Whole images, each
                of its own size, come as an object array, and are answered in groups of one size. STUDENT_TILE, where it is
                there, gets the view and the colours of TILE.

        Returns:
            The same columns and rows, in order, and `RESPONSE_PREFIX + name` float16 per response (zeros where the status is
            not OK; an object array for dense ones of whole images) and TEACHER_S. A tile on which the teacher raised, or
            answered NaN or infinity, is QUARANTINED. Of one of several teachers see `teachers.rows`.

        Raises:
            TeacherError: the answer does not fit the teacher's spec; or the teacher fails on everything.
        """
        start = time.perf_counter()
        seen = {name: self._as_seen(columns[name], columns[POSITION]) for name in (TILE, STUDENT_TILE) if name in columns}
        seen |= self._responses_in_view(columns)
        tiles = seen[TILE]
        rows = np.flatnonzero(np.asarray(columns[STATUS]) == OK)
        answers: dict[int, dict[str, np.ndarray]] = {}  # by row
        failures: dict[int, str] = {}
        for group in rows_by_size(tiles, rows):
            answered, failed = self._answer(np.ascontiguousarray(shrunk(take_rows(tiles, group), self.shrink)))
            answers |= {int(group[index]): answer for index, answer in answered.items()}
            failures |= {int(group[index]): reason for index, reason in failed.items()}
        seconds = np.zeros(len(tiles), np.float32)
        seconds[rows] = (time.perf_counter() - start) / max(len(rows), 1)
        return with_answers(
            {**columns, **seen}, self.responses, answers, failures, seconds, label=self.label, closes=self.closes
        )

    def _as_seen(self, tiles: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """The tiles in their view and colours, where this stage gives them any."""
        if self.view_seed is not None:
            from csat.views.symmetries import apply_d4_tiles, d4_of

            tiles = apply_d4_tiles(tiles, d4_of(positions, self.view_seed))
        return tiles if self.colour is None else self._recolour(tiles, positions)

    def _responses_in_view(self, columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Columns of what was said before of tiles that this stage puts in their view."""
        if self.view_seed is None or not self.turned:
            return {}
        import torch

        from csat.views.symmetries import apply_d4, d4_of

        index, turned = torch.from_numpy(d4_of(columns[POSITION], self.view_seed)), {}
        for spec in self.turned:
            said = torch.tensor(columns[RESPONSE_PREFIX + spec.name])  # a copy: the column may be read-only
            turned[RESPONSE_PREFIX + spec.name] = apply_d4(said, index, spec.symmetry).numpy()
        return turned

    def _recolour(self, tiles: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """uint8 `[B, H, W, 3]`, or object `[B]` of images, in other colours: one at a time, since a batch in floats would be
        twelve times its bytes."""
        import torch

        recoloured = np.empty_like(tiles)
        for index, (tile, position) in enumerate(zip(tiles, positions.tolist(), strict=True)):
            image = torch.tensor(tile).permute(2, 0, 1)[None].float() / 255
            image = self.colour(image, torch.tensor([position]), self.colour_seed)[0]
            recoloured[index] = (image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        return recoloured

    def _answer(self, tiles: np.ndarray) -> tuple[dict[int, dict[str, np.ndarray]], dict[int, str]]:
        """Per tile its responses, or why there are none: `(answers, reasons)`, both by index into `tiles`."""
        if not len(tiles):
            return {}, {}
        try:
            batches = [(0, self._respond(tiles))]
            reasons = {}
        except (ConfigError, TeacherError):  # not about one tile
            raise
        except Exception as error:  # a teacher is anybody's code; whatever it raises, one tile may be the cause
            who = f"the {self.called} {self.label}" if self.label else f"the {self.called}"
            logger.warning("%s failed on a batch of %d tiles: trying them one by one", who, len(tiles), exc_info=error)
            batches, reasons = self._respond_one_by_one(tiles)
        answers = {}
        for first, responses in batches:
            is_finite = {name: _is_finite(values) for name, values in responses.items()}
            for row in range(len(next(iter(responses.values())))):
                bad = [name for name in responses if not is_finite[name][row]]
                if bad:
                    reasons[first + row] = f"{self.called}_nonfinite: NaN or infinity in {', '.join(bad)}"
                else:
                    named = zip(self.responses, responses.values(), strict=True)
                    answers[first + row] = {spec.name: values[row] for spec, values in named}
        self._check_not_broken(tiles, answers, reasons)
        return answers, reasons

    def _respond_one_by_one(self, tiles: np.ndarray) -> tuple[list[tuple[int, dict[str, np.ndarray]]], dict[int, str]]:
        batches, reasons = [], {}
        for index in range(len(tiles)):
            try:
                batches.append((index, self._respond(tiles[index : index + 1])))
            except (ConfigError, TeacherError):  # not about one tile
                raise
            except Exception as error:
                said = f"{self.called}_error: {type(error).__name__}: {last_line(error)}"  # TorchScript's has many lines
                reasons[index] = printable(said)[:MAX_REASON_CHARS]
        return batches, reasons

    def _respond(self, tiles: np.ndarray) -> dict[str, np.ndarray]:
        """The teacher's answer, checked for shape, as float16. Raises whatever the teacher raises, and TeacherError."""
        spec = self.teacher.spec
        responses = self.teacher.respond(tiles)
        check_responses(responses, spec, num_tiles=len(tiles), tile_px=tiles.shape[1:3])
        with np.errstate(over="ignore"):  # too large for float16 becomes infinite, and so is quarantined
            return {
                response.name: np.asarray(responses[response.name]).astype(np.float16, copy=False)
                for response in spec.responses
            }

    def _check_not_broken(self, tiles: np.ndarray, answers: Mapping, reasons: Mapping[int, str]) -> None:
        """Tell a broken teacher from bad tiles, when a whole batch failed.

        Raises:
            TeacherError: no tile ever succeeded, and this batch failed in one way or too many tiles failed; or the teacher
                now fails on a tile that it has answered before (a GPU that is lost stays lost).
        """
        if answers:
            if self._good_tile is None:
                self._good_tile = tiles[next(iter(answers))].copy()
            return
        self._num_failed += len(tiles)
        name, reason = f"{self.called} {self.label or self.teacher.spec.name!r}", reasons[0]
        if self._good_tile is None:
            if (len(tiles) > 1 and len(set(reasons.values())) == 1) or self._num_failed >= MAX_FIRST_FAILURES:
                raise TeacherError(
                    f"{name} has not answered one of its first {self._num_failed} tiles, so it is not the tiles: "
                    f"{reason}. Check its options, and that tiles of {tiles.shape[1]} px suit it"
                )
            return
        try:
            self._respond(self._good_tile[None])
        except Exception as error:
            raise TeacherError(
                f"{name} failed on a whole batch, and now on a tile that it answered before: {error}. Its device or "
                "its memory is lost; run the same command again to resume"
            ) from error


def _recolouring(colour: ColourConfig) -> Callable:
    from csat.views.colour import ColourAugment

    return ColourAugment(colour)


def _is_finite(values: np.ndarray) -> np.ndarray:
    """bool `[B]`: no NaN or infinity in that row. float16 `[B, ...]`."""
    exponents = np.ascontiguousarray(values).view(np.uint16) & 0x7C00  # all ones: NaN or infinity; far faster than isfinite
    return exponents.reshape(len(values), -1).max(axis=1) != 0x7C00
