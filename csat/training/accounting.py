"""Which tiles were trained, quarantined or filtered: kept by every rank for its own rows, summed up at each checkpoint."""

from typing import Any

import numpy as np
import pyarrow as pa

from csat.columns import FILTERED, OK, POSITION, QUARANTINED, READ_S, REASON, STATUS, TEACHER_S, UNANSWERED_PREFIX
from csat.runs.accounts import UNANSWERED
from csat.runs.checkpoints import Cursor
from csat.runs.plan import Intervals, Plan
from csat.runs.quarantine import QUARANTINE_SCHEMA
from csat.training.context import Columns, TrainContext
from csat.words import printable

STATUS_NAMES = {QUARANTINED: "quarantined", FILTERED: "filtered"}


class Accounts:
    """This rank's rows since the last `settle`, and the settled cursor that all ranks share."""

    def __init__(self, plan: Plan, cursor: Cursor, quarantine: pa.Table):
        self.plan = plan
        self.cursor = cursor
        self.quarantine = quarantine
        self._forget()

    @property
    def tiles_done(self) -> int:
        """Positions that all ranks together had done at the last `settle`."""
        return len(self.cursor.done)

    def add(self, rows: Columns) -> None:
        """Account for rows that this rank has taken off the stream and is about to train.

        Raises:
            RuntimeError: a position that is already done came again: the stream and the checkpoint do not match.
        """
        positions, status = rows[POSITION], rows[STATUS]
        if self.cursor.done.contains(positions).any():
            raise RuntimeError(
                "a tile that the checkpoint has as done came down the stream again; restarting from the checkpoint"
            )
        self._positions.append(np.array(positions, dtype=np.int64))
        for epoch, code in zip(self.plan.epochs_of(positions).tolist(), status.tolist(), strict=True):
            self._counts.setdefault(epoch, [0, 0, 0])[code] += 1
        for index in np.flatnonzero(status != OK).tolist():
            self._add_bad_row(rows, index, STATUS_NAMES[int(status[index])], rows[REASON][index])
        self._add_teachers(rows)
        self.meter("read_s", float(rows[READ_S].sum()))
        self.meter("teacher_s", float(rows[TEACHER_S].sum()))
        self.meter("rows", len(positions))
        self.meter("answered", int((rows[TEACHER_S] > 0).sum()))  # by a teacher, now; the others had no need of it

    def _add_teachers(self, rows: Columns) -> None:
        """Of several teachers: who has not answered which of the tiles that are trained, and what each of them cost."""
        for teacher in [name.removeprefix(UNANSWERED_PREFIX) for name in rows if name.startswith(UNANSWERED_PREFIX)]:
            reasons, seconds = rows[UNANSWERED_PREFIX + teacher], rows[f"{TEACHER_S}.{teacher}"]
            lacking = np.flatnonzero((rows[STATUS] == OK) & (reasons != ""))
            for index in lacking.tolist():
                self._add_bad_row(rows, index, UNANSWERED, f"{teacher}.{reasons[index]}")
            self.meter(f"{UNANSWERED}.{teacher}", len(lacking))
            self.meter(f"teacher_s.{teacher}", float(seconds.sum()))
            self.meter(f"answered.{teacher}", int((seconds > 0).sum()))

    def _add_bad_row(self, rows: Columns, index: int, status: str, why: object) -> None:
        reason, _, message = str(why).partition(": ")
        self._bad_rows.append(
            {
                "position": int(rows[POSITION][index]),
                "slide": printable(rows["slide"][index]),
                "x_px": int(rows["x_px"][index]),
                "y_px": int(rows["y_px"][index]),
                "status": status,
                "reason": printable(reason),
                "message": printable(message),
            }
        )

    def meter(self, name: str, value: float) -> None:
        """Add to one of the run's sums."""
        self._meters[name] = self._meters.get(name, 0.0) + value

    def settle(self, context: TrainContext, step: int) -> Cursor:
        """Sum up over the ranks; every rank must call it. Returns the cursor, the same on every rank."""
        mine = {
            "done": Intervals.of(np.concatenate(self._positions or [np.empty(0, dtype=np.int64)])).pairs(),
            "counts": self._counts,
            "meters": self._meters,
            "bad_rows": self._bad_rows,
        }
        done, counts, meters = self.cursor.done, dict(self.cursor.counts), dict(self.cursor.meters)
        bad_rows: list[dict[str, Any]] = []
        for share in context.gather(mine):
            done = done | Intervals(share["done"])
            for epoch, added in share["counts"].items():
                counts[epoch] = [old + new for old, new in zip(counts.get(epoch, (0, 0, 0)), added, strict=True)]
            for name, value in share["meters"].items():
                meters[name] = meters.get(name, 0.0) + value
            bad_rows += share["bad_rows"]
        if bad_rows:
            self.quarantine = pa.concat_tables([self.quarantine, pa.Table.from_pylist(bad_rows, schema=QUARANTINE_SCHEMA)])
        self.cursor = Cursor(step=step, done=done, counts=counts, meters=meters)
        self._forget()
        return self.cursor

    def check(self, *, is_whole: bool = True) -> None:
        """At the end: manifest = trained + quarantined + filtered, in every epoch.

        Args:
            is_whole: The plan was to be done to its end; else what was counted must be what was done, once each.

        Raises:
            RuntimeError: naming the epochs in which tiles are missing or doubled.
        """
        counted = {epoch: sum(self.cursor.counts.get(epoch, ())) for epoch in range(self.plan.num_epochs)}
        expected = dict.fromkeys(counted, self.plan.num_tiles) if is_whole else self._done_by_epoch()
        wrong = {epoch: self.cursor.counts.get(epoch, [0, 0, 0]) for epoch in counted if counted[epoch] != expected[epoch]}
        if wrong or len(self.cursor.done) != sum(expected.values()):
            raise RuntimeError(
                f"tile accounting failed: {self.plan.num_tiles} tiles an epoch in the manifest, {len(self.cursor.done)} done "
                f"in all, but [trained, quarantined, filtered] by epoch are {wrong or self.cursor.counts}"
            )

    def _done_by_epoch(self) -> dict[int, int]:
        size, done = self.plan.num_tiles, np.array(self.cursor.done.pairs(), np.int64).reshape(-1, 2)
        return {
            epoch: int(np.diff(done.clip(epoch * size, (epoch + 1) * size), axis=1).sum())
            for epoch in range(self.plan.num_epochs)
        }

    def _forget(self) -> None:
        self._positions: list[np.ndarray] = []
        self._counts: dict[int, list[int]] = {}
        self._bad_rows: list[dict[str, Any]] = []
        self._meters: dict[str, float] = {}
