"""A tile classifier as a WSInfer bundle, which QuPath's WSInfer extension opens too: torchscript_model.pt and config.json.

The network answers logits `[N, C]`: QuPath and WSInfer apply the softmax themselves. Its images are those of the ONNX file and
of timm: RGB, `(pixel / 255 - mean) / std`. config.json holds WSInfer's keys beside timm's and our own; each reader takes its
own. Specification: wsinfer-zoo 0.6.3, `model-config.schema.json`, version 1.0.

Writing TorchScript is deprecated in torch 2.15 and ends with Python 3.14; it is what QuPath reads (0.7 with PyTorch 2.7.1).
"""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from csat.errors import ConfigError
from csat.export.onnx import MOST_DIFFERENCE, normalisation_of, normalised
from csat.prediction.answers import ModelAnswers
from csat.tasks import Task

NAME = "torchscript_model.pt"
SPEC_VERSION = "1.0"
LABEL = "label"  # the response that a classifier answers


class Logits(nn.Module):
    """Normalised images in, a classifier's logits `[N, C]` out."""

    def __init__(self, answers: ModelAnswers):
        super().__init__()
        self.model = answers.model
        self.name = next(raw.name for raw, spec in zip(answers.raw, answers.specs, strict=True) if spec.name == LABEL)
        mean, std = normalisation_of(answers)
        self.register_buffer("tile_mean", 255 * torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("tile_std", 255 * torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return self.model(self.model.see(images * self.tile_std + self.tile_mean))[self.name]


def why_no_bundle(answers: ModelAnswers, config: dict[str, Any]) -> str | None:
    """Why a model cannot be a WSInfer bundle; None where it can.

    Args:
        config: Of its exported folder.
    """
    if answers.task != Task.CLASSIFICATION:
        return "WSInfer classifies tiles, and this model does something else: predict.py writes its maps for QuPath"
    if answers.mpp is None:
        return "WSInfer has to know the resolution, and this model was trained on images stretched to its tile"
    if config.get("architecture") and config["num_classes"] != len(answers.classes):
        return "timm has no place for this classifier, and timm's config.json would contradict WSInfer's"
    return None


def bundle_config(answers: ModelAnswers) -> dict[str, Any]:
    """WSInfer's keys of config.json, without the architecture."""
    mean, std = normalisation_of(answers)
    return {
        "spec_version": SPEC_VERSION,
        "num_classes": len(answers.classes),
        "patch_size_pixels": answers.tile_px,
        "spacing_um_px": answers.mpp,
        "class_names": list(answers.classes),
        "transform": [
            {"name": "Resize", "arguments": {"size": answers.tile_px}},
            {"name": "ToTensor"},
            {"name": "Normalize", "arguments": {"mean": mean, "std": std}},
        ],
    }


@torch.inference_mode()
def export_torchscript(answers: ModelAnswers, path: Path, tiles: np.ndarray) -> float:
    """Trace a classifier and compare it, loaded again, with the model, in batches of 1 and 7.

    Args:
        tiles: uint8 `[N, tile_px, tile_px, 3]`, N >= 7, real ones.

    Returns:
        The largest difference of its probabilities.

    Raises:
        ConfigError: it says something else.
    """
    images = normalised(answers, tiles)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the module's text says why it is written all the same
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # of checks of the tile's size, which is fixed
        traced = torch.jit.trace(Logits(answers).eval().cpu(), images[:2])
        torch.jit.save(traced, str(path))
        loaded = torch.jit.load(str(path))
    expected = torch.from_numpy(answers.answer(tiles)[LABEL])
    said = torch.cat([loaded(images[:1]), *(loaded(images[start : start + 7]) for start in range(1, len(images), 7))])
    difference = (said.softmax(1) - expected).abs().max().item()
    if difference > MOST_DIFFERENCE:
        raise ConfigError(f"the TorchScript file does not say what the model says: {difference:.1e} apart. It was not written")
    return difference
