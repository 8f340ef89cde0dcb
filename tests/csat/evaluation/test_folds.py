"""The runs of a cross-validation become one run that was judged on every sample."""

from dataclasses import replace

import numpy as np
import pytest

from csat.errors import ConfigError
from csat.evaluation.comparison import compare_runs
from csat.evaluation.folds import join_folds
from csat.evaluation.judged_run import JudgedRun
from tests.support.made_up import classified

NUM_FOLDS = 3


def one_fold(fold: int, seed: int = 0, *, num_folds: int = NUM_FOLDS) -> JudgedRun:
    """Judged on every third group of the same samples."""
    whole = classified(seed, num_samples=30)
    groups = sorted(set(whole.groups))
    rows = [row for row, group in enumerate(whole.groups) if groups.index(group) % NUM_FOLDS == fold % NUM_FOLDS]
    return JudgedRun(
        uri=f"runs/{seed}/{fold}",
        config={"data": {"split": {"folds": num_folds, "fold": fold}}},
        evaluation={"task": whole.task, "classes": list(whole.classes), "seed": seed, "model": {"name": "csat"}, "cost": {}},
        predictions=whole.select(rows),
    )


def test_the_folds_of_each_seed_are_one_run_on_all_samples():
    runs = [one_fold(fold, seed) for fold in (2, 0, 1) for seed in range(2)]
    joined = join_folds(runs)
    assert [run.evaluation["seed"] for run in joined] == [0, 1]
    for seed, run in enumerate(joined):
        whole = classified(seed, num_samples=30)
        assert run.predictions.keys == tuple(sorted(whole.keys))
        assert [part.uri for part in run.folds] == [f"runs/{seed}/{fold}" for fold in range(NUM_FOLDS)]
        order = np.argsort(whole.keys)
        np.testing.assert_array_equal(run.predictions.arrays["probs"], whole.arrays["probs"][order])
    result = compare_runs({"cv": joined}, split="test", metric="accuracy", num_bootstraps=50)
    assert (result["samples"], result["groups"]["cv"]["figures"]["accuracy"]["seeds"]) == (30, 2)


def test_runs_of_one_fold_are_seeds_and_so_are_runs_without_folds():
    seeds = [one_fold(1, seed) for seed in range(2)]
    assert join_folds(seeds) == seeds
    plain = [replace(run, config={"data": {}}) for run in seeds]
    assert join_folds(plain) == plain


@pytest.mark.parametrize(
    ("runs", "words"),
    [
        ([one_fold(0), one_fold(2)], ["3 folds", "fold 0, 2", "runs/0/0, runs/0/2", "data.split.fold"]),
        ([one_fold(0), one_fold(1), one_fold(1, 0), one_fold(2)], ["fold 0, 1, 1, 2"]),
        ([one_fold(fold) for fold in range(3)] + [one_fold(0, 1)], ["seed 1", "runs of fold 0:"]),
        ([one_fold(0), replace(one_fold(1), config={})], ["runs/0/1 is no run of a cross-validation"]),
        ([one_fold(fold, num_folds=4) for fold in range(4)], ["in the test part of two folds", "from runs/0/0 to runs/0/3"]),
    ],
    ids=["missing", "twice", "missing of a seed", "no fold", "other data"],
)
def test_what_is_no_cross_validation(runs, words):
    with pytest.raises(ConfigError) as caught:
        join_folds(runs)
    for word in words:
        assert word in str(caught.value)
