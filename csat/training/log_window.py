"""What happened since the last log line: sums on each rank, means over all ranks when a line is written."""

from typing import Any

from torch import Tensor

from csat.training.context import TrainContext


class LogWindow:
    """What one student learned since the last log line."""

    def __init__(self):
        self.grad_norm = 0.0
        self._reset()

    def add_terms(self, terms: dict[str, Tensor], num_tiles: int) -> None:
        for name, value in terms.items():
            self._sums[name] = self._sums.get(name, 0.0) + value.float().sum()
        self._tiles += num_tiles

    def figures(self, context: TrainContext) -> dict[str, Any]:
        """Means over all ranks; {} where no step was made. Resets the window. Every rank must call it."""
        names = sorted({name for names in context.gather(sorted(self._sums)) for name in names})
        values = [float(self._sums.get(name, 0.0)) for name in names]
        tiles, *sums = context.sum_over_ranks([self._tiles, *values])
        self._reset()
        if not tiles:
            return {}
        terms = {name if name == "loss" else f"loss/{name}": value / tiles for name, value in zip(names, sums, strict=True)}
        return {**terms, "grad_norm": self.grad_norm}

    def _reset(self) -> None:
        self._sums: dict[str, Any] = {}
        self._tiles = 0


class Pace:
    """How fast the loop is since the last log line, and its rows since the accounts were settled."""

    def __init__(self):
        self.rows = 0  # of all ranks, since the accounts were settled
        self._reset()

    def add_time(self, waited_s: float, total_s: float) -> None:
        self._waited_s += waited_s
        self._total_s += total_s

    def add_tiles(self, num_tiles: int) -> None:
        """Tiles that this rank trained."""
        self._tiles += num_tiles

    def figures(self, context: TrainContext) -> dict[str, Any]:
        """Of all ranks; {} where no tile was trained. Resets the window. Every rank must call it."""
        tiles, waited_s, total_s = context.sum_over_ranks([self._tiles, self._waited_s, self._total_s])
        self._reset()
        if not tiles:
            return {}
        wall_s = total_s / context.world_size
        return {
            "tiles_per_s": tiles / wall_s if wall_s else 0.0,
            "wait_share": waited_s / total_s if total_s else 0.0,
        }

    def _reset(self) -> None:
        self._tiles = 0
        self._waited_s = self._total_s = 0.0
