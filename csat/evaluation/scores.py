"""The figures of fine-tuned models: at each validation, at the end with intervals, and of several runs against each other.

Runs are seeds of one way to train, judged on the same samples. Their figure is the mean over the seeds; its interval says how
far another draw of patients would move that mean (the bootstrap draws groups, the same ones for all runs), and `std` says how
far another seed moves one run. The first is not the second: both are given.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from csat import nuclei
from csat.errors import ConfigError, DatasetError
from csat.evaluation.metrics import classification, instances, segmentation
from csat.evaluation.metrics.bootstrap import NUM_BOOTSTRAPS, SumTally, Tally, index_groups, interval, nan_mean, resample
from csat.evaluation.metrics.classification import BINS, LOWER_IS_BETTER, ClassificationTally
from csat.evaluation.metrics.instances import compare_instances, instance_figures
from csat.evaluation.metrics.segmentation import segmentation_figures
from csat.evaluation.predictions import LATER, Predictions
from csat.tasks import Task
from csat.words import some

MAIN_METRIC = {Task.CLASSIFICATION: "balanced_accuracy", Task.SEGMENTATION: "miou", Task.NUCLEI: "dice"}
PROTOCOLS = {
    Task.CLASSIFICATION: classification.METRICS,
    Task.SEGMENTATION: segmentation.METRICS,
    Task.NUCLEI: instances.METRICS,
}
UNDEFINED = -1.0  # stands for a metric that is not defined where a number is needed: none of them can be lower
NO_METRIC = ("step", "epoch", "metric", "loss", "best_metric", "best_step")  # what else a line of validation.jsonl holds
MOST_LISTED = 3


def tally_of(predictions: Predictions, group_of: np.ndarray, num_groups: int) -> Tally:
    """The predictions, ready to be weighted by group.

    Args:
        group_of: int `[N]`, group of each sample.
        num_groups: That may be drawn.
    """
    arrays, classes = predictions.arrays, predictions.classes
    if predictions.task == Task.CLASSIFICATION:
        return ClassificationTally(arrays["probs"], arrays["label"], group_of, num_groups)
    if predictions.task == Task.SEGMENTATION:
        return SumTally(arrays, lambda sums: segmentation_figures(sums["confusion"], classes), group_of, num_groups)
    return SumTally(arrays, lambda sums: instance_figures(sums, classes), group_of, num_groups)


def figures_of(predictions: Predictions) -> dict[str, float]:
    """Metric → value over all samples; NaN where it is not defined. Raises DatasetError where there is no sample."""
    return _tally(_filled(predictions)).point()


def metrics_of(task: Task, classes: tuple[str, ...]) -> tuple[str, ...]:
    """Names of all metrics of a task."""
    if task == Task.CLASSIFICATION:
        return tuple(PROTOCOLS[task])
    if task == Task.SEGMENTATION:
        return tuple(segmentation_figures(np.zeros((len(classes), len(classes))), classes))
    nothing = np.zeros((1, 1), np.int32)
    counts = compare_instances(nothing, nothing, mpp=None, num_types=len(classes))
    return tuple(instance_figures({"pixels": np.zeros(3), "calibration": np.zeros((BINS, 3)), **counts}, classes))


def protocol_of(task: Task, metric: str) -> str:
    """How a metric is computed, in words."""
    protocols = PROTOCOLS[task]
    return protocols[metric if metric in protocols else metric.partition("/")[0] + "/"]


def check_metric(task: Task, classes: tuple[str, ...], metric: str | None) -> str:
    """The metric that chooses the best weights; None: the task's main one. Raises ConfigError for one that cannot choose."""
    if metric is None:
        return MAIN_METRIC[task]
    valid = [name for name in metrics_of(task, classes) if name not in LOWER_IS_BETTER]
    if metric in valid:
        return metric
    why = "is better when it is lower: it cannot choose" if metric in LOWER_IS_BETTER else f"is no metric of {task}"
    raise ConfigError(f"metric {metric!r} {why}; choose one of: {', '.join(valid)}")


def validate(predictions: Predictions, *, metric: str | None) -> dict[str, float | None]:
    """The figures of one validation, ready for JSON.

    Returns:
        `metric`, what the best weights are chosen by, always finite: `UNDEFINED` where it is not defined, so that it never
        wins; `loss`, the mean over the samples; and every metric, None where it is not defined.
    """
    name = check_metric(predictions.task, predictions.classes, metric)
    figures = figures_of(predictions)
    if name not in figures:
        raise ConfigError(f"metric {name!r} was not measured: these predictions have {', '.join(figures)}")
    value = figures[name] if math.isfinite(figures[name]) else UNDEFINED
    plain = {each: _plain(figure) for each, figure in figures.items()}
    return {"metric": value, "loss": _plain(predictions.loss.mean()), **plain}


def in_words(figures: Mapping[str, Any]) -> str:
    """One line for a log: the loss and the metrics of all classes together."""
    named = {name: value for name, value in figures.items() if name not in NO_METRIC and "/" not in name}
    if "loss" in figures:
        named = {"loss": figures["loss"], **named}
    line = ", ".join(f"{name} {'-' if value is None else format(value, '.3f')}" for name, value in named.items())
    return f"epoch {figures['epoch']:g}: {line}" if "epoch" in figures else line


def evaluate(
    runs: Sequence[Predictions], *, num_bootstraps: int = NUM_BOOTSTRAPS, seed: int = 0
) -> dict[str, dict[str, float | int | None]]:
    """The figures of one way to train, over its seeds, with 95% intervals. Ready for JSON.

    Returns:
        Metric → `value` (mean over the runs), `low`, `high` (bootstrap by group, the same draws for all runs), `std` (over the
        runs; None for one), `seeds` (number of runs), `samples`, `groups`. What is not defined is None.

    Raises:
        DatasetError: the runs were judged on different samples, or on none.
    """
    return evaluate_all({"": runs}, num_bootstraps=num_bootstraps, seed=seed)[""]["figures"]


def compare(
    ours: Sequence[Predictions], theirs: Sequence[Predictions], *, num_bootstraps: int = NUM_BOOTSTRAPS, seed: int = 0
) -> dict[str, dict[str, float | None]]:
    """Ours minus theirs: the difference of the means over the seeds, with a paired 95% interval. Ready for JSON.

    Returns:
        Metric → `difference`, `low`, `high`; None where it is not defined.

    Raises:
        DatasetError: not all of them were judged on the same samples.
    """
    found = evaluate_all({"theirs": theirs, "ours": ours}, num_bootstraps=num_bootstraps, seed=seed)
    return found["ours"]["against_first"]


def evaluate_all(
    groups: Mapping[str, Sequence[Predictions]], *, num_bootstraps: int = NUM_BOOTSTRAPS, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Several ways to train, each with its seeds, all judged on the same samples.

    Returns:
        Name → `figures` (see `evaluate`) and `against_first` (see `compare`; None for the first).
    """
    runs = _aligned([run for members in groups.values() for run in members])
    group_of, num_groups = index_groups(runs[0].groups)
    about = {"samples": len(runs[0]), "groups": len(set(runs[0].groups))}
    found: dict[str, dict[str, Any]] = {}
    first: tuple[dict[str, float], dict[str, np.ndarray]] | None = None
    for name, members in groups.items():
        mine, runs = runs[: len(members)], runs[len(members) :]
        tallies = [tally_of(run, group_of, num_groups) for run in mine]
        points = [tally.point() for tally in tallies]
        drawn = resample(tallies, num_groups, num_bootstraps=num_bootstraps, seed=seed)
        values = {metric: np.array([point[metric] for point in points]) for metric in points[0]}
        means = {metric: float(nan_mean(each, axis=0)) for metric, each in values.items()}
        figures = {
            metric: {
                "value": _plain(means[metric]),
                **_limits(drawn[metric]),
                "std": _plain(each.std(ddof=1)) if len(each) > 1 else None,
                "seeds": len(each),
                **about,
            }
            for metric, each in values.items()
        }
        differences = None
        if first is not None:
            differences = {
                metric: {"difference": _plain(means[metric] - first[0][metric]), **_limits(drawn[metric] - first[1][metric])}
                for metric in means
                if metric in first[0]
            }
        first = first or (means, drawn)
        found[name] = {"figures": figures, "against_first": differences}
    return found


def confusion_of(runs: Sequence[Predictions]) -> np.ndarray:
    """int64 `[K, K]`, labelled class by row, said class by column: samples (classification) or pixels of all runs."""
    assert runs[0].task != Task.NUCLEI, "nuclei have no confusion matrix"
    if runs[0].task == Task.SEGMENTATION:
        return sum(run.arrays["confusion"].sum(0) for run in runs)
    return sum(_tally(run).confusion() for run in runs)


def _tally(predictions: Predictions) -> Tally:
    """All samples as one group."""
    return tally_of(predictions, np.zeros(len(predictions), np.int64), 1)


def _filled(predictions: Predictions) -> Predictions:
    if not len(predictions):
        reasons = "".join(f"\n  {key}: {reason}" for key, reason in predictions.unreadable[:MOST_LISTED])
        raise DatasetError(f"there is no sample to judge: {len(predictions.unreadable)} could not be read{reasons}")
    return predictions


def _aligned(runs: Sequence[Predictions]) -> list[Predictions]:
    """The runs, their samples in one order. Raises DatasetError where they were not judged on the same ones.

    Counts that predictions of earlier versions lack are left out where one of the runs lacks them.
    """
    if not runs:
        raise DatasetError("there are no predictions to judge")
    lacking = [name for name in LATER if not all(name in run.arrays for run in runs)]
    runs = [run.without(lacking) for run in runs]
    first = _filled(runs[0])
    order = sorted(range(len(first)), key=first.keys.__getitem__)
    aligned = [first.select(order)]
    truth = dict(zip(first.keys, zip(first.groups, _truth(first), strict=True), strict=True))
    for number, run in enumerate(runs[1:], start=2):
        if run.task != first.task or not nuclei.are_same(run.classes, first.classes):
            raise DatasetError(
                f"these runs learned different things: the first {first.task} of {', '.join(first.classes) or 'one kind'}, "
                f"number {number} {run.task} of {', '.join(run.classes) or 'one kind'}"
            )
        if run.arrays.keys() != first.arrays.keys():
            raise DatasetError(
                f"these runs were judged in different ways: the first has {', '.join(first.arrays)}, number {number} "
                f"{', '.join(run.arrays)}"
            )
        theirs = dict(zip(run.keys, zip(run.groups, _truth(run), strict=True), strict=True))
        if theirs != truth:
            raise DatasetError(
                f"these runs were judged on different samples, so their figures do not compare (run 1: {len(truth)}, run "
                f"{number}: {len(theirs)}):\n  {_difference(truth, theirs, number)}\nTrain them with the same data settings"
            )
        ordered = run.select(sorted(range(len(run)), key=run.keys.__getitem__))
        aligned.append(replace(ordered, classes=first.classes))  # in one spelling
    return aligned


def _truth(predictions: Predictions) -> list[int | None]:
    """What must be the same in every run beside key and group: the label, where a sample has one."""
    labels = predictions.arrays.get("label")
    return [None] * len(predictions) if labels is None else labels.tolist()


def _difference(first: dict[str, Any], other: dict[str, Any], number: int) -> str:
    lines = []
    for whose, keys in (("only run 1", first.keys() - other.keys()), (f"only run {number}", other.keys() - first.keys())):
        if keys:
            lines.append(f"{whose} has {len(keys)}: {some(sorted(keys), MOST_LISTED)}")
    changed = sorted(key for key in first.keys() & other.keys() if first[key] != other[key])
    if changed:
        lines.append(f"{len(changed)} have another group or label: {some(changed, MOST_LISTED)}")
    return "\n  ".join(lines)


def _limits(samples: np.ndarray) -> dict[str, float | None]:
    low, high = interval(samples) or (None, None)
    return {"low": low, "high": high}


def _plain(value: float) -> float | None:
    """For JSON, which has no NaN."""
    return float(value) if math.isfinite(value) else None
