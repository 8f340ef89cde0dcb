"""Cross-validation: the runs of the folds, each judged on its own test part, are one run that was judged on all of them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from csat.errors import ConfigError
from csat.evaluation.judged_run import JudgedRun
from csat.evaluation.predictions import concatenate
from csat.words import some


def join_folds(runs: Sequence[JudgedRun]) -> list[JudgedRun]:
    """One run for every seed of a cross-validation; runs that were judged on the same part stay as they are.

    Args:
        runs: Of one way to train, with predictions.

    Returns:
        In the order of the first run of each. What was joined has all predictions, and its `folds`.

    Raises:
        ConfigError: a fold of a seed is missing or there twice, some runs have no folds, or a sample is in two of them.
    """
    if len({(_split_of(run).get("folds", 0), _split_of(run).get("fold", 0)) for run in runs}) == 1:
        return list(runs)
    of_seed: dict[Any, list[JudgedRun]] = {}
    for run in runs:
        if not _split_of(run).get("folds"):
            raise ConfigError(f"{run.uri} is no run of a cross-validation and stands beside some: give it a name of its own")
        of_seed.setdefault((_split_of(run)["folds"], run.evaluation.get("seed")), []).append(run)
    return [_join(members) for members in of_seed.values()]


def _join(runs: Sequence[JudgedRun]) -> JudgedRun:
    num_folds, seed = _split_of(runs[0])["folds"], runs[0].evaluation.get("seed")
    by_fold = sorted(runs, key=lambda run: _split_of(run).get("fold", 0))
    there = [_split_of(run).get("fold", 0) for run in by_fold]
    if there != list(range(num_folds)):
        raise ConfigError(
            f"a cross-validation of {num_folds} folds needs one run of each, and with seed {seed} there are runs of fold "
            f"{', '.join(map(str, there))}: {some([run.uri for run in by_fold], num_folds)}. Train those that are missing "
            "(data.split.fold), or give the others a name of their own"
        )
    times = Counter(key for run in by_fold for key in run.predictions.keys)
    if twice := sorted(key for key, count in times.items() if count > 1):
        raise ConfigError(
            f"{some(twice, 3)}: in the test part of two folds. The runs from {by_fold[0].uri} to {by_fold[-1].uri} did not "
            "have the same data"
        )
    return replace(
        by_fold[0],
        uri=f"{by_fold[0].uri} and its other folds",
        predictions=concatenate([run.predictions for run in by_fold]),
        folds=tuple(by_fold),
    )


def _split_of(run: JudgedRun) -> dict[str, Any]:
    return run.config.get("data", {}).get("split", {})
