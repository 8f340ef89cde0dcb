"""report.html of a comparison: which way to train is better, is the difference more than chance, what does it cost."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from csat.evaluation.metrics.bootstrap import FEW_GROUPS
from csat.evaluation.metrics.classification import LOWER_IS_BETTER
from csat.evaluation.reports.finetuning import legend
from csat.evaluation.reports.page import render
from csat.evaluation.reports.plots import confusion_matrix, forest, pareto, picture
from csat.evaluation.scores import protocol_of
from csat.runs.folder import RunFolder
from csat.tasks import Task

MOST_IN_TITLE = 3  # groups that a title names


def write_comparison_report(
    folder: RunFolder, result: Mapping[str, Any], *, pictures: Sequence[Mapping[str, Any]], why_no_pictures: str | None
) -> None:
    """Write `report.html`.

    Args:
        result: See `comparison.compare_runs`, with `worst` of `comparison.worst_samples`.
        pictures: Of the worst samples: `key`, `image` uint8 [H, W, 3], `true` int [H, W] or None, and `said`: name of a
            group → int [H, W] or None.
        why_no_pictures: Where the images are not at hand.
    """
    task, classes, metric, groups = Task(result["task"]), result["classes"], result["metric"], result["groups"]
    leading = {name: group["figures"][metric] for name, group in groups.items()}
    by_key = {each["key"]: each for each in pictures}
    page = render(
        "comparison.html",
        run_folder=folder.uri,
        result=result,
        task=task,
        metric=metric,
        groups=groups,
        names=list(next(iter(groups.values()))["figures"]),
        protocols={name: protocol_of(task, name) for name in next(iter(groups.values()))["figures"]},
        lower_is_better=LOWER_IS_BETTER,
        few_groups=FEW_GROUPS,
        most_in_title=MOST_IN_TITLE,
        forest=forest(
            leading, metric=metric, single={name: [run[metric] for run in group["runs"]] for name, group in groups.items()}
        ),
        pareto=pareto(leading, {name: group["cost"] for name, group in groups.items()}, metric=metric),
        confusion={
            name: confusion_matrix(np.array(group["confusion"]), classes, as_shares=task == Task.SEGMENTATION)
            for name, group in groups.items()
            if group["confusion"] is not None
        },
        worst=[{**sample, "uri": _picture(by_key.get(sample["key"]), task, classes)} for sample in result["worst"]],
        shown_names=list(pictures[0]["said"]) if pictures else [],
        why_no_pictures=why_no_pictures,
        legend=legend(task, classes),
    )
    folder.write_text("report.html", page)


def _picture(found: Mapping[str, Any] | None, task: Task, classes: Sequence[str]) -> str | None:
    if found is None:
        return None
    maps = [each for each in (found["true"], *found["said"].values()) if each is not None]
    return picture(found["image"], maps, num_classes=None if task == Task.NUCLEI else len(classes))
