"""The model of a prediction: opened, described, and how its tiles have to overlap."""

import math
import os
import re
from dataclasses import asdict

from csat.errors import ConfigError, TeacherError
from csat.prediction.answers import Answers
from csat.prediction.windows import margin_of
from csat.tasks import Task
from teachers.answers import open_answers
from workflows.prediction.config import AnswersConfig, PredictConfig
from workflows.prediction.description import Description

NUCLEUS_OVERLAP_UM = 20.0  # of what neighbouring tiles answer: two diameters of a nucleus


def open_model(model: AnswersConfig, *, tile_px: int | None, mpp: float | None, device: str) -> Answers:
    """The model, loaded. Raises ConfigError, TeacherError."""
    try:
        return open_answers(
            model.name,
            weights=model.weights,
            options=model.options or None,
            tile_px=tile_px,
            mpp=mpp,
            device=device,
            precision=model.precision,
            threads=int(os.environ.get("OMP_NUM_THREADS", "0")) or None,  # Ray sets it to the CPUs of an actor
        )
    except (ConfigError, TeacherError) as error:  # a teacher's weights and options are here the model's
        raise type(error)(re.sub(r"\bteacher\.(weights|options)\b", r"model.\1", str(error))) from error


def describe(config: PredictConfig) -> Description:
    """Loads the model on the CPU, looks at it, and lets it go. Raises ConfigError, TeacherError."""
    return description_of(open_model(config.model, tile_px=config.data.tile_px, mpp=config.data.mpp, device="cpu"))


def description_of(answers: Answers) -> Description:
    """What is known of a loaded model. Raises ConfigError: it finds nuclei, and nothing says how large they are."""
    return Description(
        specs=answers.specs,
        tile_px=answers.tile_px,
        mpp=answers.mpp,
        task=answers.task,
        classes=answers.classes,
        overlap_px=overlap_px(answers),
        about=asdict(answers.about),
    )


def overlap_px(answers: Answers) -> int:
    """By how much neighbouring tiles have to overlap, tile pixels. Raises ConfigError, see `description_of`."""
    dense = [spec for spec in answers.specs if spec.is_dense]
    if answers.task is Task.NUCLEI:
        if answers.mpp is None:
            raise ConfigError(
                f"{answers.about.name} does not say at which resolution it was trained, and nuclei have a size: set data.mpp, "
                "um/px"
            )
        overlap = 2 * max(spec.crop_px for spec in dense) + math.ceil(NUCLEUS_OVERLAP_UM / answers.mpp - 1e-6)
        if overlap >= answers.tile_px:
            raise ConfigError(
                f"tiles of {answers.tile_px} px at {answers.mpp:g} um/px have to overlap by {overlap} px, so that each "
                "nucleus is whole in one of them, and nothing is left between: set a larger data.tile_px"
            )
        return overlap
    return 2 * margin_of(dense, answers.tile_px) if dense else 0
