"""The exported models of runs at work: on other labelled images, and on the samples that all of them are wrong about."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from csat.errors import ConfigError, DatasetError, SlideError, StorageError
from csat.evaluation.judged_run import JudgedRun
from csat.evaluation.predictions import write_predictions
from csat.labels.sets import LabelledConfig, LabelledData
from csat.runs.folder import RunFolder
from csat.tasks import Task
from workflows.comparison.data import RunData, judge, look, other_data, own_data
from workflows.shell.decode_samples import Prepared

logger = logging.getLogger("evaluate")

Groups = dict[str, list[JudgedRun]]
MOST_SHOWN = 3  # groups whose maps stand beside each other in a picture


def judge_on_other_data(
    config: LabelledConfig, data: LabelledData, folder: RunFolder, groups: Groups, device: torch.device
) -> tuple[Groups, dict[str, RunData]]:
    """Every run with predictions of the other data, and the data as the first run of each group sees them.

    Args:
        config, data: Of the set, see `data.gather`.
    """
    seen: dict[str, RunData] = {}
    judged: Groups = {}
    decoded: dict[int | None, Prepared] = {}
    for name, members in groups.items():
        for number, run in enumerate(members):
            mine = other_data(run, data, config, decoded)
            seen.setdefault(name, mine)
            predictions, rate = judge(run, mine, device=device)
            logger.info("%s: %d images judged, %.1f windows/s", run.uri, len(predictions), rate)
            write_predictions(folder.path("predictions", f"{name}-{number}.parquet"), predictions)
            about = {"classes": list(data.info.classes), "cost": {**run.evaluation["cost"], "images_per_s": rate}}
            judged.setdefault(name, []).append(replace(run, predictions=predictions, evaluation={**run.evaluation, **about}))
    return judged, seen


def make_pictures(
    groups: Groups, seen: Mapping[str, RunData], worst: Sequence[Mapping[str, Any]], device: torch.device
) -> tuple[list[dict[str, Any]], str | None]:
    """Of the worst samples, with the maps of the first run of each group; and where the images are not at hand, why."""
    if not worst:
        return [], None
    keys = [sample["key"] for sample in worst]
    by_group, first = {}, next(iter(groups.values()))[0]
    try:
        most = 1 if first.task == Task.CLASSIFICATION else MOST_SHOWN  # there are no maps to set beside each other
        for name, members in list(groups.items())[:most]:
            for run in members[0].folds or members[:1]:
                data = seen.get(name) or own_data(run)
                mine = [key for key in keys if key in run.predictions.keys]
                by_group.setdefault(name, {}).update((each["key"], each) for each in look(run, data, mine, device=device))
    except (ConfigError, DatasetError, SlideError, StorageError) as error:
        logger.warning("the report shows no pictures: %s", error)
        return [], str(error)
    shown = next(iter(by_group.values()))
    pictures = [
        {"key": key, "image": shown[key]["image"], "true": shown[key]["true"]}
        | {"said": {name: found[key]["said"] for name, found in by_group.items()}}
        for key in keys
        if all(key in found for found in by_group.values())
    ]
    return pictures, None


def find_device(name: str) -> torch.device:
    """Raises ConfigError for a GPU that is not there."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device cuda was asked for and torch sees no GPU here: say device=cpu")
    return torch.device(name)
