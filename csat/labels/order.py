"""Which labelled sample stands at which position of a plan: every one once, classes equally often, or rare ones repeated."""

from collections.abc import Sequence

import numpy as np

from csat.runs.plan import Plan

ORDER_STREAM = 3  # which of the plan's random streams orders an epoch's samples; the plan itself uses 1 and 2


class SampleOrder:
    """Which sample stands at which position.

    "natural": every sample once an epoch. "balanced": as many positions an epoch, dealt out evenly (to within one) to the
    classes, and those of a class to its samples. "oversampled": every sample as often as `visits_an_epoch` says.

    Args:
        plan: As many positions an epoch as `visits_an_epoch` sums up to.
        labels: Class of each sample; not used by "natural".
    """

    def __init__(self, plan: Plan, *, sampling: str, labels: Sequence[int | None]):
        self._visits = visits_an_epoch(labels, sampling)
        assert plan.num_tiles == self._visits.sum(), f"{plan.num_tiles} positions an epoch for {self._visits.sum()} visits"
        self.plan, self.sampling = plan, sampling
        classes = sorted(set(labels)) if sampling == "balanced" else []
        self._by_class = [np.flatnonzero(np.asarray(labels) == label) for label in classes]

    def epoch(self, epoch: int) -> np.ndarray:
        """int64 `[num_tiles]`: sample at each position of the epoch."""
        size = self.plan.num_tiles
        rng = np.random.default_rng((self.plan.seed, ORDER_STREAM, epoch))
        if self.sampling != "balanced":
            return rng.permutation(np.repeat(np.arange(len(self._visits)), self._visits))
        most = -(-size // len(self._by_class))
        shares = [_cycle(self._by_class[index], most, rng) for index in rng.permutation(len(self._by_class))]
        return rng.permutation(np.stack(shares, axis=1).ravel()[:size])


def visits_an_epoch(labels: Sequence[int | None], sampling: str) -> np.ndarray:
    """int64 `[samples]`: how often each sample comes in an epoch ("balanced": on average over the samples, which is once).

    "oversampled" takes a sample round(size of the largest class / size of its class) times, so that an epoch grows by what the
    rare classes lack (del Amor et al. 2024).
    """
    if sampling != "oversampled":
        return np.ones(len(labels), np.int64)
    classes, of_sample, counts = np.unique(np.asarray(labels), return_inverse=True, return_counts=True)
    return np.rint(counts.max() / counts).astype(np.int64)[of_sample]


def _cycle(members: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """`size` members, each as often as any other to within one, in random order."""
    rounds = [rng.permutation(members) for _ in range(-(-size // len(members)))]
    return np.concatenate(rounds)[:size]
