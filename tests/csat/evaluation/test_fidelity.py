import numpy as np
import pytest
import torch

from csat.evaluation.fidelity import compare_masks, dice, measure, summarise
from csat.responses import Kind, ResponseSpec, Symmetry

NP = ResponseSpec(name="np", kind=Kind.PROBABILITY, channels=1)
HV = ResponseSpec(name="hv", kind=Kind.REGRESSION, channels=2, symmetry=Symmetry.HV)
TP = ResponseSpec(name="tp", kind=Kind.PROBABILITY, channels=3)
FEATURES = ResponseSpec(name="features", kind=Kind.FEATURES, channels=4, stride_px=None, symmetry=Symmetry.NONE)


def test_counts_by_hand():
    student = torch.tensor([[[0.9, 0.9], [0.1, 0.6]]])
    teacher = torch.tensor([[[1.0, 0.2], [0.3, 0.5]]])
    assert compare_masks(student, teacher).tolist() == [[2, 1, 1, 0]]
    assert dice(np.array([2, 1, 1, 0])) == pytest.approx(4 / 5)
    assert dice(np.array([0, 0, 4, 0])) == 1.0


def test_dice_is_pooled_over_tiles_and_not_averaged():
    counts = np.array([[10, 0, 0, 0], [0, 1, 9, 1]])
    assert dice(counts.sum(0)) == pytest.approx(20 / 22)


def test_a_student_that_repeats_its_teacher_is_perfect():
    torch.manual_seed(0)
    probability, field = torch.rand(3, 1, 8, 8), torch.randn(3, 2, 8, 8)
    types, features = torch.randn(3, 3, 8, 8).softmax(1), torch.randn(3, 4)
    assert (dice(measure(NP, probability.logit(), probability)["np.counts"]) == 1.0).all()
    np.testing.assert_allclose(measure(HV, field, field)["hv.correlation"], 1, atol=1e-5)
    np.testing.assert_array_equal(measure(TP, types.log(), types)["tp.agreement"], 1)
    np.testing.assert_allclose(measure(FEATURES, 3 * features, features)["features.cosine"], 1, atol=1e-6)


def test_figures_of_a_wrong_student():
    field = torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    np.testing.assert_allclose(measure(HV, -field, field)["hv.correlation"], -1, atol=1e-5)
    assert measure(HV, torch.zeros_like(field), field)["hv.correlation"].tolist() == [0, 0]
    types = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]], [[0.0, 0.0]]]])
    shuffled = torch.tensor([[[[5.0, 5.0]], [[0.0, 0.0]], [[0.0, 0.0]]]])
    assert measure(TP, shuffled, types)["tp.agreement"].tolist() == [0.5]


def test_the_interval_draws_slides():
    # Two slides that disagree completely: drawing slides gives 0, one half or 1, drawing tiles would give a narrow interval.
    values = np.array([1.0] * 50 + [0.0] * 50)
    summary = summarise({"a.cosine": values}, ["x"] * 50 + ["y"] * 50)["a.cosine"]
    assert (summary["value"], summary["low"], summary["high"]) == (0.5, 0.0, 1.0)
    assert (summary["tiles"], summary["groups"]) == (100, 2)
    alone = summarise({"a.cosine": values}, ["x"] * 100)["a.cosine"]
    assert 0.3 < alone["low"] < 0.5 < alone["high"] < 0.7


def test_counts_become_dice():
    counts = np.array([[3, 1, 0, 0], [5, 0, 2, 1]])
    summary = summarise({"np.counts": counts}, ["x", "y"])
    assert summary["np.dice"]["value"] == pytest.approx(16 / 18)
    assert summary["np.dice"]["low"] == pytest.approx(6 / 7)
    assert summary["np.dice"]["high"] == pytest.approx(10 / 11)


def test_the_interval_is_that_of_resampled_tiles():
    """Drawn one by one: what sums by slide and weights give in one go."""
    rng = np.random.default_rng(3)
    groups = [f"s{index}" for index in rng.integers(5, size=40)]
    figures = {"np.counts": rng.integers(20, size=(40, 4)), "hv.correlation": rng.random(40).astype(np.float32)}
    summary = summarise(figures, groups, seed=7)
    names, group_of = np.unique(groups, return_inverse=True)
    draws = np.random.default_rng(7).integers(len(names), size=(2000, len(names)))
    rows = [np.concatenate([np.flatnonzero(group_of == group) for group in draw]) for draw in draws]
    for name, pool in (("np.counts", lambda values: dice(values.sum(0))), ("hv.correlation", np.mean)):
        low, high = np.percentile([pool(figures[name][drawn]) for drawn in rows], [2.5, 97.5])
        found = summary[name.replace("counts", "dice")]
        assert (found["low"], found["high"]) == (pytest.approx(low, abs=1e-6), pytest.approx(high, abs=1e-6))
        assert found["value"] == pytest.approx(float(pool(figures[name])), abs=1e-6)
