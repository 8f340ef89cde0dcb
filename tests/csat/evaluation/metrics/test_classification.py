import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.classification import multiclass_calibration_error

from csat.evaluation.metrics.bootstrap import draw_weights, index_groups
from csat.evaluation.metrics.classification import BINS, ClassificationTally, calibration_error, quadratic_kappa
from tests.support.made_up import classified


def tally(probs, labels):
    return ClassificationTally(np.asarray(probs, np.float32), np.asarray(labels), np.zeros(len(labels), int), 1)


def one_hot(said, num_classes):
    return np.eye(num_classes)[np.asarray(said)]


def test_by_hand():
    # Class 0: 3 of 4 right; class 1: 1 of 2; class 2 is said once and never labelled.
    figures = tally(one_hot([0, 0, 0, 1, 1, 2], 3), [0, 0, 0, 0, 1, 1]).point()
    assert figures["accuracy"] == pytest.approx(4 / 6)
    assert figures["balanced_accuracy"] == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert figures["macro_f1"] == pytest.approx((6 / 7 + 1 / 2 + 0) / 3)
    # Squared distances: observed 1 + 1 = 2; by chance (rows 4, 2, 0; columns 3, 2, 1): (4*2*1 + 4*1*4 + 2*3*1 + 2*1*1) / 6.
    assert figures["kappa"] == pytest.approx(1 - 2 / (32 / 6))
    assert figures["ece"] == pytest.approx(2 / 6)  # all of it in the last bin: says 1, is right 4 times of 6


def test_auroc_by_hand_with_ties():
    # Positives 0.9, 0.5; negatives 0.5, 0.1: won 1 + 1 + 1/2 + 1 of 4.
    probs = np.array([0.9, 0.5, 0.5, 0.1])
    figures = tally(np.stack([1 - probs, probs], 1), [1, 1, 0, 0]).point()
    assert figures["auroc"] == pytest.approx(3.5 / 4)


def test_perfect_and_worst():
    perfect = tally(one_hot([0, 1, 2, 1], 3), [0, 1, 2, 1]).point()
    assert perfect == pytest.approx(dict(accuracy=1, balanced_accuracy=1, macro_f1=1, auroc=1, kappa=1, ece=0))
    worst = tally(one_hot([1, 0], 2), [0, 1]).point()
    assert worst == pytest.approx(dict(accuracy=0, balanced_accuracy=0, macro_f1=0, auroc=0, kappa=-1, ece=1))


def test_a_class_that_is_absent_is_left_out():
    figures = tally(one_hot([0, 0, 1], 5), [0, 0, 1]).point()
    assert figures["balanced_accuracy"] == figures["macro_f1"] == figures["auroc"] == 1
    one_class = tally([[0.7, 0.3], [0.4, 0.6]], [0, 0]).point()
    assert np.isnan(one_class["auroc"])
    assert one_class["balanced_accuracy"] == 0.5


def test_kappa_is_not_defined_where_there_is_nothing_to_agree_on():
    assert np.isnan(tally(one_hot([1, 1], 3), [1, 1]).point()["kappa"])
    assert np.isnan(quadratic_kappa(np.diag([0.0, 3.0, 0.0])))


def test_probabilities_a_last_bit_above_1_are_no_logits():
    probs = np.array([[1.0000001, 0.0], [0.2, 0.8], [0.6, 0.4], [0.1, 0.9]], np.float32)
    assert tally(probs, [0, 1, 1, 0]).point() == pytest.approx(tally(probs.clip(0, 1), [0, 1, 1, 0]).point())


def test_calibration_is_torchmetrics_away_from_the_edges_of_bins():
    said = classified(3, num_samples=400)
    ours = tally(said.arrays["probs"], said.arrays["label"]).point()["ece"]
    theirs = multiclass_calibration_error(
        torch.from_numpy(said.arrays["probs"]), torch.from_numpy(said.arrays["label"]), num_classes=3, n_bins=BINS
    )
    assert ours == pytest.approx(float(theirs), abs=1e-6)


def test_a_confidence_of_1_is_in_the_last_bin():
    # 0.95 and right, 1 and wrong: one bin, says 1.95 of 2, is right once.
    bins = tally([[0.95, 0.05], [1.0, 0.0]], [0, 1]).bins()
    assert bins[-1].tolist() == pytest.approx([2, 1.95, 1])
    assert calibration_error(bins) == pytest.approx(0.95 / 2)


@pytest.mark.parametrize("classes", [("a", "b"), ("a", "b", "c", "d")])
def test_resampling_is_the_metric_of_the_repeated_samples(classes):
    """The vectorised bootstrap against torchmetrics on samples that were really repeated."""
    said = classified(1, num_samples=40, per_group=4, classes=classes)
    probs = said.arrays["probs"].round(2)  # many ties, as a saturated network has
    probs[:, 0] = 1 - probs[:, 1:].sum(1)
    labels = said.arrays["label"]
    group_of, num_groups = index_groups(said.groups)
    weights = np.concatenate(list(draw_weights(num_groups, 60, 0, rows_at_once=60)))
    found = ClassificationTally(probs, labels, group_of, num_groups).resampled(weights)
    for row, weight in enumerate(weights):
        repeated = np.repeat(np.arange(40), weight[group_of].astype(int))
        expected = tally(probs[repeated], labels[repeated]).point()
        assert {name: values[row] for name, values in found.items()} == pytest.approx(expected, abs=1e-5, nan_ok=True)


def test_weights_of_one_give_the_point():
    said = classified(2)
    group_of, num_groups = index_groups(said.groups)
    judged = ClassificationTally(said.arrays["probs"], said.arrays["label"], group_of, num_groups)
    found = {name: values[0] for name, values in judged.resampled(np.ones((1, num_groups))).items()}
    assert found == pytest.approx(judged.point(), abs=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10), st.booleans()), min_size=2, max_size=30))
def test_auroc_is_the_share_of_pairs_in_order(rows):
    scores, labels = np.array([score / 10 for score, _ in rows]), np.array([int(positive) for _, positive in rows])
    judged = tally(np.stack([1 - scores, scores], 1), labels)
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[labels == 1] for b in scores[labels == 0]]
    expected = np.mean(pairs) if pairs else np.nan
    assert judged.resampled(np.ones((1, 1)))["auroc"][0] == pytest.approx(expected, nan_ok=True)
    assert judged.point()["auroc"] == pytest.approx(expected, abs=1e-6, nan_ok=True)


def test_confusion_counts_samples():
    assert tally(one_hot([0, 1, 1], 2), [0, 0, 1]).confusion().tolist() == [[1, 1], [0, 1]]
