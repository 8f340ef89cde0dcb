"""95% intervals by a bootstrap over groups: what is drawn is the patient, slide or source image, never a tile of it.

Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), section 13.3: the percentile interval. Whole groups are drawn
with replacement, as many as there are, each with all its samples. A resample is a row of *weights*: how often each group was
drawn. Every metric here is a function of sums over samples (or of weighted ranks), so thousands of resamples are a few matrix
products.

A resample in which a metric is not defined (a class without samples has no recall) says nothing about it: it is NaN there,
skipped in the mean over classes, and skipped in the interval where it concerns the metric itself.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np

NUM_BOOTSTRAPS = 10_000
INTERVAL = (2.5, 97.5)  # percentiles
FEW_GROUPS = 20  # below which a percentile interval tends to be too narrow
NUMBERS_AT_ONCE = 4_000_000  # weights by sample that are in memory at a time


class Tally(Protocol):
    """One set of predictions, ready to be weighted by group."""

    num_samples: int

    def point(self) -> dict[str, float]:
        """Metric → value over all samples; NaN where it is not defined."""

    def resampled(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Metric → float64 `[B]` for weights `[B, num_groups]`."""


class SumTally:
    """A tally of metrics that follow from sums over samples.

    Args:
        statistics: Name → `[N, …]`, one row per sample.
        figures: From sums by name, `[…]` or `[B, …]` alike, to metrics `[]` or `[B]`.
        group_of: int `[N]`, group of each sample.
        num_groups: That may be drawn; some may have no sample here.
    """

    def __init__(
        self,
        statistics: Mapping[str, np.ndarray],
        figures: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]],
        group_of: np.ndarray,
        num_groups: int,
    ):
        self.num_samples = len(group_of)
        self._figures = figures
        self._sums = {name: sum_by_group(values, group_of, num_groups) for name, values in statistics.items()}

    def point(self) -> dict[str, float]:
        figures = self._figures({name: sums.sum(0) for name, sums in self._sums.items()})
        return {name: float(value) for name, value in figures.items()}

    def resampled(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        return self._figures({name: np.tensordot(weights, sums, 1) for name, sums in self._sums.items()})


def index_groups(groups: Sequence[str]) -> tuple[np.ndarray, int]:
    """What is drawn: int `[N]`, the unit of each sample, and the number of units.

    Units are the groups in alphabetical order; where there is one group only, its samples (the interval is then too narrow).
    """
    names, group_of = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    return (np.arange(len(groups)), len(groups)) if len(names) < 2 else (group_of, len(names))


def sum_by_group(values: np.ndarray, group_of: np.ndarray, num_groups: int) -> np.ndarray:
    """float64 `[num_groups, …]` from `[N, …]`."""
    sums = np.zeros((num_groups, *values.shape[1:]))
    np.add.at(sums, group_of, values)
    return sums


def draw_weights(num_groups: int, num_bootstraps: int, seed: int, *, rows_at_once: int) -> Iterator[np.ndarray]:
    """Resamples: float64 `[<= rows_at_once, num_groups]`, how often each group was drawn. Each row sums to `num_groups`.

    The same draws for the same `num_groups` and `seed`, however many come at once.
    """
    rng = np.random.default_rng(seed)
    for start in range(0, num_bootstraps, rows_at_once):
        rows = min(rows_at_once, num_bootstraps - start)
        drawn = rng.integers(num_groups, size=(rows, num_groups)) + num_groups * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * num_groups).reshape(rows, num_groups).astype(np.float64)


def resample(
    tallies: Sequence[Tally], num_groups: int, *, num_bootstraps: int = NUM_BOOTSTRAPS, seed: int = 0
) -> dict[str, np.ndarray]:
    """Metrics in every resample, each the mean over the tallies: all of them see the same draws.

    Returns:
        Metric → float64 `[num_bootstraps]`, NaN where no tally defines it.
    """
    largest = max(num_groups, *(tally.num_samples for tally in tallies))
    chunks: dict[str, list[np.ndarray]] = {}
    for weights in draw_weights(num_groups, num_bootstraps, seed, rows_at_once=max(1, NUMBERS_AT_ONCE // largest)):
        found = [tally.resampled(weights) for tally in tallies]
        for name in found[0]:
            chunks.setdefault(name, []).append(nan_mean(np.stack([each[name] for each in found]), axis=0))
    return {name: np.concatenate(parts) for name, parts in chunks.items()}


def interval(samples: np.ndarray) -> tuple[float, float] | None:
    """Low and high of a metric's resamples; None where it is defined in none of them."""
    defined = samples[~np.isnan(samples)]
    return tuple(np.percentile(defined, INTERVAL).tolist()) if len(defined) else None


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """`numerator / denominator`, NaN where the denominator is 0."""
    numerator, denominator = np.broadcast_arrays(np.asarray(numerator, np.float64), np.asarray(denominator, np.float64))
    return np.divide(numerator, denominator, out=np.full(numerator.shape, np.nan), where=denominator != 0)


def nan_mean(values: np.ndarray, axis: int) -> np.ndarray:
    """Mean of what is defined; NaN where nothing is."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Mean of empty slice", RuntimeWarning)
        return np.nanmean(values, axis=axis)
