"""Measuring while training: when, which weights were the best, when to stop.

Its state is part of a checkpoint, the best weights included. Beside the weights, AdamW's two moments and the averaged weights
that is one more copy: a checkpoint grows by a quarter (by a third where no average is kept).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from csat.errors import ConfigError
from csat.training.context import TrainContext

ROUNDING = 1e-9  # of an interval: 3 * 0.1 epochs are over when 0.3 are done
# The model in evaluation mode and the context → figures, the same on every rank; "metric" counts, and higher is better.
Measure = Callable[[nn.Module, TrainContext], dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """How often a run is measured, and how long it may go without getting better."""

    every_epochs: float = 1.0  # epochs between validations
    patience: int | None = None  # validations without a better metric after which the run stops; None: it never does
    min_delta: float = 0.0  # patience only counts what is better by more than this; the best weights are kept in any case
    keep: str = "best"  # which weights are judged and exported: best; last, where validation images are unlike those to come

    def __post_init__(self):
        if not self.every_epochs > 0:
            raise ConfigError(f"validation.every_epochs must be above 0, not {self.every_epochs}")
        if self.patience is not None and self.patience < 1:
            raise ConfigError(f"validation.patience is a number of validations, at least 1, or null, not {self.patience}")
        if not 0 <= self.min_delta < math.inf:
            raise ConfigError(f"validation.min_delta must be 0 or more, not {self.min_delta}")
        if self.keep not in ("best", "last"):
            raise ConfigError(f"validation.keep is best or last, not {self.keep!r}")


class Validation:
    """The validations of one run, the same on every rank.

    Args:
        measure: See `Measure`.
        tiles_per_epoch: Of the plan.

    Attributes:
        best: Highest metric so far, or the last one where those weights are kept; minus infinity before the first.
        best_step: Steps made at that time.
        best_state: The method's weights at that time, on the CPU; None before.
        num_worse: Validations since one was better by more than `min_delta`.
        last_tiles: Tiles done at the last validation.
    """

    STATE = ("best", "best_step", "best_state", "level", "num_worse", "last_tiles")

    def __init__(self, config: ValidationConfig, measure: Measure, *, tiles_per_epoch: int):
        self.config, self._measure, self.tiles_per_epoch = config, measure, tiles_per_epoch
        self.best, self.best_step, self.best_state = -math.inf, 0, None
        self.level, self.num_worse = -math.inf, 0
        self.last_tiles = 0

    @property
    def is_stopped(self) -> bool:
        """Whether patience has run out."""
        return self.config.patience is not None and self.num_worse >= self.config.patience

    def is_due(self, tiles_done: int, *, is_end: bool = False) -> bool:
        """Whether to measure now: an interval is over, or at the end, unless these very weights were measured."""
        if is_end:
            return tiles_done > self.last_tiles
        now, last = (
            tiles / (self.config.every_epochs * self.tiles_per_epoch) + ROUNDING for tiles in (tiles_done, self.last_tiles)
        )
        return math.floor(now) > math.floor(last)

    def measure(
        self, model: nn.Module, state: dict[str, Tensor], context: TrainContext, *, done: int, step: int
    ) -> dict[str, Any]:
        """Measure, remember the weights to keep, count the patience down. Every rank must call it.

        Args:
            model: The student, in evaluation mode, with the weights of `state`.
            state: The method's weights.
            done: Tiles done by all ranks.
            step: Of the run.

        Returns:
            The figures, with step, epoch, best_metric and best_step.
        """
        with torch.inference_mode():
            figures = self._measure(model, context)
        metric = float(figures["metric"])  # where that is not a number, it is not better
        if metric > self.best or self.config.keep == "last":
            self.best, self.best_step = metric, step
            self.best_state = {name: tensor.detach().cpu().clone() for name, tensor in state.items()}
        if metric > self.level + self.config.min_delta:
            self.level, self.num_worse = metric, 0
        else:
            self.num_worse += 1
        self.last_tiles = done
        epoch = round(done / self.tiles_per_epoch, 4)
        return {"step": step, "epoch": epoch, **figures, "best_metric": self.best, "best_step": self.best_step}

    def state(self) -> dict[str, Any]:
        """For a checkpoint: tensors and plain values."""
        return {name: getattr(self, name) for name in self.STATE}

    def restore(self, state: dict[str, Any]) -> None:
        """From a checkpoint."""
        for name in self.STATE:
            setattr(self, name, state[name])
        if self.best_state is not None:
            self.best_state = {name: tensor.cpu() for name, tensor in self.best_state.items()}
