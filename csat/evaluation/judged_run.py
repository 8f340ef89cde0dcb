"""A finished run as an evaluation takes it: what it is, how it was trained, and its predictions."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from csat.errors import ConfigError
from csat.evaluation.predictions import Predictions, read_predictions
from csat.evaluation.scores import MAIN_METRIC
from csat.model.files import CONFIG
from csat.prediction.answers import Answers
from csat.prediction.opening import ONNX
from csat.runs.folder import RunFolder
from csat.shipped import also, is_shipped
from csat.storage import files
from csat.tasks import Task

TEACHER = "teacher"  # in the place of what a model started from


@dataclass(frozen=True, kw_only=True)
class JudgedRun:
    """One finished run of finetune.py, or anything else that answers, see `judged_answers`.

    Attributes:
        uri: Of the run; what tables call it.
        config: Its config.yaml; of what is no run, how it sees images.
        evaluation: Its evaluation.json; of what is no run, as much of it as there is.
        predictions: Of the split that is compared.
        answers: What answers, where it has been opened.
        folds: The runs that it was joined of, see `csat.evaluation.folds`; empty where it is one run.
    """

    uri: str
    config: dict[str, Any] = field(repr=False)
    evaluation: dict[str, Any] = field(repr=False)
    predictions: Predictions | None = field(default=None, repr=False)
    answers: Answers | None = field(default=None, repr=False)
    folds: tuple["JudgedRun", ...] = field(default=(), repr=False)

    @property
    def task(self) -> Task:
        return Task(self.evaluation["task"])

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.evaluation["classes"])

    @property
    def sees(self) -> str:
        """How it sees images, in words."""
        view = self.config.get("data", {})
        if "tile_px" not in view:
            return ""  # a run of an earlier version
        whole = "the whole image as " if view.get("fit") == "resize" else ""
        at = f" at {view['mpp']:g} um/px" if view.get("mpp") and not whole else ""
        return f"{whole}{view['tile_px']} px{at}"


def read_run(uri: str, split: str | None) -> JudgedRun:
    """A run folder.

    Args:
        split: Whose predictions are wanted; None: none are.

    Raises:
        ConfigError: no run folder, a run that is not finished, one of another verb, or one without this split.
    """
    folder = RunFolder(uri)
    if not files.exists(folder.path("config.yaml")):
        what = "give the run_folder of a finetune.py run"
        raise ConfigError(f"{uri} is no run folder: there is no config.yaml in it; {what}{also()}")
    status = folder.read_json("status.json") or {"state": "not begun"}
    if status["state"] != "finished":
        why = f" ({status['error']})" if status.get("error") else ""
        raise ConfigError(f"the run {uri} is not finished, it is {status['state']}{why}: repeat its command to resume it")
    config = yaml.safe_load(files.read_bytes(folder.path("config.yaml")))
    evaluation = folder.read_json("evaluation.json") or {}
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


def judged_answers(
    answers: Answers,
    uri: str,
    *,
    fit: str | None = None,
    model: Mapping[str, Any] | None = None,
    seed: int | None = None,
    cost: Mapping[str, Any] | None = None,
) -> JudgedRun:
    """Whatever answers, as it is judged on labelled images: through windows of its own size and resolution.

    Args:
        uri: What it is called in tables.
        fit: How it sees images, as `LabelledConfig` has it; None: through windows.
        model: As evaluation.json has it: `name`, `init`, `from_run`.
        seed: That it was trained with.
        cost: As evaluation.json has it, as far as it is known.

    Raises:
        ConfigError: it says nothing that labels could be compared with.
    """
    if answers.task is None:
        said = ", ".join(spec.name for spec in answers.specs) or "nothing"
        raise ConfigError(
            f"{uri} answers {said}, which no labels can be compared with: nuclei need np and hv, a segmentation needs mask, a "
            "classification label"
        )
    view = {"tile_px": answers.tile_px, "mpp": answers.mpp, "fit": fit or "crop"}
    evaluation = {
        "task": answers.task,
        "classes": list(answers.classes),
        "metric": MAIN_METRIC[answers.task],
        "model": {"name": answers.about.name, **(model or {})},
        "seed": seed,
        "cost": dict(cost or {}),
    }
    seen = {"data": view, "test_time_views": 1, "train": {"precision": "float32"}}
    return JudgedRun(uri=uri, config=seen, evaluation=evaluation, answers=answers)


def is_finetuned(uri: str) -> bool:
    """Whether a place is a run folder, and not one of a pretraining: `read_run` says all about it. Else it only answers."""
    if is_shipped(uri):
        return False
    folder = RunFolder(uri)
    if not files.exists(folder.path("config.yaml")):
        return not (uri.endswith(ONNX) or files.exists(folder.path(CONFIG)))
    return "slides" not in yaml.safe_load(files.read_bytes(folder.path("config.yaml")))
