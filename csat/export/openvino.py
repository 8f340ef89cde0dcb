"""An ONNX file in OpenVINO's form, for Intel's CPUs and GPUs: model.openvino.xml and .bin, weights in float16."""

import os
from pathlib import Path

import numpy as np

from csat.errors import ConfigError
from csat.export.onnx import INPUT, normalised
from csat.prediction.answers import ModelAnswers

NAME = "model.openvino.xml"
MOST_DIFFERENCE = 2e-2  # float16 weights


def check_installed() -> None:
    """Raises ConfigError where the package is missing."""
    try:
        import openvino  # noqa: F401
    except ImportError as error:
        raise ConfigError("openvino true needs the package openvino: pip install openvino") from error


def convert(source: Path, folder: Path, answers: ModelAnswers, tiles: np.ndarray) -> str:
    """Write it beside the ONNX file and compare it with the model on real tiles. Returns what was found, in words.

    Raises:
        ConfigError: it says something else.
    """
    os.environ.setdefault("OPENVINO_TELEMETRY", "0")
    import openvino

    openvino.save_model(openvino.convert_model(source), folder / NAME)
    compiled = openvino.Core().compile_model(folder / NAME, "CPU")
    said = compiled({INPUT: normalised(answers, tiles).numpy()})
    expected = answers.answer(tiles)
    apart = max(float(np.abs(said[spec.name] - expected[spec.name]).max()) for spec in answers.specs)
    if apart > MOST_DIFFERENCE:
        raise ConfigError(f"the OpenVINO file does not say what the model says: {apart:.1e} apart. Leave openvino out")
    return f"for OpenVINO, weights in float16: at most {apart:.1e} apart on {len(tiles)} tiles"
