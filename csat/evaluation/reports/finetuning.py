"""report.html of a fine-tuned model: is it good, where is it wrong, how did it learn, what does it cost, from what data."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from csat.evaluation.metrics.bootstrap import FEW_GROUPS
from csat.evaluation.metrics.classification import LOWER_IS_BETTER
from csat.evaluation.predictions import Predictions, read_predictions
from csat.evaluation.reports.page import render
from csat.evaluation.reports.plots import class_colors, confusion_matrix, learning_curves, picture, reliability
from csat.evaluation.scores import confusion_of, protocol_of, tally_of
from csat.runs.folder import RunFolder
from csat.runs.recorder import read_metrics
from csat.storage import files
from csat.tasks import Task

JUDGED = ("test", "val")  # splits that a run may have been judged on; the first that is there is shown
MOST_LISTED = 20


def write_finetuning_report(folder: RunFolder, *, pictures: list[dict[str, Any]]) -> None:
    """Write `report.html` into the run folder. Everything but the pictures is read from there.

    Args:
        pictures: Of the samples that the model is most wrong about: `key`, `title`, `loss`, `image` uint8 [H, W, 3], and
            `true` and `said`: int [H, W] class mask or instance ids, None for a classification.
    """
    evaluation, data = folder.read_json("evaluation.json"), folder.read_json("data.json")
    task, classes = Task(evaluation["task"]), tuple(evaluation["classes"])
    split = next(split for split in JUDGED if split in evaluation)
    predictions = read_predictions(folder.path("predictions", f"{split}.parquet"))
    metric = evaluation["metric"]
    page = render(
        "finetuning.html",
        run_folder=folder.uri,
        task=task,
        classes=classes,
        data=data,
        evaluation=evaluation,
        part=split,
        metric=metric,
        figures=evaluation[split],
        validation=evaluation.get("val", {}),
        protocols={name: protocol_of(task, name) for name in evaluation[split]},
        lower_is_better=LOWER_IS_BETTER,
        few_groups=FEW_GROUPS,
        confusion=confusion_figure([predictions]),
        reliability=reliability_figure(predictions),
        pictures=shown(pictures, task, classes),
        legend=legend(task, classes),
        curves=learning_curves(
            read_metrics(folder.uri),
            read_metrics(folder.uri, "validation"),
            metric=metric,
            best_step=evaluation.get("best_step"),
        ),
        counts=_count_labels(folder, classes) if task == Task.CLASSIFICATION else {},
        views=predictions.views,
        most_listed=MOST_LISTED,
        start=_start(folder, evaluation),
    )
    folder.write_text("report.html", page)


def confusion_figure(runs: Sequence[Predictions]) -> str | None:
    """Confusion matrix over the runs; None for nuclei."""
    if runs[0].task == Task.NUCLEI:
        return None
    return confusion_matrix(confusion_of(runs), runs[0].classes, as_shares=runs[0].task == Task.SEGMENTATION)


def reliability_figure(predictions: Predictions) -> str | None:
    """Reliability diagram; None where there are no class probabilities of whole samples."""
    if predictions.task != Task.CLASSIFICATION:
        return None
    return reliability(tally_of(predictions, np.zeros(len(predictions), np.int64), 1).bins())


def shown(pictures: Sequence[Mapping[str, Any]], task: Task, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Pictures as a page takes them."""
    num_classes = None if task == Task.NUCLEI else len(classes)
    found = []
    for each in pictures:
        maps = [each[name] for name in ("true", "said") if each[name] is not None]
        uri = picture(each["image"], maps, num_classes=num_classes)
        found.append({"key": each["key"], "title": each["title"], "loss": each["loss"], "uri": uri})
    return found


def legend(task: Task, classes: Sequence[str]) -> list[tuple[str, str]]:
    """(class, CSS colour) of what is tinted in pictures."""
    if task != Task.SEGMENTATION:
        return []
    colors = class_colors(len(classes))
    return [(name, "#{:02x}{:02x}{:02x}".format(*color)) for name, color in list(zip(classes, colors, strict=True))[1:]]


def _count_labels(folder: RunFolder, classes: Sequence[str]) -> dict[str, list[int]]:
    """Part → samples of each class, from samples.csv."""
    if not files.exists(folder.path("samples.csv")):
        return {}
    counts: dict[str, list[int]] = {}
    for row in csv.DictReader(io.StringIO(files.read_bytes(folder.path("samples.csv")).decode())):
        if row["label"] in classes:
            counts.setdefault(row["part"], [0] * len(classes))[classes.index(row["label"])] += 1
    return counts


def _start(folder: RunFolder, evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """What the model is and where its weights came from, by dotted name."""
    exported = folder.read_json("exported/config.json") or {}
    started_from = exported.get("metadata", {}).get("started_from")
    flat = _flatten(evaluation["model"])
    return flat | (_flatten(started_from, "start.") if isinstance(started_from, Mapping) else {})


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{name}.")
        elif value not in (None, ""):
            flat[prefix + name] = ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
    return flat
