import numpy as np
import pytest

from csat.evaluation.metrics.bootstrap import (
    SumTally,
    draw_weights,
    index_groups,
    interval,
    nan_mean,
    ratio,
    resample,
    sum_by_group,
)


def mean_tally(values, group_of, num_groups):
    statistics = {"sum": np.asarray(values, float), "count": np.ones(len(values))}
    return SumTally(statistics, lambda sums: {"mean": ratio(sums["sum"], sums["count"])}, group_of, num_groups)


def all_weights(num_groups, num_bootstraps, seed, rows_at_once=10**6):
    return np.concatenate(list(draw_weights(num_groups, num_bootstraps, seed, rows_at_once=rows_at_once)))


def test_units_are_groups_and_samples_only_where_there_is_one_group():
    group_of, num_groups = index_groups(["b", "a", "b", "c"])
    assert (group_of.tolist(), num_groups) == ([1, 0, 1, 2], 3)
    alone, num_alone = index_groups(["a", "a", "a"])
    assert (alone.tolist(), num_alone) == ([0, 1, 2], 3)


def test_sums_by_group():
    sums = sum_by_group(np.array([[1, 2], [3, 4], [5, 6]]), np.array([2, 0, 2]), 4)
    assert sums.tolist() == [[3, 4], [0, 0], [6, 8], [0, 0]]


@pytest.mark.parametrize("rows_at_once", [1, 3, 7, 100])
def test_draws_do_not_depend_on_how_many_come_at_once(rows_at_once):
    np.testing.assert_array_equal(all_weights(5, 20, 1, rows_at_once), all_weights(5, 20, 1))


def test_draws_are_whole_groups_and_reproducible():
    weights = all_weights(6, 2000, 3)
    assert weights.shape == (2000, 6)
    assert (weights.sum(1) == 6).all()
    assert (weights == all_weights(6, 2000, 3)).all()
    assert (weights != all_weights(6, 2000, 4)).any()
    # Drawn with replacement, each group has a mean of 1 and the variance of a binomial: 6 * 1/6 * 5/6.
    assert np.abs(weights.mean(0) - 1).max() < 0.07
    assert np.abs(weights.var(0) - 5 / 6).max() < 0.1


def test_a_resample_is_the_metric_of_the_repeated_samples():
    rng = np.random.default_rng(0)
    values, group_of = rng.random(30), rng.integers(7, size=30)
    found = resample([mean_tally(values, group_of, 7)], 7, num_bootstraps=50, seed=5)["mean"]
    for weights, value in zip(all_weights(7, 50, 5), found, strict=True):
        repeated = [values[i] for i in range(30) for _ in range(int(weights[group_of[i]]))]
        assert value == pytest.approx(np.mean(repeated))


def test_several_tallies_are_averaged_over_the_same_draws():
    group_of = np.arange(8)
    values = np.random.default_rng(1).random((2, 8))
    tallies = [mean_tally(each, group_of, 8) for each in values]
    single = [resample([tally], 8, num_bootstraps=40, seed=2)["mean"] for tally in tallies]
    np.testing.assert_allclose(resample(tallies, 8, num_bootstraps=40, seed=2)["mean"], np.mean(single, 0))


def test_intervals_by_group_are_wider_where_samples_of_a_group_agree():
    rng = np.random.default_rng(0)
    group_of = np.repeat(np.arange(20), 30)
    values = rng.normal(size=20)[group_of] + 0.1 * rng.normal(size=600)
    by_group = interval(resample([mean_tally(values, group_of, 20)], 20, num_bootstraps=2000)["mean"])
    by_sample = interval(resample([mean_tally(values, np.arange(600), 600)], 600, num_bootstraps=2000)["mean"])
    assert by_group[1] - by_group[0] > 3 * (by_sample[1] - by_sample[0])


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        low, high = interval(
            resample([mean_tally(rng.normal(size=40), np.arange(40), 40)], 40, num_bootstraps=400, seed=seed)["mean"]
        )
        covered += low <= 0 <= high
    assert 0.88 < covered / 200 < 0.99


def test_what_is_not_defined_is_left_out():
    assert interval(np.array([np.nan, np.nan])) is None
    assert interval(np.array([np.nan, 2.0, 2.0])) == (2.0, 2.0)
    np.testing.assert_array_equal(ratio([1, 1], [2, 0]), [0.5, np.nan])
    np.testing.assert_array_equal(nan_mean(np.array([[1.0, np.nan], [np.nan, np.nan]]), axis=1), [1.0, np.nan])
