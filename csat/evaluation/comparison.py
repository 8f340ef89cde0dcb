"""Finished fine-tuning runs side by side: seeds pooled, differences paired, costs, and where all of them are wrong."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from csat import nuclei
from csat.errors import ConfigError, DatasetError, StorageError
from csat.evaluation import tables
from csat.evaluation.judged_run import JudgedRun
from csat.evaluation.metrics.bootstrap import FEW_GROUPS, NUM_BOOTSTRAPS
from csat.evaluation.predictions import Predictions
from csat.evaluation.scores import confusion_of, evaluate_all, figures_of
from csat.runs.folder import RunFolder
from csat.tasks import Task

FAITHFUL = "student_vs_teacher."  # prefix of a pretraining's figures that compare the student with its teacher
CSV_HEADER = (
    *("name", "metric", "value", "low", "high", "std", "seeds", "samples", "groups"),
    *("difference", "difference_low", "difference_high", "params", "macs", "images_per_s"),
)


def check_groups(groups: Mapping[str, Sequence[JudgedRun]], *, of_same_classes: bool = True) -> None:
    """Refuse what cannot be one table.

    Args:
        of_same_classes: False: they have yet to be judged, by the classes that all of them have.

    Raises:
        ConfigError: a run twice, runs of different tasks or classes, different models pooled as seeds of one.
    """
    uris = [run.uri for members in groups.values() for run in members]
    if twice := sorted({uri for uri in uris if uris.count(uri) > 1}):
        raise ConfigError(f"these runs are given twice: {', '.join(twice)}")
    first = next(iter(groups.values()))[0]
    for name, members in groups.items():
        for run in members:
            if run.task != first.task or (of_same_classes and not nuclei.are_same(run.classes, first.classes)):
                raise ConfigError(
                    f"{run.uri} learned something else than {first.uri}: {_learned(run)}, not {_learned(first)}. Compare them "
                    "in tables of their own"
                )
            if _size(run) != _size(members[0]):
                raise ConfigError(
                    f"the runs of {name!r} are different models, no seeds of one: {members[0].uri} is {_size(members[0])}, "
                    f"{run.uri} is {_size(run)}. Give them names of their own"
                )


def compare_runs(
    groups: Mapping[str, Sequence[JudgedRun]], *, split: str, metric: str, num_bootstraps: int = NUM_BOOTSTRAPS, seed: int = 0
) -> dict[str, Any]:
    """All there is to say about the groups, ready for JSON.

    Args:
        groups: Name → runs that differ in their seed only; differences are against the first.
        split: That `predictions` are of, for the record.
        metric: That the table leads with.

    Returns:
        `task`, `classes`, `part` (the split), `metric`, `samples`, `units` (groups that are drawn), and `groups`: name →
        `figures` and `against_first` (see `scores.evaluate_all`), `runs` (uri, seed, views, and the metric of each), `model`,
        `cost`, `confusion` (summed over the runs; None for nuclei), and `fidelity` of the pretraining before it, or None.

    Raises:
        ConfigError, DatasetError: runs that do not compare; the difference is listed; or one that lacks the metric.
    """
    check_groups(groups)
    classes = next(iter(groups.values()))[0].predictions.classes
    groups = {name: [_spelt_as(run, classes) for run in members] for name, members in groups.items()}
    said = {name: [run.predictions for run in members] for name, members in groups.items()}
    try:
        found = evaluate_all(said, num_bootstraps=num_bootstraps, seed=seed)
    except DatasetError as error:
        uris = [run.uri for members in groups.values() for run in members]
        numbered = "\n  ".join(f"{number}: {uri}" for number, uri in enumerate(uris, start=1))
        raise DatasetError(f"{error}\nThe runs are\n  {numbered}") from error
    first = next(iter(groups.values()))[0]
    figures = next(iter(found.values()))["figures"]
    if metric not in figures:
        raise ConfigError(
            f"not every run has the metric {metric!r}: predictions of earlier versions lack it. Judge the runs again, with "
            f"data.sets, or choose one of: {', '.join(figures)}"
        )
    figure = figures[metric]
    return {
        "task": first.task,
        "classes": first.classes,
        "part": split,
        "metric": metric,
        "samples": figure["samples"],
        "units": figure["groups"],
        "groups": {
            name: {
                **found[name],
                "runs": [_about(run, metric) for run in members],
                "model": members[0].evaluation["model"],
                "cost": _cost(members),
                "confusion": None if first.task == Task.NUCLEI else confusion_of(said[name]).tolist(),
                "fidelity": _fidelity(members[0]),
            }
            for name, members in groups.items()
        },
    }


def _spelt_as(run: JudgedRun, classes: tuple[str, ...]) -> JudgedRun:
    """The run with its classes, by which metrics are called, spelt like these where they are the same."""
    if not nuclei.are_same(run.predictions.classes, classes):
        return run
    return replace(run, predictions=replace(run.predictions, classes=classes))


def worst_samples(groups: Mapping[str, Sequence[JudgedRun]], count: int) -> list[dict[str, Any]]:
    """Samples on which the loss, averaged over the seeds and then over the groups, is highest.

    Returns:
        Each with `key`, `label` (class in words; None where a sample has none as a whole), `loss`, and by name of a group
        `loss_by_group` (mean over the seeds) and `said` (what its runs said, in words).
    """
    keys = sorted(next(iter(groups.values()))[0].predictions.keys)
    rows = {run.uri: _rows(run.predictions) for members in groups.values() for run in members}
    losses = {
        name: np.mean([[run.predictions.loss[rows[run.uri][key]] for key in keys] for run in members], axis=0)
        for name, members in groups.items()
    }
    mean = np.mean(list(losses.values()), axis=0)
    worst = np.argsort(-mean, kind="stable")[:count]
    return [
        {
            "key": keys[index],
            "label": _label(next(iter(groups.values()))[0], keys[index], rows),
            "loss": float(mean[index]),
            "loss_by_group": {name: float(each[index]) for name, each in losses.items()},
            "said": {name: _said(members, keys[index], rows) for name, members in groups.items()},
        }
        for index in worst
    ]


def to_text(result: Mapping[str, Any]) -> str:
    """For a terminal: the leading metric with differences and cost, then every metric of all classes together."""
    metric, groups = result["metric"], result["groups"]
    lines = [("", metric, *tables.HEAD)]
    for name, group in groups.items():
        lines.append((name, *tables.Measured(**tables.measured(group, metric, group["cost"])).cells()))
    names = [name for name in next(iter(groups.values()))["figures"] if "/" not in name]
    others = [["", *groups]]
    for name in names:
        cells = [group["figures"][name] for group in groups.values()]
        others.append([name, *(tables.with_limits(each["value"], each["low"], each["high"]) for each in cells)])
    about = f"{result['part']}: {result['samples']:,} images of {result['units']:,} groups"
    if result["units"] < FEW_GROUPS:
        about += f"; with fewer than about {FEW_GROUPS} groups, intervals tend to be too narrow"
    return f"{about}\n{tables.align(lines)}\n\n{tables.align(others)}"


def to_csv(result: Mapping[str, Any]) -> str:
    """One line per group and metric; empty where nothing is known."""
    rows = []
    for name, group in result["groups"].items():
        for metric, figure in group["figures"].items():
            row = tables.measured(group, metric, group["cost"])
            about = {"name": name, "metric": metric, "samples": figure["samples"], "groups": figure["groups"]}
            rows.append({**about, "params": row.pop("parameters"), **row})
    return tables.to_csv(CSV_HEADER, rows)


def _learned(run: JudgedRun) -> str:
    return f"{run.task} of {', '.join(run.classes) or 'one kind'}"


def _size(run: JudgedRun) -> str:
    params = run.evaluation["cost"].get("params")
    return f"{run.evaluation['model']['name']} of {'unknown' if params is None else f'{params:,}'} parameters"


def _about(run: JudgedRun, metric: str) -> dict[str, Any]:
    value = figures_of(run.predictions)[metric]
    return {
        "uri": run.uri,
        "seed": run.evaluation.get("seed"),
        "views": run.predictions.views,
        "sees": run.sees,
        metric: None if np.isnan(value) else value,
    }


def _cost(members: Sequence[JudgedRun]) -> dict[str, Any]:
    """Of the first run; the rate of the fastest, as other work on the machine can only slow a run down."""
    rates = [rate for run in members if (rate := run.evaluation["cost"].get("images_per_s")) is not None]
    cost = members[0].evaluation["cost"]
    return {**{key: cost.get(key) for key in ("params", "macs", "input_px")}, "images_per_s": max(rates, default=None)}


def _fidelity(run: JudgedRun) -> dict[str, Any] | None:
    """How faithful the pretraining that a run started from is to its teacher, where its run folder is within reach."""
    start = run.evaluation["model"].get("from_run")
    if start is None:
        return None
    try:
        folder = RunFolder(start)
        figures, teacher = folder.read_json("evaluation.json") or {}, folder.read_json("teacher.json") or {}
    except StorageError:
        return None
    faithful = {name.removeprefix(FAITHFUL): figure for name, figure in figures.items() if name.startswith(FAITHFUL)}
    return {"teacher": teacher.get("name"), "figures": faithful} if faithful else None


def _rows(predictions: Predictions) -> dict[str, int]:
    return {key: row for row, key in enumerate(predictions.keys)}


def _label(run: JudgedRun, key: str, rows: Mapping[str, Mapping[str, int]]) -> str | None:
    if run.task != Task.CLASSIFICATION:
        return None
    return run.classes[int(run.predictions.arrays["label"][rows[run.uri][key]])]


def _said(members: Sequence[JudgedRun], key: str, rows: Mapping[str, Mapping[str, int]]) -> str:
    """What the runs of a group said of a sample: classes with the number of runs, or Dice."""
    found = [(run.predictions, rows[run.uri][key]) for run in members]
    if members[0].task == Task.CLASSIFICATION:
        said = [run.classes[int(run.arrays["probs"][row].argmax())] for run, row in found]
        names = sorted(set(said), key=lambda name: (-said.count(name), name))
        return ", ".join(name if len(found) == 1 else f"{name} ({said.count(name)} of {len(found)})" for name in names)
    name = "pixel_accuracy" if members[0].task == Task.SEGMENTATION else "dice"
    values = [figures_of(run.select([row]))[name] for run, row in found]
    if np.isnan(values).all():
        return f"{name} not defined"
    return f"{name} {np.nanmean(values):.2f}"
