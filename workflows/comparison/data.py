"""Labelled images as whatever is judged sees them: those that a run was trained and judged on, or another set.

On another set each sees windows at its own resolution, and what it says is compared on the pixels of the labels.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from csat import nuclei
from csat.errors import ConfigError, DatasetError
from csat.evaluation import judging
from csat.evaluation.class_order import in_order
from csat.evaluation.judged_run import TEACHER, JudgedRun
from csat.evaluation.leakage import check_leakage
from csat.evaluation.predictions import Predictions
from csat.labels.datasets.contract import Decoded, Sample
from csat.labels.decoded import SampleSource
from csat.labels.sets import MOST_ENLARGING, LabelledConfig, LabelledData, assemble, assemble_to_judge
from csat.model.files import exported_folder, read_model_config
from csat.prediction.answers import Answers
from csat.prediction.opening import open_answers
from csat.prediction.windows import View
from csat.settings import read_settings
from csat.storage import files
from csat.tasks import DatasetInfo, Task
from csat.words import some
from workflows.comparison.config import EVERY_SPLIT
from workflows.shell.decode_samples import Prepared, decode
from workflows.shell.progress import Progress

logger = logging.getLogger("evaluate")


@dataclass(frozen=True, kw_only=True)
class RunData:
    """Samples that can be decoded, and how a run's model looks at them.

    Attributes:
        index_of: Key of a sample → its index in `source`.
        tile_px: Edge of the tiles that the model is shown.
    """

    info: DatasetInfo
    samples: tuple[Sample, ...] = field(repr=False)
    index_of: Mapping[str, int] = field(repr=False)
    source: SampleSource = field(repr=False)
    tile_px: int
    view: View

    def select(self, keys: Sequence[str]) -> list[Sample]:
        """Samples by their keys. Raises DatasetError for one that is not there."""
        by_key = {sample.key: sample for sample in self.samples}
        if lost := [key for key in keys if key not in by_key]:
            raise DatasetError(f"the data have changed since the run: there is no {some(lost)}")
        return [by_key[key] for key in keys]


def own_data(run: JudgedRun) -> RunData:
    """The data of a run, decoded when they are asked for.

    Raises:
        ConfigError, DatasetError, StorageError: they are not where they were, or have changed.
    """
    config = read_settings(LabelledConfig, run.config["data"], what=f"data of {run.uri}")
    data = assemble(config)
    return _run_data(Prepared(data, config), tuple(data.samples), run)


def gather(runs: Sequence[JudgedRun], config: LabelledConfig, split: str, *, accept_leakage: bool) -> LabelledData:
    """A labelled set that all of the runs are judged on, with the classes that all of them tell apart.

    Args:
        config: The set.
        split: train, val, test or all.

    Raises:
        ConfigError: another task, other classes, or images that are too coarse for a model or do not state their resolution.
        DatasetError: nothing in that split, or images that a run or what it was built on has seen.
    """
    data = assemble_to_judge(replace(config, task=runs[0].task), None if split == EVERY_SPLIT else split)
    data = replace(data, info=_common_info(runs, data.info))
    for run in runs:
        _check_resolution(run, data.splits["test"])
        if not accept_leakage:
            _check_leakage(run, data)
    return data


def other_data(run: JudgedRun, data: LabelledData, config: LabelledConfig, decoded: dict[int | None, Prepared]) -> RunData:
    """A labelled set as a run's model looks at it: with the resolution, tile and fit that it was trained with.

    Args:
        data, config: See `gather`.
        decoded: Edge of what images are shrunk to, None: as they are → the set; what is decoded here is kept in it.
    """
    mine = run.config["data"]
    whole_px = mine["tile_px"] if mine["fit"] == "resize" else None
    if whole_px not in decoded:
        decoded[whole_px] = decode(replace(config, task=run.task, tile_px=mine["tile_px"], fit=mine["fit"]), data)
    return _run_data(decoded[whole_px], data.splits["test"], run, mpp=_mpp(run))


def judge(run: JudgedRun, data: RunData, *, device: torch.device) -> tuple[Predictions, float]:
    """What a run's model says of all samples of `data`, and how many windows a second it answered."""
    indices = [data.index_of[sample.key] for sample in data.samples]
    answers = _Timed(_open(run, data, device))
    with Progress(f"judging {run.uri}", total=len(indices), unit="image") as progress:
        source = _Shown(data.source, progress)
        predictions = judging.judge(answers, source, data.samples, indices, data.info, data.view)
    return predictions, answers.num_tiles / max(answers.seconds, 1e-9)


def look(run: JudgedRun, data: RunData, keys: Sequence[str], *, device: torch.device) -> list[dict[str, Any]]:
    """Pictures of some samples with what a run's model says of them: see `judging.show`."""
    samples = data.select(keys)
    indices = [data.index_of[sample.key] for sample in samples]
    return judging.show(_open(run, data, device), data.source, samples, indices, data.info, data.view)


class _Shown:
    """A source that shows how many samples have been taken of it."""

    def __init__(self, source: SampleSource, progress: Progress):
        self.source, self.progress, self.num_taken = source, progress, 0

    def get(self, index: int) -> Decoded:
        self.num_taken += 1
        self.progress.show(self.num_taken)
        return self.source.get(index)


class _Timed:
    """Answers, and how long they took."""

    def __init__(self, answers: Answers):
        self.answers, self.num_tiles, self.seconds = answers, 0, 0.0
        self.specs, self.tile_px, self.mpp = answers.specs, answers.tile_px, answers.mpp
        self.task, self.classes, self.about = answers.task, answers.classes, answers.about

    def answer(self, tiles: np.ndarray) -> dict[str, np.ndarray]:
        started = time.perf_counter()
        said = self.answers.answer(tiles)
        self.num_tiles, self.seconds = self.num_tiles + len(tiles), self.seconds + time.perf_counter() - started
        return said


def _open(run: JudgedRun, data: RunData, device: torch.device) -> Answers:
    precision = run.config["train"]["precision"]
    answers = run.answers or open_answers(run.uri, tile_px=data.tile_px, device=device, precision=precision)
    return answers if nuclei.are_same(answers.classes, data.info.classes) else in_order(answers, data.info.classes)


def _run_data(prepared: Prepared, samples: tuple[Sample, ...], run: JudgedRun, *, mpp: float | None = None) -> RunData:
    mine = run.config["data"]
    return RunData(
        info=prepared.data.info,
        samples=samples,
        index_of={sample.key: index for index, sample in enumerate(prepared.data.samples)},
        source=prepared.source(),
        tile_px=mine["tile_px"],
        view=View(fit=mine["fit"], views=run.config["test_time_views"], mpp=mpp),
    )


def _mpp(run: JudgedRun) -> float | None:
    """um/px that a run's model sees; None: whole images, or those of the file whatever that is."""
    mine = run.config["data"]
    if mine["fit"] == "resize" or mine["mpp"] is not None or run.answers is not None:
        return None if mine["fit"] == "resize" else mine["mpp"]
    return read_model_config(exported_folder(run.uri))["metadata"].get("mpp")


def _check_resolution(run: JudgedRun, samples: Sequence[Sample]) -> None:
    mpp = _mpp(run)
    if mpp is None:
        return
    for sample in samples:
        if sample.mpp is None:
            raise ConfigError(
                f"{run.uri} sees {mpp:g} um/px and {sample.key} does not state its resolution: say it beside the path, as in "
                "data.sets.NAME '{path: …, mpp: …}'"
            )
        if sample.mpp > MOST_ENLARGING * mpp:
            raise ConfigError(
                f"{run.uri} sees {mpp:g} um/px and {sample.key} has {sample.mpp:g}: enlarging it {sample.mpp / mpp:.2g} times "
                "shows nothing new. Judge it on finer images"
            )


def _check_leakage(run: JudgedRun, data: LabelledData) -> None:
    """By the record of a run; of a teacher, by what its weights are called after."""
    model = run.evaluation["model"]
    if model.get("init") != TEACHER:
        check_leakage(run.uri, data)
        return
    check_leakage(None, data, teacher=model["weights"])
    called = files.base_name(model["weights"] or "").lower()
    if known := [info.name for info in data.sets if info.name.lower() in called]:
        raise DatasetError(
            f"{run.uri} was trained on {', '.join(known)}, as its weights are called: it would be judged on what it has seen. "
            "Judge it on another set, or say accept_leakage true, and report it"
        )


def _common_info(runs: Sequence[JudgedRun], info: DatasetInfo) -> DatasetInfo:
    """What can be judged: nuclei without types, where any side has none or others.

    Raises:
        ConfigError: other classes.
    """
    strange = [run for run in runs if nuclei.order_of(run.classes, info.classes) is None]
    if not strange:
        fitting = [run.classes for run in runs if nuclei.are_same(run.classes, info.classes)]
        return replace(info, classes=fitting[0] if fitting else info.classes)  # by which the metrics of a run are called
    if info.task == Task.NUCLEI:
        if info.classes:
            names = "; ".join(f"{run.uri}: {', '.join(run.classes) or 'none'}" for run in strange)
            logger.warning("types of nuclei are not judged: the labels have %s, and %s", ", ".join(info.classes), names)
        return replace(info, classes=())
    raise ConfigError(
        f"{strange[0].uri} tells {', '.join(strange[0].classes)} apart, and {info.name} has {', '.join(info.classes)}: give a "
        "set with the same classes"
    )
