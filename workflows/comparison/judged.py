"""What is judged, opened: a finished run of finetune.py by its folder; students, models and teachers by what they answer."""

from typing import Any

import torch
import yaml
from torch import nn

from csat.errors import ConfigError
from csat.evaluation.judged_run import TEACHER, JudgedRun, is_finetuned, judged_answers, read_run
from csat.model.cost import count_cost
from csat.model.files import exported_folder, read_model_config
from csat.prediction.answers import Answers, ModelAnswers
from csat.prediction.opening import ONNX
from csat.runs.folder import RunFolder
from csat.storage import files
from teachers.answers import TeacherAnswers, open_answers
from workflows.comparison.config import AnswererConfig, Judged


def read_judged(judged: Judged, split: str | None, *, device: str) -> JudgedRun:
    """What is judged.

    Args:
        judged: A place, or settings.
        split: Whose predictions are wanted; None: none are, and other data will be judged on.
        device: Where models run.

    Raises:
        ConfigError, TeacherError: there is no such thing, it says nothing that can be judged, or it has no predictions.
    """
    if isinstance(judged, str) and is_finetuned(judged):
        return read_run(judged, split)
    if isinstance(judged, str):
        judged = AnswererConfig(model=judged)
    if split is not None:
        raise ConfigError(
            f"{judged.name} is no run of finetune.py and knows no labelled images: give some to judge it on, as in "
            "data.sets.NAME FOLDER"
        )
    answers = open_answers(
        judged.teacher or judged.model,
        weights=judged.weights,
        options=judged.options,
        tile_px=judged.tile_px,
        mpp=judged.mpp,
        device=device,
    )
    return judged_answers(answers, judged.name, cost=_cost(answers), **_about(judged))


def _about(judged: AnswererConfig) -> dict[str, Any]:
    """What is known beyond the answers: the fit and, of a pretraining, where its figures of fidelity are."""
    place = judged.model
    if place is None:
        return {"model": {"name": judged.teacher, "init": TEACHER, "weights": judged.weights}}
    if place.endswith(ONNX):
        return {}
    about: dict[str, Any] = {"fit": read_model_config(exported_folder(place))["metadata"].get("fit")}
    folder = RunFolder(place)
    if files.exists(folder.path("config.yaml")):
        config = yaml.safe_load(files.read_bytes(folder.path("config.yaml")))
        about["model"] = {"name": config["student"]["backbone"], "init": "random", "from_run": folder.uri}
        about["seed"] = config["train"]["seed"]
    return about


def _cost(answers: Answers) -> dict[str, Any]:
    """Parameters and multiply-accumulates of one window, of what is a network that torch can count."""
    if isinstance(answers, ModelAnswers):
        input_px = answers.tile_px // answers.model.downsample
        return {"input_px": input_px, **count_cost(answers.model, (1, 3, input_px, input_px))}
    if not isinstance(answers, TeacherAnswers):
        return {}
    networks = [each for each in vars(answers.teacher).values() if isinstance(each, nn.Module)]
    if not networks or isinstance(networks[0], torch.jit.ScriptModule):
        return {"params": sum(each.numel() for each in networks[0].parameters())} if networks else {}
    input_px = answers.tile_px
    return {"input_px": input_px, **count_cost(networks[0], (1, 3, input_px, input_px))}
