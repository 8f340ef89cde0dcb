"""One student of a run: its method, optimisers, average of the weights and figures. The loop owns the stream and the steps.

Several learners of one run see the same batches, one after the other. Everything random of a step is drawn anew for each of
them, so that a student learns what it would learn alone.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from csat.methods.contract import Method
from csat.precision import BFLOAT16
from csat.responses import Batch
from csat.runs.recorder import Recorder
from csat.training.config import TrainConfig
from csat.training.context import TrainContext
from csat.training.log_window import LogWindow
from csat.training.optim import WeightAverage, get_lr, make_optimiser, make_own_optimiser, set_lr
from csat.training.shares import shared

STUDENT = "student"  # the turn that every method has


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Why a student learns no more."""

    step: int  # that it did not make, from 1
    turn: str
    what: str  # that was not finite

    def __str__(self) -> str:
        return f"step {self.step} ({self.turn}): {self.what} not finite"


class Learner:
    """A student on one rank.

    Args:
        name: Among the students of its run; None: it is the only one.
        method: What is trained; already on `context.device`.
        folder: URI for metrics.jsonl and tensorboard/.
        precision: In which it computes, the same on all ranks.

    Attributes:
        fault: Why it stopped; None while it learns.
        last_step: Of the checkpoint that it resumes from.
    """

    def __init__(
        self, name: str | None, method: Method, context: TrainContext, config: TrainConfig, *, folder: str, precision: str
    ):
        self.name, self.method, self.context, self.config, self.folder = name, method, context, config, folder
        self._precision = precision
        self.optimisers = {turn: self._make_optimiser(turn) for turn in method.turns}
        self.average = WeightAverage(method, config.optim) if config.optim.ema_decay is not None else None
        self.fault: Fault | None = None
        self.window = LogWindow()
        self.recorder: Recorder | None = None
        self._model: nn.Module = method

    def begin(self, step: int) -> None:
        """Get ready for the steps after `step`. Every rank must call it, after `restore`."""
        if self.context.rank == 0:
            self.recorder = Recorder(self.folder, last_step=step)
        if self.config.compile:
            self.method.part(STUDENT).compile()
        if self.context.world_size > 1:
            # One turn leaves the other parts without gradients; with a single turn everything is used.
            self._model = DistributedDataParallel(self.method, find_unused_parameters=len(self.method.turns) > 1)

    def averaged_state(self) -> dict[str, Tensor]:
        """The method's weights as they should be used: averaged where there is an average."""
        return self.average.tensors if self.average else self.method.state_dict()

    def update(self, batches: Sequence[Batch], weight: float, *, progress: float, step: int) -> None:
        """One optimiser step per turn. Every rank must call it; one whose learner has a fault does nothing.

        A loss or a gradient that is not finite on any rank becomes the `fault` on all of them, and nothing of that turn
        reaches the weights.

        Args:
            batches: This rank's, at least one. Every turn of a step sees the same.
            weight: Of each tile; 0 where the batches only take part in the exchange of gradients.
            progress: Share of the run's tiles that are done.
            step: Steps that were made before.
        """
        if self.fault is not None:
            return
        torch.manual_seed(hash((self.config.seed, step, self.context.rank)) & 0x7FFF_FFFF)
        for turn in self.method.turns:
            schedule = self.method.own_optimisers.get(turn, self.config.optim)
            set_lr([self.optimisers[turn]], schedule.lr_at(progress))
            self.optimisers[turn].zero_grad(set_to_none=True)
            terms = []
            for index, batch in enumerate(batches):
                is_last = index == len(batches) - 1  # once per rank and turn, however many sizes it holds
                with contextlib.nullcontext() if is_last or self.context.world_size == 1 else self._model.no_sync():
                    terms.append(self._backward(batch, turn, weight))
            if not self._descend(turn, terms, step):
                break
        for batch in batches:
            batch.kept.clear()
        if self.fault is not None:
            for optimiser in self.optimisers.values():
                optimiser.zero_grad(set_to_none=True)
            self.window = LogWindow()  # what is not finite is in its sums
        elif self.average:
            self.average.update(self.method, step)

    @contextlib.contextmanager
    def as_used(self) -> Iterator[nn.Module]:
        """The student in evaluation mode with the weights of `averaged_state`, alike on all ranks; then as it was."""
        student, trained = self.method.part(STUDENT), None
        if self.average:
            trained = {name: tensor.clone() for name, tensor in self.method.state_dict().items()}
            self.method.load_state_dict(self.average.tensors)
        self.context.share(self.method.buffers())  # each rank's batch norm has seen its own tiles; rank 0's are kept
        student.eval()
        try:
            yield student
        finally:
            student.train()
            if trained is not None:
                self.method.load_state_dict(trained)

    def log(self, about: dict[str, Any], pace: dict[str, Any]) -> dict[str, Any]:
        """A line of its metrics: means over the ranks since the last one. Every rank must call it. Returns the line.

        Args:
            about: Where the run is.
            pace: How fast it is.
        """
        figures = {**about, "lr": get_lr(self.optimisers[STUDENT]), **self.window.figures(self.context), **pace}
        if self.recorder:
            self.recorder.log(figures)
        return figures

    def state(self) -> dict[str, Any]:
        """For a checkpoint: tensors and plain values."""
        return {
            "method": self.method.state_dict(),
            "optimisers": {turn: optimiser.state_dict() for turn, optimiser in self.optimisers.items()},
            "average": self.average.tensors if self.average else None,
            **({"fault": asdict(self.fault)} if self.fault else {}),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """From a checkpoint, but for the weights, which `Checkpoints.load_into` has put into the method."""
        for turn, optimiser in self.optimisers.items():
            optimiser.load_state_dict(state["optimisers"][turn])
        if self.average:
            self.average.tensors = state["average"]
        self.fault = Fault(**state["fault"]) if "fault" in state else None

    def _make_optimiser(self, turn: str) -> torch.optim.Optimizer:
        part, own = self.method.part(turn), self.method.own_optimisers.get(turn)
        return make_optimiser(part, self.config.optim) if own is None else make_own_optimiser(part, own)

    def _backward(self, batch: Batch, turn: str, weight: float) -> dict[str, Tensor]:
        """Gradients of one part, added up; a batch of weight 0 counts for nothing else."""
        with torch.autocast(self.context.device.type, torch.bfloat16, enabled=self._precision == BFLOAT16):
            terms = shared(self._model(batch, turn), self.method.teacher_of_term, batch)
        loss = self.method.total(terms)
        (loss.sum() * weight).backward()
        if not weight:
            return {}
        terms = {name: term.detach() for name, term in terms.items()}
        if turn == STUDENT:
            terms["loss"] = loss.detach()
        self.window.add_terms(terms, len(batch) if turn == STUDENT else 0)  # a tile counts once, however many its turns
        return terms

    def _descend(self, turn: str, terms: list[dict[str, Tensor]], step: int) -> bool:
        """The optimiser's step, where all is finite on all ranks; else there is a fault. Returns whether it was made."""
        weights = [p for p in self.method.part(turn).parameters() if p.grad is not None]
        clip = None if turn in self.method.own_optimisers else self.config.optim.clip_grad_norm
        norm = torch.nn.utils.clip_grad_norm_(weights, clip if clip is not None else float("inf"))
        broken = {name for part in terms for name, term in part.items() if not torch.isfinite(term).all()}
        # Asking waits for the device once a step: cheap beside a teacher, and nothing of a broken step reaches the weights.
        is_broken = bool(broken) or not torch.isfinite(norm)
        if self.context.sum_over_ranks([is_broken])[0]:
            self.fault = Fault(step=step + 1, turn=turn, what=self._what_broke(broken))
            return False
        if turn == STUDENT:
            self.window.grad_norm = float(norm)
        self.optimisers[turn].step()
        return True

    def _what_broke(self, broken: set[str]) -> str:
        terms = sorted({name for names in self.context.gather(broken) for name in names} - {"loss"})
        return f"loss term {', '.join(terms)} is" if terms else "every loss term is finite but the gradient is"
