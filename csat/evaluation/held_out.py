"""The last stage of the stream over held-out tiles: the student against the teacher, and both against known nuclei."""

import io
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from csat.columns import OK, POSITION, RESPONSE_PREFIX, STATUS, STUDENT_TILE, TILE, UNANSWERED_PREFIX, rows_by_size, take_rows
from csat.evaluation.fidelity import compare_masks, measure
from csat.model.files import load_exported
from csat.panel import split_name
from csat.responses import Kind, ResponseSpec
from csat.slides.synthetic import read_truth
from csat.views.grid import align

PICTURE = "picture"  # column: .npz bytes of one tile with both answers, b"" for tiles that will not be shown
PICTURE_PX = 1024  # a picture's longer edge is less than twice this
SLIDE = "slide"
FAITHFUL = "student_vs_teacher."  # prefix of the figures of `measure`
KNOWN = {"student": "student_vs_known.nuclei.counts", "teacher": "teacher_vs_known.nuclei.counts"}


def answered_column(teacher: str | None) -> str:
    """Of one of several teachers: whether it has answered the tile."""
    return f"answered.{teacher}"


class FidelityStage:
    """Rows with pixels and responses in, figures per tile out.

    Args:
        student_uri: Folder of an exported student: what is measured is what the user gets.
        tile_px: Edge of the tiles; of whole images, measured in groups of one size, what their edges are multiples of.
        num_pictures: Tiles (the first of the plan, which is shuffled) that come back as pictures.
        device: Where the student runs.
    """

    def __init__(self, student_uri: str, *, tile_px: int, num_pictures: int, device: str = "cpu"):
        self.device = torch.device(device)
        self.student = load_exported(student_uri).to(self.device).eval()
        self.tile_px = tile_px
        self.num_pictures = num_pictures

    def __call__(self, columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Columns: `slide`, `position`, every figure of `measure` after `FAITHFUL`, the two of `KNOWN`, `picture`.

        Tiles that could not be read or answered leave no row. Where a tile's nuclei are not known, its `KNOWN` counts are -1.
        Of several teachers each has a column `answered_column`: where it is false, figures of that teacher mean nothing.
        """
        groups = rows_by_size(columns[TILE], np.flatnonzero(columns[STATUS] == OK))
        if not groups:
            groups, count = [np.empty(0, np.int64)], len(columns[TILE])
            responses = {RESPONSE_PREFIX + spec.name: spec.shape(self.tile_px) for spec in self.student.responses}
            shapes = {TILE: (self.tile_px, self.tile_px, 3), **responses}
            columns = {**columns, **{name: np.zeros((count, *shape), np.uint8) for name, shape in shapes.items()}}
        by_size = [self._measure({name: take_rows(column, rows) for name, column in columns.items()}) for rows in groups]
        return {name: np.concatenate([each[name] for each in by_size]) for name in by_size[0]}

    def _measure(self, columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Tiles of one size, all of them good."""
        size = columns[TILE].shape[1:3]
        out = {SLIDE: columns[SLIDE], POSITION: columns[POSITION]}
        for name in (name.removeprefix(UNANSWERED_PREFIX) for name in columns if name.startswith(UNANSWERED_PREFIX)):
            out[answered_column(name)] = np.asarray(columns[UNANSWERED_PREFIX + name] == "", bool)
        predictions = self._predict(columns[TILE], columns.get(STUDENT_TILE))
        specs = self.student.responses
        responses = {spec.name: torch.from_numpy(columns[RESPONSE_PREFIX + spec.name].astype(np.float32)) for spec in specs}
        for spec in specs:
            figures = measure(spec, predictions[spec.name], responses[spec.name])
            out.update({FAITHFUL + name: values for name, values in figures.items()})
        nucleus = next((spec for spec in specs if _is_mask(spec)), None)
        has_said = {spec.name: _has_said(spec, columns) for spec in specs}
        truths = self._known_nuclei(columns) if size[0] == size[1] == self.tile_px else [None] * len(columns[TILE])
        for who, answers in (("student", predictions), ("teacher", responses)):
            out[KNOWN[who]] = np.full((len(columns[TILE]), 4), -1, dtype=np.int64)
            for index, truth in enumerate(truths):
                if truth is not None and nucleus is not None and has_said[nucleus.name][index]:
                    answer = answers[nucleus.name][index]
                    answer = answer.sigmoid() if who == "student" else answer
                    known = _on_grid(truth, nucleus, self.tile_px)
                    out[KNOWN[who]][index] = compare_masks(answer, known[None])[0]
        said = [[spec for spec in specs if has_said[spec.name][index]] for index in range(len(truths))]
        out[PICTURE] = np.array(
            [
                _picture(index, columns, said[index], predictions, responses, truths[index])
                if position < self.num_pictures
                else b""
                for index, position in enumerate(columns[POSITION])
            ],
            dtype=object,
        )
        return out

    @torch.inference_mode()
    def _predict(self, tiles: np.ndarray, student_tiles: np.ndarray | None) -> dict[str, torch.Tensor]:
        size = tiles.shape[1:3]
        if not len(tiles):
            return {spec.name: torch.zeros(0, *spec.shape(size)) for spec in self.student.responses}
        shown = self._to_device(tiles if student_tiles is None else student_tiles)
        raw = self.student(self.student.see(shown, is_small=student_tiles is not None))
        return {spec.name: align(raw[spec.name], spec, size).float().cpu() for spec in self.student.responses}

    def _to_device(self, tiles: np.ndarray) -> torch.Tensor:
        """uint8 `[B, 3, H, W]`."""
        own = np.require(tiles, requirements=("C", "W"))  # rows of the object store are read-only views: then a copy
        return torch.from_numpy(own).to(self.device).permute(0, 3, 1, 2)

    def _known_nuclei(self, columns: dict[str, np.ndarray]) -> list[np.ndarray | None]:
        """bool `[tile_px, tile_px]` where the slide's nuclei are known."""
        truths = []
        for slide, x_px, y_px, level, read_px in zip(
            *(columns[name] for name in (SLIDE, "x_px", "y_px", "level", "read_px")), strict=True
        ):
            truth = read_truth(str(slide), int(x_px), int(y_px), int(read_px)) if level == 0 else None
            truths.append(None if truth is None else truth > 0)
        return truths


class FidelityStages:
    """Several students on the same rows: the columns of `FidelityStage` for each, `rows_of` of them are one student's.

    Args:
        students: Name → folder of the exported student.
        options: Of each `FidelityStage`.
    """

    def __init__(self, students: Mapping[str, str], **options: Any):
        self.stages = {name: FidelityStage(uri, **options) for name, uri in students.items()}

    def __call__(self, columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        answered = {name: stage(columns) for name, stage in self.stages.items()}
        return {_own(name, column): values for name, found in answered.items() for column, values in found.items()}


def rows_of(rows: Iterable[Mapping[str, Any]], student: str) -> list[dict[str, Any]]:
    """One student's part of the rows of `FidelityStages`, as `FidelityStage` would have made them."""
    prefix = _own(student, "")
    return [{name.removeprefix(prefix): value for name, value in row.items() if name.startswith(prefix)} for row in rows]


def _own(student: str, column: str) -> str:
    return f"{student}/{column}"  # no student's name has a slash


def _is_mask(spec: ResponseSpec) -> bool:
    return spec.kind == Kind.PROBABILITY and spec.channels == 1 and spec.is_dense


def _on_grid(mask: np.ndarray, spec: ResponseSpec, tile_px: int) -> torch.Tensor:
    """A mask of the whole tile, on the grid of a response: float `[1, n, n]`."""
    full = torch.from_numpy(mask.astype(np.float32))[None, None]
    if full.shape[-1] != tile_px:
        full = F.interpolate(full, size=(tile_px, tile_px), mode="area")
    crop = spec.crop_px
    inner = full[..., crop : tile_px - crop, crop : tile_px - crop]
    return F.avg_pool2d(inner, spec.stride_px)[0] if spec.stride_px > 1 else inner[0]


def _has_said(spec: ResponseSpec, columns: dict[str, np.ndarray]) -> np.ndarray:
    """bool `[B]`: whether there is an answer of this response's teacher, of which there may be several."""
    why = columns.get(UNANSWERED_PREFIX + split_name(spec.name)[0])
    return np.ones(len(columns[TILE]), bool) if why is None else np.asarray(why == "", bool)


def _picture(index, columns, specs, predictions, responses, truth) -> bytes:
    arrays = {"tile": columns[TILE][index]}
    shrink = max(1, max(arrays["tile"].shape) // PICTURE_PX)  # a whole image may have 50 MB
    if shrink > 1:
        arrays["tile"] = arrays["tile"][::shrink, ::shrink]
    if crops_px := sorted({spec.crop_px for spec in specs if spec.is_dense and spec.crop_px}):
        arrays["covered_px"] = np.array([[px // shrink, arrays["tile"].shape[0] - px // shrink] for px in crops_px])
    for spec in specs:
        if spec.is_dense and spec.kind in (Kind.PROBABILITY, Kind.REGRESSION, Kind.LOGITS):
            prediction = predictions[spec.name][index].numpy()
            if spec.kind == Kind.PROBABILITY and spec.channels == 1:
                prediction = 1 / (1 + np.exp(-prediction))
            arrays[f"student.{spec.name}"] = prediction.astype(np.float16)
            arrays[f"teacher.{spec.name}"] = responses[spec.name][index].numpy().astype(np.float16)
    if truth is not None:
        arrays["known"] = truth
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()
