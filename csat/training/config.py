"""The settings of a training, whatever the method and the model."""

from dataclasses import dataclass, field

from csat.errors import ConfigError
from csat.precision import check_precision
from csat.settings import Free, Often
from csat.training.optim import OptimConfig


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a run trains."""

    epochs: Often[int] = 1  # visits of every tile
    batch_size: Often[int] = 64  # tiles per optimiser step, over all workers
    accumulate: int = 1  # parts that a worker's share of a step is computed in
    precision: str = "best"  # of the student's forward and backward: best (for the hardware), float32 or bfloat16 (autocast)
    compile: Free[bool] = False  # torch.compile the student
    seed: int = 0  # of weights, order, views and augmentation
    log_every_steps: Free[int] = 10  # steps between lines of metrics.jsonl
    checkpoint_every_s: Free[float | None] = 300.0  # seconds between checkpoints; None: not by time
    checkpoint_every_steps: Free[int | None] = None  # steps between checkpoints; None: not by step
    keep_checkpoints: Free[int] = 2  # committed checkpoints kept
    optim: OptimConfig = field(default_factory=OptimConfig)  # optimiser and schedule

    def __post_init__(self):
        check_precision("train.precision", self.precision)
        for name in ("epochs", "batch_size", "accumulate", "log_every_steps", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise ConfigError(f"train.{name} must be at least 1, not {getattr(self, name)}")

    def rows_per_worker(self, num_workers: int) -> int:
        """Tiles that one worker takes at once.

        Raises:
            ConfigError: the batch cannot be divided; names the nearest batch size that can.
        """
        parts = num_workers * self.accumulate
        if self.batch_size % parts:
            nearest = max(parts, round(self.batch_size / parts) * parts)
            raise ConfigError(
                f"train.batch_size {self.batch_size} does not divide into {num_workers} workers x {self.accumulate} "
                f"accumulated parts: use {nearest}"
            )
        return self.batch_size // parts
