"""The teacher stage with a response cache before it: what is known is read, the rest is answered, kept, and then passed on.

A row leaves this stage only when its responses are committed to the cache. So whatever a trainer has counted as done can be
read in every later epoch, whenever and wherever the run is killed.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from csat.columns import OK, POSITION, REASON, RESPONSE_PREFIX, STATUS, TEACHER_S, TILE
from csat.panel import on_tile
from csat.runs.plan import Plan
from teachers.response_cache import Answer, ResponseCache
from teachers.rows import with_answers
from teachers.stage import TeacherStage

logger = logging.getLogger(__name__)


class CachedTeacherStage:
    """A stage of the stream, like `TeacherStage`; the teacher is loaded when the first tile is met that the cache lacks.

    Args:
        cache: Where responses are kept.
        plan: Says which tile of the manifest a position is.
        batch_size: Tiles that the teacher sees at once.
        has_pool: The teacher is expected to be needed; else it is told when it is.
        label, shrink, closes: As `TeacherStage` takes them. What is kept goes by the teacher's own names.
        make_stage: Makes the teacher stage.
        teacher: What it is given, see `TeacherStage`. The tiles stay as they were scanned.
    """

    def __init__(
        self,
        cache: ResponseCache,
        plan: Plan,
        *,
        batch_size: int,
        has_pool: bool = True,
        label: str | None = None,
        shrink: int = 1,
        closes: Sequence[str] = (),
        make_stage: Callable[..., TeacherStage] = TeacherStage,
        **teacher: Any,
    ):
        assert teacher.get("view_seed") is None and teacher.get("colour") is None, "a tile's response would differ each epoch"
        self.cache, self.plan, self.batch_size = cache, plan, batch_size
        self.label, self.closes = label, tuple(closes)
        self.responses = tuple(on_tile(spec, label, shrink) for spec in cache.responses)  # as columns have them
        # To the cache it is the only teacher, whatever the run calls it: others' names are not in what is kept.
        self._make_stage, self._teacher = make_stage, {**teacher, "shrink": shrink}
        self._level = logging.INFO if has_pool else logging.WARNING
        self._stage: TeacherStage | None = None

    def __call__(self, columns: dict[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
        """Rows in, the same rows in order out, with the columns that `TeacherStage` adds, one batch per chunk.

        TEACHER_S is 0 for a tile that the teacher did not have to answer now.

        Raises:
            StorageError: the cache cannot be read or written.
            ConfigError, TeacherError: as `TeacherStage`; a probability that is none.
        """
        chunks, rows = self.plan.tiles_at(columns[POSITION])
        if not len(chunks):
            yield self._with_answers(columns, rows, {}, {})
            return
        starts = np.flatnonzero(np.diff(chunks, prepend=chunks[0] - 1))
        for start, stop in zip(starts, [*starts[1:], len(chunks)], strict=True):
            part = {name: column[start:stop] for name, column in columns.items()}
            yield self._answer(int(chunks[start]), rows[start:stop], part)

    def _answer(self, chunk: int, rows: np.ndarray, columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Rows of one chunk."""
        shard, is_ok = int(self.plan.chunk_shard[chunk]), columns[STATUS] == OK
        known = self.cache.read(shard, chunk) if is_ok.any() else {}
        missing = np.flatnonzero(is_ok & ~np.isin(rows, list(known)))
        seconds: dict[int, float] = {}
        if len(missing):
            answers = self._ask(missing, rows, columns, seconds)
            known |= self.cache.write(shard, chunk, answers)
        return self._with_answers(columns, rows, known, seconds)

    def _ask(
        self, missing: np.ndarray, rows: np.ndarray, columns: dict[str, np.ndarray], seconds: dict[int, float]
    ) -> dict[int, Answer]:
        """The teacher's answers by row in the chunk; its time goes into `seconds`."""
        if self._stage is None:
            device = self._teacher.get("device", "cpu")
            logger.log(self._level, "%s lacks responses: the teacher is loaded (%s)", self.cache.folder, device)
            self._stage = self._make_stage(**self._teacher)
        answers: dict[int, Answer] = {}
        for start in range(0, len(missing), self.batch_size):
            asked = missing[start : start + self.batch_size]
            answered = self._stage({name: columns[name][asked] for name in (POSITION, TILE, STATUS, REASON)})
            for index, row in enumerate(rows[asked].tolist()):
                seconds[row] = float(answered[TEACHER_S][index])
                if answered[STATUS][index] == OK:
                    answers[row] = {
                        spec.name: np.asarray(answered[RESPONSE_PREFIX + spec.name][index]) for spec in self.cache.responses
                    }
                else:
                    answers[row] = str(answered[REASON][index])
        return answers

    def _with_answers(
        self, columns: dict[str, np.ndarray], rows: np.ndarray, known: dict[int, Answer], seconds: dict[int, float]
    ) -> dict[str, np.ndarray]:
        answers: dict[int, dict[str, np.ndarray]] = {}
        failures: dict[int, str] = {}
        for index in np.flatnonzero(np.asarray(columns[STATUS]) == OK).tolist():
            answer = known[int(rows[index])]
            if isinstance(answer, str):
                failures[index] = answer
            else:
                answers[index] = {
                    spec.name: answer[own.name] for spec, own in zip(self.responses, self.cache.responses, strict=True)
                }
        spent = np.array([seconds.get(row, 0.0) for row in rows.tolist()], np.float32)
        return with_answers(columns, self.responses, answers, failures, spent, label=self.label, closes=self.closes)
