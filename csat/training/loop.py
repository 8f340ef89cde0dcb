"""The training loop: any method, one process or DDP, over a stream of tiles with their teacher's responses.

It knows nothing of Ray. A step takes the next rows of every rank, agrees on how many tiles there are in all, and makes one
update per turn of the method. Ranks may hold different numbers of tiles, even none: the loss of a step is the mean over the
tiles of all ranks, so one process and several agree. Whole images, each of its own size, are computed in one part per size and
weigh as tiles do. Everything random about a tile follows from its position, everything
else from (seed, step, rank), so a resumed run continues as it would have, with any number of workers.
"""

import contextlib
import logging
import resource
import time

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from csat.columns import POSITION
from csat.errors import NonFiniteLossError, StoppedError
from csat.methods.contract import Method
from csat.precision import BFLOAT16, FLOAT32, resolve_precision
from csat.responses import Batch
from csat.runs.checkpoints import Checkpoint, Checkpoints, Cursor
from csat.runs.plan import Plan
from csat.runs.quarantine import QUARANTINE_SCHEMA
from csat.runs.recorder import Recorder
from csat.storage import files
from csat.training.accounting import Accounts
from csat.training.batches import idle_batch, to_batches
from csat.training.config import TrainConfig
from csat.training.context import Columns, TrainContext
from csat.training.log_window import LogWindow
from csat.training.optim import WeightAverage, get_lr, make_optimiser, make_own_optimiser, set_lr
from csat.training.shares import share_out, shared
from csat.training.stoppable import StoppableStream, Waiting
from csat.training.validation import Validation

logger = logging.getLogger(__name__)

STUDENT = "student"  # the turn that every method has
# Between questions whether a machine will be taken away, also in a wait for rows; while one will be, between checkpoints.
LEAVING_EVERY_S = 10.0


class Trainer:
    """One rank of one run.

    Args:
        method: What is trained; already on `context.device`.
        plan: The run's order of tiles.
        run_folder: URI; rank 0 writes checkpoints/, metrics.jsonl and tensorboard/ there.
        tile_px: Edge of the tiles, or the smallest edge of whole images: of what a rank without tiles is given.
        validation: Measures the student now and then, keeps the best weights and says when to stop; None: trains to the end.
    """

    def __init__(
        self,
        method: Method,
        plan: Plan,
        context: TrainContext,
        config: TrainConfig,
        *,
        run_folder: str,
        tile_px: int,
        validation: Validation | None = None,
    ):
        self.method, self.plan, self.context, self.config, self.tile_px = method, plan, context, config, tile_px
        self.validation = validation
        self._precision = self._agreed_precision()
        self.optimisers = {turn: self._make_optimiser(turn) for turn in method.turns}
        self.average = WeightAverage(method, config.optim) if config.optim.ema_decay is not None else None
        self.checkpoints = Checkpoints(files.join(run_folder, "checkpoints"), keep=config.keep_checkpoints)
        self.accounts = Accounts(plan, Cursor(), QUARANTINE_SCHEMA.empty_table())
        self.step = 0
        self._restore()
        self.recorder = Recorder(run_folder, last_step=self.step) if context.rank == 0 else None
        self._model = self._wrap()
        self._window = LogWindow()
        self._last_save = self._last_asked = time.monotonic()
        self._is_saved = True  # whether the committed checkpoint has all that there is
        self._last_batch: Batch | None = None

    def run(self) -> Cursor:
        """Train until every position of the plan is done, or the validation says to stop. Returns the final cursor.

        Raises:
            StoppedError: on every rank; someone asked the run to end, the step was finished and a checkpoint committed.
            NonFiniteLossError: on every rank, naming step and term; nothing of that step is kept.
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
        if self.recorder:
            self.recorder.close()

    def averaged_state(self) -> dict[str, Tensor]:
        """The method's weights as they should be used: averaged where there is an average."""
        return self.average.tensors if self.average else self.method.state_dict()

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
            batches = [batch for rows in parts if rows for batch in to_batches(rows, self.method, self.context.device)]
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
                share_out(batches, self.method.teachers, int(tiles_all), self.context)
                self._update(batches, int(tiles_all))
            self._window.rows += int(rows_all)  # after the step: its learning rate is that of the tiles done before it
            parts = []
            self._add_time(waited, started)
            if tiles_all and self.step % self.config.log_every_steps == 0:
                self._log()
            self._validate()
            if wants_save or (tiles_all and self._is_due_by_step()):
                self._save()
                self._last_save = time.monotonic()
            if self.is_stopped:
                break

    def _update(self, batches: list[Batch], tiles_all: int) -> None:
        """One optimiser step per turn, from the tiles of all ranks."""
        torch.manual_seed(hash((self.config.seed, self.step, self.context.rank)) & 0x7FFF_FFFF)
        progress = (self.accounts.tiles_done + self._window.since_settled()) / self.plan.num_positions
        # A rank without tiles still takes part in the exchange of gradients: nothing is kept of its batch. Every turn of
        # a step sees the same batches.
        mine = batches or [self._last_batch or idle_batch(self.method, self.tile_px, self.context.device)]
        weight = self.context.world_size / tiles_all if batches else 0.0
        for turn in self.method.turns:
            schedule = self.method.own_optimisers.get(turn, self.config.optim)
            set_lr([self.optimisers[turn]], schedule.lr_at(progress))
            self.optimisers[turn].zero_grad(set_to_none=True)
            terms = []
            for index, batch in enumerate(mine):
                is_last = index == len(mine) - 1  # once per rank and turn, however many sizes it holds
                with contextlib.nullcontext() if is_last or self.context.world_size == 1 else self._model.no_sync():
                    terms.append(self._backward(batch, turn, weight))
            self._descend(turn, terms)
        for batch in mine:
            batch.kept.clear()
        if self.average:
            self.average.update(self.method, self.step)
        self.step += 1

    def _backward(self, batch: Batch, turn: str, weight: float) -> dict[str, Tensor]:
        """Gradients of one part, added up; a batch of weight 0 counts for nothing else."""
        with torch.autocast(self.context.device.type, torch.bfloat16, enabled=self._precision == BFLOAT16):
            terms = shared(self._model(batch, turn), self.method.teacher_of_term, batch)
        loss = self.method.total(terms)
        (loss.sum() * weight).backward()
        if not weight:
            return {}
        self._last_batch = batch
        terms = {name: term.detach() for name, term in terms.items()}
        if turn == STUDENT:
            terms["loss"] = loss.detach()
        self._window.add_terms(terms, len(batch) if turn == STUDENT else 0)  # a tile counts once, however many its turns
        return terms

    def _descend(self, turn: str, terms: list[dict[str, Tensor]]) -> None:
        weights = [p for p in self.method.part(turn).parameters() if p.grad is not None]
        clip = None if turn in self.method.own_optimisers else self.config.optim.clip_grad_norm
        norm = torch.nn.utils.clip_grad_norm_(weights, clip if clip is not None else float("inf"))
        broken = {name for part in terms for name, term in part.items() if not torch.isfinite(term).all()}
        # Asking waits for the device once a step: cheap beside a teacher, and nothing of a broken step reaches the weights.
        is_broken = bool(broken) or not torch.isfinite(norm)
        if self.context.sum_over_ranks([is_broken])[0]:
            self._stop_at_non_finite(turn, broken)
        if turn == STUDENT:
            self._window.grad_norm = float(norm)
        self.optimisers[turn].step()

    def _stop_at_non_finite(self, turn: str, broken: set[str]) -> None:
        terms = sorted({name for names in self.context.gather(broken) for name in names} - {"loss"})
        what = f"loss term {', '.join(terms)} is" if terms else "every loss term is finite but the gradient is"
        raise NonFiniteLossError(
            f"step {self.step + 1} ({turn}): {what} not finite. The last checkpoint is intact. Try a lower train.optim.lr, a "
            "longer train.optim.warmup, or train.precision float32"
        )

    def _validate(self, *, is_end: bool = False) -> bool:
        """Measure the weights as they would be used, where it is time; returns whether it was. Every rank must call it."""
        done = self.accounts.tiles_done + self._window.since_settled()
        if self.validation is None or not self.validation.is_due(done, is_end=is_end):
            return False
        student, trained = self.method.part("student"), None
        if self.average:
            trained = {name: tensor.clone() for name, tensor in self.method.state_dict().items()}
            self.method.load_state_dict(self.average.tensors)
        self.context.share(self.method.buffers())  # each rank's batch norm has seen its own tiles; rank 0's are kept
        student.eval()
        try:
            figures = self.validation.measure(student, self.method.state_dict(), self.context, done=done, step=self.step)
        finally:
            student.train()
            if trained is not None:
                self.method.load_state_dict(trained)
        self._is_saved = False
        if self.recorder:
            self.recorder.log(figures, file="validation")
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
        self._window.add_time(waited_s, time.monotonic() - started)

    # -------------------------------------------------------------------------------------------- checkpoints and figures

    def _make_optimiser(self, turn: str) -> torch.optim.Optimizer:
        part, own = self.method.part(turn), self.method.own_optimisers.get(turn)
        return make_optimiser(part, self.config.optim) if own is None else make_own_optimiser(part, own)

    def _agreed_precision(self) -> str:
        """What the settings say; where that is `best`, what the hardware of every rank can do. Every rank must call it."""
        mine = resolve_precision(self.config.precision, self.context.device.type)
        agreed = FLOAT32 if FLOAT32 in self.context.gather(mine) else BFLOAT16
        if self.context.rank == 0:
            logger.info("the student computes in %s", agreed)
        return agreed

    def _wrap(self) -> nn.Module:
        if self.config.compile:
            self.method.part("student").compile()
        if self.context.world_size == 1:
            return self.method
        # One turn leaves the other parts without gradients; with a single turn everything is used.
        return DistributedDataParallel(self.method, find_unused_parameters=len(self.method.turns) > 1)

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
        self._window.settled()
        if self.context.rank != 0:
            return
        state = {
            "method": self.method.state_dict(),
            "optimisers": {turn: optimiser.state_dict() for turn, optimiser in self.optimisers.items()},
            "average": self.average.tensors if self.average else None,
            "validation": self.validation.state() if self.validation else None,
        }
        name = self.checkpoints.save(Checkpoint(cursor, state, self.accounts.quarantine))
        self.recorder.sync()
        logger.info("checkpoint %s committed: %d of %d tiles", name, len(cursor.done), self.plan.num_positions)

    def _restore(self) -> None:
        checkpoint = self.checkpoints.load(map_location=self.context.device)
        if checkpoint is None:
            return
        self.checkpoints.load_into(self.method, checkpoint)
        for turn, optimiser in self.optimisers.items():
            optimiser.load_state_dict(checkpoint.state["optimisers"][turn])
        if self.average:
            self.average.tensors = checkpoint.state["average"]
        if self.validation:
            self.validation.restore(checkpoint.state["validation"])
        self.accounts = Accounts(self.plan, checkpoint.cursor, checkpoint.quarantine)
        self.step = checkpoint.cursor.step
        logger.info(
            "resumed at step %d with %d of %d tiles done", self.step, self.accounts.tiles_done, self.plan.num_positions
        )

    def _log(self) -> None:
        """Means over the ranks since the last line. Every rank must call it."""
        figures = self._window.figures(self.context)
        if not figures:
            return
        done = self.accounts.tiles_done + self._window.since_settled()
        rate = figures["tiles_per_s"]
        figures = {
            "step": self.step,
            "epoch": round(done / self.plan.num_tiles, 4),
            "tiles": done,
            "tiles_total": self.plan.num_positions,
            "lr": get_lr(self.optimisers[STUDENT]),
            **figures,
            "eta_s": (self.plan.num_positions - done) / rate if rate else None,
            "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }
        if self.recorder:
            self.recorder.log(figures)
            self.context.on_progress(figures)
