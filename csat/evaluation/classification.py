"""Metrics of a classification, from probabilities: points by torchmetrics, intervals by a vectorised bootstrap over groups.

| metric | protocol |
|---|---|
| `accuracy` | share of samples whose most likely class is the labelled one |
| `balanced_accuracy` | mean over classes of the recall; a class without samples is left out |
| `macro_f1` | mean over classes of F1; a class that is neither labelled nor predicted is left out |
| `auroc` | two classes: of the second one; more: mean over classes of one against the rest. Ties count half |
| `kappa` | Cohen's, with quadratic weights on the distance of class indices: for ordered classes (grades) |
| `ece` | expected calibration error of the most likely class, 15 equal bins (Guo et al. 2017); lower is better |
"""

import numpy as np
import torch
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_auroc,
    multiclass_calibration_error,
    multiclass_cohen_kappa,
    multiclass_f1_score,
)

from csat.evaluation.bootstrap import nan_mean, ratio, sum_by_group

METRICS = ("accuracy", "balanced_accuracy", "macro_f1", "auroc", "kappa", "ece")
LOWER_IS_BETTER = ("ece",)
BINS = 15


class ClassificationTally:
    """One set of predictions, ready to be weighted by group: see `bootstrap.Tally`.

    Args:
        probs: float `[N, K]`, summing to 1.
        labels: int `[N]`.
        group_of: int `[N]`.
        num_groups: That may be drawn.
    """

    def __init__(self, probs: np.ndarray, labels: np.ndarray, group_of: np.ndarray, num_groups: int):
        self.num_samples, self.num_classes = probs.shape
        self.probs, self.labels, self.group_of = probs.astype(np.float64), labels.astype(np.int64), group_of
        said = self.probs.argmax(1)
        confusion = np.zeros((self.num_samples, self.num_classes, self.num_classes))
        confusion[np.arange(self.num_samples), self.labels, said] = 1
        self._confusion = sum_by_group(confusion, group_of, num_groups)
        confidence = self.probs.max(1)
        bins = np.zeros((self.num_samples, BINS, 2))
        index = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
        bins[np.arange(self.num_samples), index] = np.stack([confidence, said == self.labels], 1)
        self._bins = sum_by_group(bins, group_of, num_groups)
        ranked = range(1, 2) if self.num_classes == 2 else range(self.num_classes)
        self._ranked = [_Ranks(self.probs[:, each], self.labels == each, group_of) for each in ranked]

    def point(self) -> dict[str, float]:
        """By torchmetrics; NaN where a metric is not defined."""
        probs, labels = torch.from_numpy(self.probs), torch.from_numpy(self.labels)
        options = {"num_classes": self.num_classes}
        present = np.unique(self.labels)
        recalls = multiclass_accuracy(probs, labels, average=None, **options).numpy()
        f1 = multiclass_f1_score(probs, labels, average=None, **options).numpy()
        seen = np.union1d(present, self.probs.argmax(1))
        auroc = multiclass_auroc(probs, labels, average=None, **options).numpy()
        auroc = auroc[1:] if self.num_classes == 2 else auroc
        is_ranked = np.isin(np.arange(self.num_classes), present)[-len(auroc) :] & (len(present) > 1)
        return {
            "accuracy": float(multiclass_accuracy(probs, labels, average="micro", **options)),
            "balanced_accuracy": float(recalls[present].mean()),
            "macro_f1": float(f1[seen].mean()),
            "auroc": float(auroc[is_ranked].mean()) if is_ranked.any() else float("nan"),
            "kappa": float(multiclass_cohen_kappa(probs, labels, weights="quadratic", **options)),
            "ece": float(multiclass_calibration_error(probs, labels, n_bins=BINS, **options)),
        }

    def resampled(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Metric → `[B]` for weights `[B, num_groups]`."""
        confusion = np.tensordot(weights, self._confusion, 1)  # [B, K, K]
        true, said, hits = confusion.sum(2), confusion.sum(1), np.diagonal(confusion, axis1=1, axis2=2)
        total = confusion.sum((1, 2))
        bins = np.tensordot(weights, self._bins, 1)
        by_sample = weights[:, self.group_of]
        return {
            "accuracy": ratio(hits.sum(1), total),
            "balanced_accuracy": nan_mean(ratio(hits, true), axis=1),
            "macro_f1": nan_mean(ratio(2 * hits, true + said), axis=1),
            "auroc": nan_mean(np.stack([ranks.auroc(by_sample) for ranks in self._ranked]), axis=0),
            "kappa": quadratic_kappa(confusion),
            "ece": ratio(np.abs(bins[..., 0] - bins[..., 1]).sum(1), total),
        }

    def confusion(self) -> np.ndarray:
        """int64 `[K, K]`: samples by labelled class (row) and most likely class (column)."""
        return self._confusion.sum(0).astype(np.int64)


class _Ranks:
    """One class against the rest, sorted by score once: a weighted AUROC is then two cumulative sums."""

    def __init__(self, scores: np.ndarray, is_positive: np.ndarray, group_of: np.ndarray):
        self._order = np.argsort(scores, kind="stable")
        self._is_positive = is_positive[self._order]
        ranked = scores[self._order]
        self._starts = np.flatnonzero(np.concatenate([[True], ranked[1:] != ranked[:-1]]))  # of runs of equal scores

    def auroc(self, weights: np.ndarray) -> np.ndarray:
        """`[B]` for weights `[B, N]`: P(positive above negative) + P(tie) / 2; NaN where one side weighs nothing."""
        weights = weights[:, self._order]
        positive, negative = (
            np.add.reduceat(weights * chosen, self._starts, axis=1) for chosen in (self._is_positive, ~self._is_positive)
        )
        below = np.cumsum(negative, axis=1) - negative
        won = (positive * (below + negative / 2)).sum(1)
        return ratio(won, positive.sum(1) * negative.sum(1))


def quadratic_kappa(confusion: np.ndarray) -> np.ndarray:
    """Cohen's kappa with weights `(i - j)^2` of `[..., K, K]`; NaN where chance alone makes no error."""
    size = confusion.shape[-1]
    cost = (np.arange(size)[:, None] - np.arange(size)[None]) ** 2
    total = confusion.sum((-2, -1))
    expected = ratio(confusion.sum(-1)[..., :, None] * confusion.sum(-2)[..., None, :], total[..., None, None])
    return 1 - ratio((cost * confusion).sum((-2, -1)), (cost * expected).sum((-2, -1)))
