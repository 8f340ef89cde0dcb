"""Opens whatever answers: every teacher, and what was trained or exported here (`csat.prediction.opening`).

python -c "from teachers.answers import open_answers; print(open_answers('stain', tile_px=256, mpp=0.5).specs)"
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from csat.errors import ConfigError
from csat.prediction.answers import About, Answers, classes_of, finished, is_answer, task_of
from csat.prediction.opening import ONNX
from csat.prediction.opening import open_answers as open_trained
from csat.responses import Kind, ResponseSpec, TeacherSpec
from csat.shipped import also, is_shipped
from csat.storage import files
from teachers.contract import Teacher
from teachers.registry import RUN, TEACHERS, build_options, load_teacher

TILE_PX = 256  # edge of the tiles of a teacher that takes any, or the nearest that it takes


class TeacherAnswers:
    """A teacher; see `csat.prediction.answers.Answers`. What it says travels as float16, as in a pretraining.

    Args:
        teacher: Loaded.
        tile_px: Edge of the tiles; None: 256, or the nearest that it takes.
        mpp: um/px of the tiles; None: what it was made for.
        accept_any_mpp: Another resolution than it was made for is meant.

    Raises:
        ConfigError: tiles that it does not take.
    """

    def __init__(
        self, teacher: Teacher, *, tile_px: int | None = None, mpp: float | None = None, accept_any_mpp: bool = False
    ):
        spec = teacher.spec
        self.tile_px, self.mpp = tile_px or _nearest_px(spec), mpp or spec.mpp
        spec.check_view(tile_px=self.tile_px, mpp=self.mpp, accept_any_mpp=accept_any_mpp)
        self.teacher = teacher
        self._said = [response for response in spec.responses if is_answer(response)]
        self.specs = tuple(map(finished, self._said))
        self.task, self.classes = task_of(self.specs), classes_of(self.specs)
        self.about = About(name=spec.name, source=spec.source, licence=spec.licence, sha256=spec.weights_sha256)

    def answer(self, tiles: np.ndarray) -> dict[str, np.ndarray]:
        said = self.teacher.respond(tiles)
        return {spec.name: _finish(said[spec.name], spec) for spec in self._said}


def open_answers(
    name: str,
    *,
    weights: str | None = None,
    options: Mapping[str, Any] | None = None,
    tile_px: int | None = None,
    mpp: float | None = None,
    device: str = "cpu",
    precision: str = "float32",
    threads: int | None = None,
) -> Answers:
    """Whatever answers, ready to be shown tiles.

    Args:
        name: A teacher's name (`stain`, `hovernet`, `timm`, …); or a place: run folder, exported folder, ONNX file, local or
            in a bucket; or a model that comes with the package.
        weights: Of a teacher that needs them.
        options: Of a teacher.
        tile_px: Edge of the tiles; None: as it was trained, or 256 for a teacher that takes any.
        mpp: um/px of the tiles; None: as it was trained. Of a trained model, only where it has no resolution of its own.
        device: As torch names it.
        precision: float32, or bfloat16 where the model can.
        threads: Of an ONNX session on the CPU.

    Raises:
        ConfigError, TeacherError: there is no such thing, or it does not take such tiles; lists what there is.
    """
    if name in TEACHERS and name != RUN:
        return _open_teacher(name, weights, options, tile_px=tile_px, mpp=mpp, device=device, precision=precision)
    if weights or options:
        raise ConfigError(
            f"weights and options are a teacher's ({', '.join(_names())}), and {name} has its own: leave them out"
        )
    if not name.endswith(ONNX) and not files.is_dir(name) and not is_shipped(name):
        raise ConfigError(
            f"there is no model {name!r}: expected a run folder, an exported folder, an ONNX file (local or s3://…), or one "
            f"of the teachers {', '.join(_names())}{also()}"
        )
    answers = open_trained(name, tile_px=tile_px, device=device, precision=precision, threads=threads)
    if mpp is not None and answers.mpp is None:
        answers.mpp = mpp
    elif mpp is not None and not 0.9 < mpp / answers.mpp < 1.1:
        raise ConfigError(f"{name} was trained at {answers.mpp:g} um/px, not at {mpp:g}: leave mpp out")
    return answers


def _open_teacher(
    name: str,
    weights: str | None,
    options: Mapping[str, Any] | None,
    *,
    tile_px: int | None,
    mpp: float | None,
    device: str,
    precision: str,
) -> TeacherAnswers:
    options = dict(options or {})
    settings = build_options(name, options)
    if name == "stain" and mpp is not None:
        options.setdefault("mpp", mpp)  # its lengths follow the resolution
    if hasattr(settings, "precision"):
        options.setdefault("precision", precision)
    return TeacherAnswers(load_teacher(name, weights, options, device=device), tile_px=tile_px, mpp=mpp)


def _finish(values: np.ndarray, spec: ResponseSpec) -> np.ndarray:
    """A response at every pixel of what it covers, with probabilities in the place of logits; float32."""
    said = torch.from_numpy(values).float()
    if spec.is_dense and spec.stride_px > 1:
        said = F.interpolate(said, scale_factor=spec.stride_px, mode="bilinear", align_corners=False)
    return (said.softmax(1) if spec.kind == Kind.LOGITS else said).numpy()


def _nearest_px(spec: TeacherSpec) -> int:
    return TILE_PX if spec.tile_px is None else min(spec.tile_px, key=lambda size: abs(size - TILE_PX))


def _names() -> list[str]:
    return [name for name in TEACHERS if name != RUN]
