"""A finished run as an evaluation takes it: what it is, how it was trained, and its predictions."""

from dataclasses import dataclass, field
from typing import Any

import yaml

from csat.errors import ConfigError
from csat.evaluation.predictions import Predictions, read_predictions
from csat.evaluation.scores import MAIN_METRIC
from csat.export.folder import exported_folder
from csat.model.files import read_model_config
from csat.runs.folder import RunFolder
from csat.storage import files
from csat.tasks import Task


@dataclass(frozen=True, kw_only=True)
class JudgedRun:
    """One finished run of finetune.py, or a classifier that pretrain.py has distilled.

    Attributes:
        config: Its config.yaml.
        evaluation: Its evaluation.json; of a distilled classifier, as much of it as there is.
        predictions: Of the split that is compared.
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


def read_run(uri: str, split: str | None) -> JudgedRun:
    """A run folder.

    Args:
        split: Whose predictions are wanted; None: none are.

    Raises:
        ConfigError: no run folder, a run that is not finished, one of another verb, or one without this split.
    """
    folder = RunFolder(uri)
    if not files.exists(folder.path("config.yaml")):
        raise ConfigError(f"{uri} is no run folder: there is no config.yaml in it; give the run_folder of a finetune.py run")
    status = folder.read_json("status.json") or {"state": "not begun"}
    if status["state"] != "finished":
        why = f" ({status['error']})" if status.get("error") else ""
        raise ConfigError(f"the run {uri} is not finished, it is {status['state']}{why}: repeat its command to resume it")
    config = yaml.safe_load(files.read_bytes(folder.path("config.yaml")))
    evaluation = folder.read_json("evaluation.json") or {}
    if "task" not in evaluation and "slides" in config:
        return _distilled(folder, config, split)
    if "task" not in evaluation:
        raise ConfigError(f"{uri} is a run of another verb: evaluate.py compares what finetune.py has trained")
    predictions = None
    if split is not None:
        path = folder.path("predictions", f"{split}.parquet")
        if not files.exists(path):
            names = [files.base_name(name).removesuffix(".parquet") for name in files.list_dir(folder.path("predictions"))]
            raise ConfigError(f"the run {uri} was not judged on a {split} part; it has: {', '.join(names) or 'none'}")
        predictions = read_predictions(path)
    return JudgedRun(uri=folder.uri, config=config, evaluation=evaluation, predictions=predictions)


def _distilled(folder: RunFolder, config: dict[str, Any], split: str | None) -> JudgedRun:
    """A run of pretrain.py whose student has its teacher's classes (method resolution). It has seen no labelled image.

    Raises:
        ConfigError: it has no classes, or predictions of a split are wanted.
    """
    exported = read_model_config(exported_folder(folder.uri))
    heads = [head for head in exported["responses"] if head["name"] == "label" and head["channel_names"]]
    if not heads:
        names = ", ".join(head["name"] for head in exported["responses"])
        raise ConfigError(
            f"{folder.uri} is a run of pretrain.py, and its student ({names}) tells no classes apart: evaluate.py compares "
            "what finetune.py has trained, and what a teacher from finetune.py has taught with method.name resolution"
        )
    if split is not None:
        raise ConfigError(
            f"{folder.uri} is a run of pretrain.py, which knows no labelled images: give some to judge it on, as in "
            "data.sets.NAME FOLDER"
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
