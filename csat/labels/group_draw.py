"""Draws whole groups of samples: about the share that was asked for, of each class, reproducibly.

The groups are put in an order: by a hash of their names, but so that every class comes early and none runs ahead of the
others. The first of the order, up to the size that was asked for, are drawn. Where groups are few and of unequal size, most
orders meet that size badly: so several are tried, and the first that fits well is taken, or else the one that fits best.
"""

from collections.abc import Sequence

import numpy as np

from csat.labels.datasets.contract import Sample
from csat.views.draws import hash_text

MOST_TRIES = 200  # orders that are tried
MOST_TRIED_GROUPS = 20_000  # in all tries together: of many groups any order fits
GOOD_MISFIT = 0.2  # with which an order is good enough; see `GroupDraw._misfit`


class GroupDraw:
    """The groups of some samples. The draw follows from (seed, what, names of the groups, their samples' classes) alone.

    Args:
        samples: At least one; all have a label, or none has.
        seed: Of the draw.
        what: Makes draws for different ends independent.
        num_later: How many more splits will be made of what is left: each class keeps as many groups for them, if it can.
        fractions: Shares of the samples that one order has to serve.
    """

    def __init__(self, samples: Sequence[Sample], seed: int, what: str, *, fractions: Sequence[float], num_later: int = 0):
        self.samples, self.num_later = samples, num_later
        self.names = sorted({sample.group for sample in samples})
        row = {name: index for index, name in enumerate(self.names)}
        column = {label: index for index, label in enumerate(sorted({sample.label for sample in samples}, key=str))}
        self.counts = np.zeros((len(self.names), len(column)), np.int64)  # samples of each group and class
        np.add.at(self.counts, ([row[sample.group] for sample in samples], [column[sample.label] for sample in samples]), 1)
        self._groups_of_class = (self.counts > 0).sum(0)
        self.order, self.num_first = self._best_order(seed, what, fractions)

    def draw(self, fraction: float) -> tuple[list[Sample], list[Sample]]:
        """Whole groups of about that share of the samples, and the rest; both in the order that the samples came in."""
        names = {self.names[row] for row in self.order[: self._cut(self.order, self.num_first, fraction)]}
        drawn = [sample for sample in self.samples if sample.group in names]
        return drawn, [sample for sample in self.samples if sample.group not in names]

    def _best_order(self, seed: int, what: str, fractions: Sequence[float]) -> tuple[np.ndarray, int]:
        best, least = None, np.inf
        for attempt in range(max(1, min(MOST_TRIES, MOST_TRIED_GROUPS // len(self.names)))):
            keys = [hash_text(f"{what}/{attempt}/{name}", seed=seed) for name in self.names]
            order, num_first = self._balanced(np.argsort(keys, kind="stable"))
            misfit = max(self._misfit(order, num_first, fraction) for fraction in fractions)
            if misfit < least:
                best, least = (order, num_first), misfit
            if least <= GOOD_MISFIT:
                break
        return best

    def _balanced(self, shuffled: np.ndarray) -> tuple[np.ndarray, int]:
        """The groups so that no class is behind, and how many of them it takes to have every class.

        First a group of each class, the rarest class before the others; then by how much of its class stands before a group.
        A class with too few groups for the later splits is not put first: they come before this one.
        """
        first: list[int] = []
        for label in np.argsort(self._groups_of_class, kind="stable"):
            if self._groups_of_class[label] > self.num_later and not self.counts[first, label].any():
                first.append(int(shuffled[np.argmax(self.counts[shuffled, label] > 0)]))
        rest = shuffled[~np.isin(shuffled, first)]
        main = self.counts[rest].argmax(1)  # a group stands for the class that most of its samples have
        before = np.zeros(len(rest))
        for label, total in enumerate(self.counts.sum(0)):
            sizes = self.counts[rest[main == label], label]
            before[main == label] = (self.counts[first, label].sum() + sizes.cumsum() - sizes / 2) / total
        return np.concatenate([np.array(first, np.int64), rest[np.argsort(before, kind="stable")]]), len(first)

    def _cut(self, order: np.ndarray, num_first: int, fraction: float) -> int:
        """How many groups of the order come nearest to that share of the samples, and have every class."""
        reached = np.concatenate([[0], self.counts[order].sum(1).cumsum()])
        return max(num_first, int(np.argmin(np.abs(reached - fraction * reached[-1]))))

    def _misfit(self, order: np.ndarray, num_first: int, fraction: float) -> float:
        """By how much the drawn share of a class, or of all samples, is off, relative to what was asked for; 1 more for every
        class that is not drawn, or not left for all later splits. The share of the groups counts half: one large group makes a
        poor split.
        """
        drawn = self.counts[order[: self._cut(order, num_first, fraction)]]
        groups_drawn = (drawn > 0).sum(0)
        num_lacking = (groups_drawn == 0).sum() + (self._groups_of_class - groups_drawn < self.num_later).sum()
        of_samples = np.append(drawn.sum(0) / self.counts.sum(0), drawn.sum() / self.counts.sum())
        of_groups = len(drawn) / len(self.names)
        return float(num_lacking + max(np.abs(of_samples / fraction - 1).max(), 0.5 * abs(of_groups / fraction - 1)))
