"""A model as one ONNX file that answers tiles in onnxruntime, without torch and without this package.

Input `images`, float32 `[batch, 3, tile_px, tile_px]`: RGB, `(pixel / 255 - mean) / std`. Outputs by name, finished:
probabilities in [0, 1], maps with a value for every pixel of the tile less their crop. What a reader has to know stands in the
metadata:

    name, licence, sha256              who it is (the hash is of the weights that it was made from)
    mpp, tile_px, mean, std            the tiles that it takes; JSON
    classes, responses                 what it tells apart, and each output as `ResponseSpec` describes it; JSON
"""

import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from csat.errors import ConfigError
from csat.prediction.answers import ModelAnswers, finish
from csat.prediction.onnx_answers import OnnxAnswers
from csat.responses import Kind

NAME, INPUT = "model.onnx", "images"
SCOPES = "pkg.torch.onnx.name_scopes"  # of a node: the path of the module that it was made of
BATCHES = (1, 2, 7)  # that a file is tried with
MOST_DIFFERENCE = 1e-4  # in float32, of values up to 1; of larger ones as much of the largest
LEAST_AGREEMENT = 0.999  # share of the places where both decide alike


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far two ways to compute the same answers lie apart.

    Attributes:
        difference: Largest absolute difference; of an output with values beyond 1 in parts of its largest value.
        mean_difference: The mean of it.
        decisions: Share of the places where both decide alike: the same most likely channel, the same side of one half.
        tiles: How many were compared.
    """

    difference: float
    mean_difference: float
    decisions: float
    tiles: int

    def __str__(self) -> str:
        return f"at most {self.difference:.1e} apart, {self.decisions:.2%} of decisions alike, on {self.tiles} tiles"


class Finished(nn.Module):
    """Normalised images in, the finished answers of a model out, as a tuple in the order of its specs."""

    def __init__(self, answers: ModelAnswers):
        super().__init__()
        self.model, self.tile_px = answers.model, answers.tile_px
        self.raw = answers.raw
        mean, std = normalisation_of(answers)
        self.register_buffer("tile_mean", 255 * torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("tile_std", 255 * torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        said = self.model(self.model.see(images * self.tile_std + self.tile_mean))
        return tuple(finish(said[spec.name], spec, self.tile_px) for spec in self.raw)


def normalisation_of(answers: ModelAnswers) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of the images, in [0, 1], that a model has in itself; 0 and 1 where it has none."""
    named = [getattr(answers.model, name, None) for name in ("mean", "std")]
    return tuple(
        [default] * 3 if values is None else [round(value, 6) for value in values.flatten().tolist()]
        for values, default in zip(named, (0.0, 1.0), strict=True)
    )


def normalised(answers: ModelAnswers, tiles: np.ndarray) -> Tensor:
    """float32 `[B, 3, H, W]` as the exported files take them."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in normalisation_of(answers))
    return (torch.tensor(tiles).permute(0, 3, 1, 2).float() / 255 - mean) / std


def export_onnx(answers: ModelAnswers, path: Path) -> None:
    """Write a model's ONNX file; it is not yet compared: see `compare`.

    Raises:
        ConfigError: torch cannot express the model so.
    """
    example = torch.zeros(2, 3, answers.tile_px, answers.tile_px)
    names = [spec.name for spec in answers.specs]
    finished = Finished(answers).eval().cpu()
    with torch.inference_mode():
        finished(example)  # what is computed once and kept (`align`) is real by the time it is traced
    logging.getLogger("onnxscript").setLevel(logging.WARNING)  # it tells of every constant that it folds
    logging.getLogger("onnx_ir").setLevel(logging.WARNING)
    try:
        program = torch.onnx.export(
            finished,
            (example,),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
            external_data=False,
            input_names=[INPUT],
            output_names=names,
            verbose=False,
        )
    except Exception as error:  # torch.onnx raises what it likes: the cause stays attached
        said = (str(error).splitlines() or [""])[0]
        raise ConfigError(f"{answers.about.name} cannot be written as ONNX ({type(error).__name__}: {said})") from error
    model = program.model_proto
    mean, std = normalisation_of(answers)
    described = {
        "name": answers.about.name,
        "licence": answers.about.licence,
        "sha256": answers.about.sha256,
        "mpp": json.dumps(answers.mpp),
        "tile_px": json.dumps(answers.tile_px),
        "mean": json.dumps(mean),
        "std": json.dumps(std),
        "classes": json.dumps(answers.classes),
        "responses": json.dumps([asdict(spec) for spec in answers.specs]),
    }
    del model.metadata_props[:]
    _forget_how_it_was_made(model)
    onnx.helper.set_model_props(model, described)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def check_onnx(answers: ModelAnswers, path: Path, tiles: np.ndarray) -> Agreement:
    """Compare a float32 file with the model that it was made of, in onnxruntime, in several batch sizes.

    Args:
        tiles: uint8 `[N, tile_px, tile_px, 3]`, N >= 7, real ones.

    Raises:
        ConfigError: they differ by more than rounding.
    """
    found = compare(answers, OnnxAnswers(str(path), device="cpu"), tiles)
    if found.difference > MOST_DIFFERENCE or found.decisions < LEAST_AGREEMENT:
        raise ConfigError(f"the ONNX file does not say what the model says: {found}. It was not written")
    return found


def compare(one: ModelAnswers, other: OnnxAnswers, tiles: np.ndarray) -> Agreement:
    """What two models say of the same tiles; the other is shown them in batches of 1, 2 and 7."""
    differences, means, alike, places = [], [], 0, 0
    for first, second in _answers(one, other, tiles):
        for spec in one.specs:
            a, b = first[spec.name], second[spec.name]
            apart = np.abs(a - b) / max(1.0, float(np.abs(a).max()))
            differences.append(float(apart.max()))
            means.append(float(apart.mean()))
            if spec.kind == Kind.PROBABILITY:
                same = (a >= 0.5) == (b >= 0.5) if spec.channels == 1 else a.argmax(1) == b.argmax(1)
                alike, places = alike + int(same.sum()), places + same.size
    decisions = alike / places if places else 1.0
    return Agreement(difference=max(differences), mean_difference=float(np.mean(means)), decisions=decisions, tiles=len(tiles))


def _answers(one: ModelAnswers, other: OnnxAnswers, tiles: np.ndarray) -> Iterator[tuple[dict, dict]]:
    for batch in _batches(len(tiles)):
        yield one.answer(tiles[batch]), other.answer(tiles[batch])


def _batches(number: int) -> Iterable[slice]:
    start, turn = 0, 0
    while start < number:
        size = BATCHES[turn] if turn < len(BATCHES) else BATCHES[-1]
        yield slice(start, min(start + size, number))
        start, turn = start + size, turn + 1


def _forget_how_it_was_made(model: onnx.ModelProto) -> None:
    """torch writes stack traces with the paths of this machine: only the path of a node's module stays."""
    graphs = [model.graph, *model.functions]
    for node in [node for graph in graphs for node in graph.node]:
        kept = [(entry.key, entry.value) for entry in node.metadata_props if entry.key == SCOPES]
        del node.metadata_props[:]
        for key, value in kept:
            node.metadata_props.add(key=key, value=value)
        node.doc_string = ""
    for value in [*model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer]:
        del value.metadata_props[:]
    del model.graph.metadata_props[:]
