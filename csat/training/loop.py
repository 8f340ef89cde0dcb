"""The training loop: one student or several, any method, one process or DDP, over a stream of tiles with their teacher's
responses.

It knows nothing of Ray. A step takes the next rows of every rank, agrees on how many tiles there are in all, and lets every
student make one update per turn of its method (see `learner`). Ranks may hold different numbers of tiles, even none: the loss
of a step is the mean over the tiles of all ranks, so one process and several agree. Whole images, each of its own size, are
computed in one part per size and weigh as tiles do. Everything random about a tile follows from its position, everything
else from (seed, step, rank), so a resumed run continues as it would have, with any number of workers.
"""

import logging
import resource
import time
from collections.abc import Mapping
from typing import Any

from csat.columns import POSITION
from csat.errors import NonFiniteLossError, StoppedError
from csat.methods.contract import Method
from csat.precision import BFLOAT16, FLOAT32, resolve_precision
from csat.responses import Batch
from csat.runs.checkpoints import Checkpoint, Checkpoints, Cursor
from csat.runs.plan import Plan
from csat.runs.quarantine import QUARANTINE_SCHEMA
from csat.runs.recorder import Recorder
from csat.runs.students import STUDENTS, folder_of, seconds_meter, tiles_meter
from csat.storage import files
from csat.training.accounting import Accounts
from csat.training.batches import idle_batch, to_batches
from csat.training.config import TrainConfig
from csat.training.context import Columns, TrainContext
from csat.training.learner import Learner
from csat.training.log_window import Pace
from csat.training.shares import share_out
from csat.training.stoppable import StoppableStream, Waiting
from csat.training.validation import Validation

logger = logging.getLogger(__name__)

# Between questions whether a machine will be taken away, also in a wait for rows; while one will be, between checkpoints.
LEAVING_EVERY_S = 10.0
ADVICE = "Try a lower train.optim.lr, a longer train.optim.warmup, or train.precision float32"


class Trainer:
    """One rank of one run.

    Args:
        methods: What is trained, already on `context.device`: one (also by the name None), or each student's by its name.
            Several read the same responses and targets.
        plan: The run's order of tiles.
        run_folder: URI; rank 0 writes checkpoints/, metrics.jsonl and tensorboard/ there, and those of each of several
            students below students/NAME.
        tile_px: Edge of the tiles, or the smallest edge of whole images: of what a rank without tiles is given.
        validation: Measures the only student now and then, keeps the best weights and says when to stop; None: trains to the
            end.
    """

    def __init__(
        self,
        methods: Method | Mapping[str | None, Method],
        plan: Plan,
        context: TrainContext,
        config: TrainConfig,
        *,
        run_folder: str,
        tile_px: int,
        validation: Validation | None = None,
    ):
        self.plan, self.context, self.config, self.tile_px = plan, context, config, tile_px
        self.validation = validation
        by_name = dict(methods) if isinstance(methods, Mapping) else {None: methods}
        is_alone = None in by_name
        assert is_alone or validation is None, "a validation is of one student"
        precision = self._agreed_precision()
        self.learners = [
            Learner(name, method, context, config, folder=folder_of(run_folder, name), precision=precision)
            for name, method in by_name.items()
        ]
        self.checkpoints = Checkpoints(files.join(run_folder, "checkpoints"), keep=config.keep_checkpoints)
        self.accounts = Accounts(plan, Cursor(), QUARANTINE_SCHEMA.empty_table())
        self.step = 0
        self._restore()
        for learner in self.learners:
            learner.begin(self.step)
        # What all students share; the only one has it among its own figures.
        self._recorder = None if is_alone or context.rank else Recorder(run_folder, last_step=self.step)
        self._pace = Pace()
        self._last_save = self._last_asked = time.monotonic()
        self._is_saved = True  # whether the committed checkpoint has all that there is
        self._last_batch: Batch | None = None

    def run(self) -> Cursor:
        """Train until every position of the plan is done, or the validation says to stop. Returns the final cursor.

        Raises:
            StoppedError: on every rank; someone asked the run to end, the step was finished and a checkpoint committed.
            NonFiniteLossError: on every rank, naming step and term; nothing of that step is kept. Of several students, when
                none is left: one stops alone, and the others continue.
            RuntimeError: the tile accounting does not add up.
        """
        has_more = self.accounts.tiles_done < self.plan.num_positions and not self.is_stopped
        try:
            if has_more:
                self._run()
            is_whole = not self.is_stopped  # asked before the last validation, which has nothing left to stop
            if self._validate(is_end=True) or has_more:
                self._save()
        except StoppedError:
            self._log()
            if not self._is_saved:
                self._save()
            self._close()
            raise
        self.accounts.check(is_whole=is_whole)
        self._close()
        return self.accounts.cursor

    def _close(self) -> None:
        for recorder in self._recorders():
            recorder.close()

    @property
    def learner(self) -> Learner:
        """The only student's."""
        (only,) = self.learners
        return only

    @property
    def is_stopped(self) -> bool:
        """Whether the validation has ended the run before its plan."""
        return self.validation is not None and self.validation.is_stopped

    # ---------------------------------------------------------------------------------------------------------- one step

    def _run(self) -> None:
        num_rows = self.config.rows_per_worker(self.context.world_size)
        self._last_save = time.monotonic()
        self._validate()  # an attempt that was stopped in a validation has not measured these weights
        for _ in range(self.context.num_streams):
            if not self.is_stopped:
                stream = StoppableStream(self.context.batches(num_rows), self.context.is_stopped)
                try:
                    self._train_stream(stream)
                finally:
                    stream.close()
        self._log()

    def _train_stream(self, stream: StoppableStream) -> None:
        """Steps until no rank has rows left, or the validation says to stop.

        Raises:
            StoppedError: on every rank, between two steps. Rows that were taken for the next one are dropped: whoever resumes
                takes them again.
        """
        parts: list[Columns | None] = []
        while True:
            started = time.monotonic()
            is_waiting = self._take(parts, stream)
            waited = time.monotonic() - started
            batches = [batch for rows in parts if rows for batch in to_batches(rows, self._reader, self.context.device)]
            rows_all, tiles_all, wants_save, asks_for_machines, wants_stop, num_waiting = self.context.sum_over_ranks(
                [
                    sum(len(rows[POSITION]) for rows in parts if rows),
                    sum(len(batch) for batch in batches),
                    self.context.rank == 0 and self._is_due_by_time(),  # one clock for all ranks
                    self.context.rank == 0 and self._is_due_to_ask(),
                    self.context.is_stopped(),
                    is_waiting,
                ]
            )
            if wants_stop:
                raise StoppedError("the run was asked to end")
            wants_save = wants_save or (asks_for_machines and self.context.is_leaving())
            if num_waiting:  # the step waits for the rows of all ranks; a checkpoint does not
                if wants_save and not self._is_saved:
                    self._save()
                    self._last_save = time.monotonic()
                self._add_time(waited, started)
                continue
            if not rows_all:
                break
            for rows in parts:
                if rows:
                    self.accounts.add(rows)
            self._is_saved = False
            if tiles_all:
                share_out(batches, self._reader.teachers, int(tiles_all), self.context)
                self._update(batches, int(tiles_all))
            self._pace.rows += int(rows_all)  # after the step: its learning rate is that of the tiles done before it
            parts = []
            self._add_time(waited, started)
            self.context.after_step(sum(map(len, batches)), time.monotonic() - started - waited)
            if tiles_all and self.step % self.config.log_every_steps == 0:
                self._log()
            self._validate()
            if wants_save or (tiles_all and self._is_due_by_step()):
                self._save()
                self._last_save = time.monotonic()
            if self.is_stopped:
                break

    def _update(self, batches: list[Batch], tiles_all: int) -> None:
        """One optimiser step per student and turn, from the tiles of all ranks."""
        progress = (self.accounts.tiles_done + self._pace.rows) / self.plan.num_positions
        # A rank without tiles still takes part in the exchange of gradients: nothing is kept of its batch.
        mine = batches or [self._last_batch or idle_batch(self._reader, self.tile_px, self.context.device)]
        weight = self.context.world_size / tiles_all if batches else 0.0
        num_tiles = sum(map(len, batches))
        for learner in self._active():
            started = time.monotonic()
            learner.update(mine, weight, progress=progress, step=self.step)
            if learner.fault is not None:
                self._part_with(learner)
            elif learner.name is not None:
                self.accounts.meter(seconds_meter(learner.name), time.monotonic() - started)
                self.accounts.meter(tiles_meter(learner.name), num_tiles)
        self._last_batch = mine[-1]
        self._pace.add_tiles(num_tiles)
        self.step += 1

    def _part_with(self, learner: Learner) -> None:
        """A student has diverged: the others continue without it. Raises NonFiniteLossError where there are no others."""
        if self._active():
            if self.context.rank == 0:
                logger.warning("student %s has diverged and stops, the others continue: %s", learner.name, learner.fault)
            return
        if learner.name is not None:
            each = "; ".join(f"{other.name}: {other.fault}" for other in self.learners)
            raise NonFiniteLossError(f"every student has diverged: {each}. The last checkpoint is intact. {ADVICE}")
        raise NonFiniteLossError(f"{learner.fault}. The last checkpoint is intact. {ADVICE}")

    def _validate(self, *, is_end: bool = False) -> bool:
        """Measure the weights as they would be used, where it is time; returns whether it was. Every rank must call it."""
        done = self.accounts.tiles_done + self._pace.rows
        if self.validation is None or not self.validation.is_due(done, is_end=is_end):
            return False
        learner = self.learner
        with learner.as_used() as student:
            figures = self.validation.measure(student, learner.method.state_dict(), self.context, done=done, step=self.step)
        self._is_saved = False
        if learner.recorder:
            learner.recorder.log(figures, file="validation")
            self.context.on_validation(figures)
        return True

    # --------------------------------------------------------------------------------------------------------- the stream

    def _take(self, parts: list[Columns | None], stream: StoppableStream) -> bool:
        """Add what is missing of a step's rows to `parts`; returns whether some are still waited for."""
        deadline = time.monotonic() + LEAVING_EVERY_S
        while len(parts) < self.config.accumulate:
            try:
                rows = stream.next(within_s=deadline - time.monotonic())
            except Waiting:
                return True
            parts.append(rows if rows is not None and len(rows[POSITION]) else None)
        return False

    def _add_time(self, waited_s: float, started: float) -> None:
        self.accounts.meter("wait_s", waited_s)
        self.accounts.meter("loop_s", time.monotonic() - started)
        self._pace.add_time(waited_s, time.monotonic() - started)

    # -------------------------------------------------------------------------------------------- checkpoints and figures

    def _active(self) -> list[Learner]:
        """The students that still learn."""
        return [learner for learner in self.learners if learner.fault is None]

    @property
    def _reader(self) -> Method:
        """A method that reads the responses and targets of all."""
        return self.learners[0].method

    def _recorders(self) -> list[Recorder]:
        """Of rank 0; others have none."""
        return [each for each in (*(learner.recorder for learner in self.learners), self._recorder) if each is not None]

    def _agreed_precision(self) -> str:
        """What the settings say; where that is `best`, what the hardware of every rank can do. Every rank must call it."""
        mine = resolve_precision(self.config.precision, self.context.device.type)
        agreed = FLOAT32 if FLOAT32 in self.context.gather(mine) else BFLOAT16
        if self.context.rank == 0:
            logger.info("the student computes in %s", agreed)
        return agreed

    def _is_due_by_time(self) -> bool:
        interval = self.config.checkpoint_every_s
        return interval is not None and time.monotonic() - self._last_save > interval

    def _is_due_by_step(self) -> bool:
        interval = self.config.checkpoint_every_steps
        return interval is not None and self.step % interval == 0

    def _is_due_to_ask(self) -> bool:
        is_due = time.monotonic() - self._last_asked > LEAVING_EVERY_S
        if is_due:
            self._last_asked = time.monotonic()
        return is_due

    def _save(self) -> None:
        cursor = self.accounts.settle(self.context, self.step)
        self._is_saved = True
        self._pace.rows = 0
        if self.context.rank != 0:
            return
        by_name = {learner.name: learner.state() for learner in self.learners}
        state = {
            **by_name.get(None, {STUDENTS: by_name}),
            "validation": self.validation.state() if self.validation else None,
        }
        name = self.checkpoints.save(Checkpoint(cursor, state, self.accounts.quarantine))
        for recorder in self._recorders():
            recorder.sync()
        logger.info("checkpoint %s committed: %d of %d tiles", name, len(cursor.done), self.plan.num_positions)

    def _restore(self) -> None:
        checkpoint = self.checkpoints.load(map_location=self.context.device)
        if checkpoint is None:
            return
        for learner in self.learners:
            self.checkpoints.load_into(learner.method, checkpoint, learner.name)
            learner.restore(checkpoint.state_of(learner.name))
            if learner.fault is not None and self.context.rank == 0:
                logger.warning("student %s diverged before and stays stopped: %s", learner.name, learner.fault)
        if self.validation:
            self.validation.restore(checkpoint.state["validation"])
        self.accounts = Accounts(self.plan, checkpoint.cursor, checkpoint.quarantine)
        self.step = checkpoint.cursor.step
        logger.info(
            "resumed at step %d with %d of %d tiles done", self.step, self.accounts.tiles_done, self.plan.num_positions
        )

    def _log(self) -> None:
        """Means over the ranks since the last line. Every rank must call it."""
        done, pace = self.accounts.tiles_done + self._pace.rows, self._pace.figures(self.context)
        if not pace:
            return
        about = {
            "step": self.step,
            "epoch": round(done / self.plan.num_tiles, 4),
            "tiles": done,
            "tiles_total": self.plan.num_positions,
        }
        rate = pace["tiles_per_s"]
        pace |= {
            "eta_s": (self.plan.num_positions - done) / rate if rate else None,
            "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }
        lines = {learner.name: learner.log(about, pace) for learner in self._active()}
        figures = lines.get(None) or self._of_all(about, lines, pace)
        if self.context.rank == 0:
            self.context.on_progress(figures)

    def _of_all(self, about: dict[str, Any], lines: Mapping[str, dict[str, Any]], pace: dict[str, Any]) -> dict[str, Any]:
        """The run's own line, with the loss of each of several students."""
        lr = next(iter(lines.values()))["lr"]
        figures = {**about, "lr": lr, **{f"loss/{name}": line["loss"] for name, line in lines.items()}, **pace}
        if self._recorder:
            self._recorder.log(figures)
        return figures
