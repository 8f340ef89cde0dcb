"""Metrics of a classification, from probabilities: points by torchmetrics, intervals by a vectorised bootstrap.

`ece` alone is not torchmetrics': its bins (1.9.0) give a confidence of exactly 1, which confident networks often reach in
float32, a sixteenth bin of its own.

torchmetrics takes seconds to load, torch with it, and is loaded by the first point that is computed.
"""

import warnings

import numpy as np

from csat.evaluation.metrics.bootstrap import nan_mean, ratio

# Metric → the protocol.
METRICS = {
    "accuracy": "share of samples whose most likely class is the labelled one",
    "balanced_accuracy": "mean over classes of the recall; a class without samples is left out",
    "macro_f1": "mean over classes of F1; a class that is neither labelled nor said is left out",
    "auroc": "two classes: of the second one; more: mean over classes of one against the rest. Ties count half",
    "kappa": "Cohen's, with quadratic weights on the distance of class indices: for ordered classes (grades)",
    "ece": "expected calibration error of the most likely class, 15 equal bins (Guo et al. 2017); lower is better",
}
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
        # Sums of float32 may exceed 1 by a last bit, and torchmetrics takes what lies outside [0, 1] for logits.
        self.probs, self.labels, self.group_of = probs.astype(np.float64).clip(0, 1), labels.astype(np.int64), group_of
        self.said = self.probs.argmax(1)
        self._confusion = np.zeros((num_groups, self.num_classes, self.num_classes))
        np.add.at(self._confusion, (group_of, self.labels, self.said), 1)
        confidence = self.probs.max(1)
        self._bins = np.zeros((num_groups, BINS, 3))
        columns = np.stack([np.ones(self.num_samples), confidence, self.said == self.labels], 1)
        np.add.at(self._bins, (group_of, bin_of(confidence)), columns)
        ranked = range(1, 2) if self.num_classes == 2 else range(self.num_classes)
        self._ranked = [_Ranks(self.probs[:, each], self.labels == each) for each in ranked]

    def point(self) -> dict[str, float]:
        """NaN where a metric is not defined."""
        import torch
        from torchmetrics.functional import classification as metrics

        probs, said, labels = (torch.from_numpy(each) for each in (self.probs, self.said, self.labels))
        options = {"num_classes": self.num_classes}
        present = np.unique(self.labels)
        recalls = metrics.multiclass_accuracy(said, labels, average=None, **options).numpy()
        f1 = metrics.multiclass_f1_score(said, labels, average=None, **options).numpy()
        seen = np.union1d(present, self.said)
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "No (positive|negative) samples", UserWarning
            )  # those classes are left out below
            auroc = metrics.multiclass_auroc(probs, labels, average=None, **options).numpy()
        auroc = auroc[1:] if self.num_classes == 2 else auroc
        is_ranked = np.isin(np.arange(self.num_classes), present)[-len(auroc) :] & (len(present) > 1)
        return {
            "accuracy": float(metrics.multiclass_accuracy(said, labels, average="micro", **options)),
            "balanced_accuracy": float(recalls[present].mean()),
            "macro_f1": float(f1[seen].mean()),
            "auroc": float(auroc[is_ranked].mean()) if is_ranked.any() else float("nan"),
            "kappa": float(metrics.multiclass_cohen_kappa(said, labels, weights="quadratic", **options)),
            "ece": float(calibration_error(self._bins.sum(0))),
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
            "ece": calibration_error(bins),
        }

    def confusion(self) -> np.ndarray:
        """int64 `[K, K]`: samples by labelled class (row) and most likely class (column)."""
        return self._confusion.sum(0).astype(np.int64)

    def bins(self) -> np.ndarray:
        """float64 `[BINS, 3]` by confidence: samples, sum of the confidences, samples whose most likely class is right."""
        return self._bins.sum(0)


class _Ranks:
    """One class against the rest, sorted by score once: a weighted AUROC is then two cumulative sums."""

    def __init__(self, scores: np.ndarray, is_positive: np.ndarray):
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


def bin_of(confidence: np.ndarray) -> np.ndarray:
    """Bin of each confidence, int `[N]`: the m-th of `BINS` holds ((m - 1) / BINS, m / BINS]."""
    return np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)


def count_confidence(confidence: np.ndarray, is_right: np.ndarray) -> np.ndarray:
    """float64 `[BINS, 3]` by confidence: answers, sum of their confidences, right ones. Both arguments `[N]`."""
    bins = bin_of(confidence)
    return np.stack([np.bincount(bins, weights, BINS) for weights in (None, confidence, is_right)], 1).astype(np.float64)


def calibration_error(bins: np.ndarray) -> np.ndarray:
    """Expected calibration error of `[..., BINS, 3]`: samples, sum of confidences, right ones. Guo et al. 2017, equation 3."""
    return ratio(np.abs(bins[..., 1] - bins[..., 2]).sum(-1), bins[..., 0].sum(-1))


def quadratic_kappa(confusion: np.ndarray) -> np.ndarray:
    """Cohen's kappa with weights `(i - j)^2` of `[..., K, K]`; NaN where chance alone makes no error."""
    size = confusion.shape[-1]
    cost = (np.arange(size)[:, None] - np.arange(size)[None]) ** 2
    total = confusion.sum((-2, -1))
    expected = ratio(confusion.sum(-1)[..., :, None] * confusion.sum(-2)[..., None, :], total[..., None, None])
    return 1 - ratio((cost * confusion).sum((-2, -1)), (cost * expected).sum((-2, -1)))
