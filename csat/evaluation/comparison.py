"""Finished fine-tuning runs side by side: seeds pooled, differences paired, costs, and where all of them are wrong."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import yaml

from csat import nuclei
from csat.errors import ConfigError, DatasetError, StorageError
from csat.evaluation import tables
from csat.evaluation.metrics.bootstrap import FEW_GROUPS, NUM_BOOTSTRAPS
from csat.evaluation.predictions import Predictions, read_predictions
from csat.evaluation.scores import MAIN_METRIC, confusion_of, evaluate_all, figures_of
from csat.export.folder import exported_folder, read_exported_config
from csat.runs.folder import RunFolder
from csat.storage import files
from csat.tasks import Task

FAITHFUL = "student_vs_teacher."  # prefix of a pretraining's figures that compare the student with its teacher
CSV_HEADER = (
    *("name", "metric", "value", "low", "high", "std", "seeds", "samples", "groups"),
    *("difference", "difference_low", "difference_high", "params", "macs", "images_per_s"),
)


@dataclass(frozen=True, kw_only=True)
class JudgedRun:
    """One finished run of finetune.py, or a classifier that pretrain.py has distilled.

    Attributes:
        config: Its config.yaml.
        evaluation: Its evaluation.json; of a distilled classifier, as much of it as there is.
        predictions: Of the part that is compared.
    """

    uri: str
    config: dict[str, Any] = field(repr=False)
    evaluation: dict[str, Any] = field(repr=False)
    predictions: Predictions | None = field(default=None, repr=False)

    @property
    def task(self) -> Task:
        return Task(self.evaluation["task"])

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.evaluation["classes"])


def read_run(uri: str, part: str | None) -> JudgedRun:
    """A run folder.

    Args:
        part: Whose predictions are wanted; None: none are.

    Raises:
        ConfigError: no run folder, a run that is not finished, one of another verb, or one without this part.
    """
    folder = RunFolder(uri)
    if not files.exists(folder.path("config.yaml")):
        raise ConfigError(f"{uri} is no run folder: there is no config.yaml in it; give the --run_folder of a finetune.py run")
    status = folder.read_json("status.json") or {"state": "not begun"}
    if status["state"] != "finished":
        why = f" ({status['error']})" if status.get("error") else ""
        raise ConfigError(f"the run {uri} is not finished, it is {status['state']}{why}: repeat its command to go on with it")
    config = yaml.safe_load(files.read_bytes(folder.path("config.yaml")))
    evaluation = folder.read_json("evaluation.json") or {}
    if "task" not in evaluation and "slides" in config:
        return _distilled(folder, config, part)
    if "task" not in evaluation:
        raise ConfigError(f"{uri} is a run of another verb: evaluate.py compares what finetune.py has trained")
    predictions = None
    if part is not None:
        path = folder.path("predictions", f"{part}.parquet")
        if not files.exists(path):
            names = [files.base_name(name).removesuffix(".parquet") for name in files.list_dir(folder.path("predictions"))]
            raise ConfigError(f"the run {uri} was not judged on a {part} part; it has: {', '.join(names) or 'none'}")
        predictions = read_predictions(path)
    return JudgedRun(uri=folder.uri, config=config, evaluation=evaluation, predictions=predictions)


def _distilled(folder: RunFolder, config: dict[str, Any], part: str | None) -> JudgedRun:
    """A run of pretrain.py whose student has its teacher's classes (method resolution). It has seen no labelled image.

    Raises:
        ConfigError: it has no classes, or predictions of a part are wanted.
    """
    exported = read_exported_config(exported_folder(folder.uri))
    heads = [head for head in exported["responses"] if head["name"] == "label" and head["channel_names"]]
    if not heads:
        names = ", ".join(head["name"] for head in exported["responses"])
        raise ConfigError(
            f"{folder.uri} is a run of pretrain.py, and its student ({names}) tells no classes apart: evaluate.py compares "
            "what finetune.py has trained, and what a teacher from finetune.py has taught with --method.name resolution"
        )
    if part is not None:
        raise ConfigError(
            f"{folder.uri} is a run of pretrain.py, which knows no labelled images: give some to judge it on, as in "
            "--data.sets.NAME FOLDER"
        )
    view = {"tile_px": exported["metadata"]["tile_px"], "mpp": exported["metadata"]["mpp"], "fit": "crop"}
    if view["tile_px"] is None:
        raise ConfigError(f"{folder.uri} was distilled from whole images, and evaluate.py judges tiles of one size")
    evaluation = {
        "task": Task.CLASSIFICATION,
        "classes": list(heads[0]["channel_names"]),
        "metric": MAIN_METRIC[Task.CLASSIFICATION],
        "model": {"name": config["student"]["backbone"], "init": "random", "from_run": folder.uri},
        "seed": config["train"]["seed"],
        "cost": (folder.read_json("throughput.json") or {}).get("student", {}),
    }
    precision = {"precision": config["train"]["precision"]}
    seen = {"data": view, "test_time_views": 1, "train": precision}
    return JudgedRun(uri=folder.uri, config=seen, evaluation=evaluation)


def check_groups(groups: Mapping[str, Sequence[JudgedRun]]) -> None:
    """Refuse what cannot be one table.

    Raises:
        ConfigError: a run twice, runs of different tasks or classes, different models pooled as seeds of one.
    """
    uris = [run.uri for members in groups.values() for run in members]
    if twice := sorted({uri for uri in uris if uris.count(uri) > 1}):
        raise ConfigError(f"these runs are given twice: {', '.join(twice)}")
    first = next(iter(groups.values()))[0]
    for name, members in groups.items():
        for run in members:
            if run.task != first.task or not nuclei.are_same(run.classes, first.classes):
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
    groups: Mapping[str, Sequence[JudgedRun]], *, part: str, metric: str, num_bootstraps: int = NUM_BOOTSTRAPS, seed: int = 0
) -> dict[str, Any]:
    """All there is to say about the groups, ready for JSON.

    Args:
        groups: Name → runs that differ in their seed only; differences are against the first.
        part: That `predictions` are of, for the record.
        metric: That the table leads with.

    Returns:
        `task`, `classes`, `part`, `metric`, `samples`, `units` (groups that are drawn), and `groups`: name → `figures` and
        `against_first` (see `downstream.evaluate_all`), `runs` (uri, seed, views, and the metric of each), `model`, `cost`,
        `confusion` (summed over the runs; None for nuclei), `fidelity` of the pretraining that it started from, or None.

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
            f"--data.sets, or choose one of: {', '.join(figures)}"
        )
    figure = figures[metric]
    return {
        "task": first.task,
        "classes": first.classes,
        "part": part,
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
    head = ["", metric, "95% interval", "std", "seeds", "vs first", "95% interval", "M params", "GMAC", "images/s"]
    lines = [head]
    for name, group in groups.items():
        figure, cost = group["figures"][metric], group["cost"]
        difference = (group["against_first"] or {}).get(metric, {})
        lines.append(
            [
                name,
                tables.figure(figure["value"]),
                tables.limits(figure["low"], figure["high"]),
                tables.figure(figure["std"]),
                str(figure["seeds"]),
                tables.figure(difference.get("difference"), "+.3f"),
                tables.limits(difference.get("low"), difference.get("high"), "+.3f"),
                tables.figure(cost["params"], ".3f", 1e6),
                tables.figure(cost["macs"], ".3f", 1e9),
                tables.figure(cost["images_per_s"], ".1f"),
            ]
        )
    names = [name for name in next(iter(groups.values()))["figures"] if "/" not in name]
    others = [["", *groups]]
    for name in names:
        cells = [group["figures"][name] for group in groups.values()]
        others.append([name, *(_with_limits(each["value"], each["low"], each["high"]) for each in cells)])
    about = f"{result['part']}: {result['samples']:,} images of {result['units']:,} groups"
    if result["units"] < FEW_GROUPS:
        about += f"; with fewer than about {FEW_GROUPS} groups, intervals tend to be too narrow"
    return f"{about}\n{tables.align(lines)}\n\n{tables.align(others)}"


def to_csv(result: Mapping[str, Any]) -> str:
    """One line per group and metric; empty where nothing is known."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(CSV_HEADER)
    for name, group in result["groups"].items():
        cost = group["cost"]
        for metric, figure in group["figures"].items():
            difference = (group["against_first"] or {}).get(metric, {})
            writer.writerow(
                [name, metric, *(figure[key] for key in CSV_HEADER[2:9])]
                + [difference.get(key) for key in ("difference", "low", "high")]
                + [cost["params"], cost["macs"], cost["images_per_s"]]
            )
    return table.getvalue()


def _with_limits(value: float | None, low: float | None, high: float | None) -> str:
    return tables.NOTHING if value is None else f"{tables.figure(value)} {tables.limits(low, high)}"


def _learned(run: JudgedRun) -> str:
    return f"{run.task} of {', '.join(run.classes) or 'one kind'}"


def _size(run: JudgedRun) -> str:
    return f"{run.evaluation['model']['name']} of {run.evaluation['cost']['params']:,} parameters"


def _about(run: JudgedRun, metric: str) -> dict[str, Any]:
    value = figures_of(run.predictions)[metric]
    return {
        "uri": run.uri,
        "seed": run.evaluation.get("seed"),
        "views": run.predictions.views,
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
