"""Labelled images as a finished run sees them: those it was trained and judged on, or another set."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from csat import nuclei
from csat.errors import ConfigError, DatasetError
from csat.evaluation import judging
from csat.evaluation.judged_run import JudgedRun
from csat.evaluation.leakage import check_leakage
from csat.evaluation.predictions import Predictions
from csat.export.folder import exported_folder
from csat.labels.datasets.contract import Sample
from csat.labels.decoded import SampleSource
from csat.labels.sets import LabelledConfig, assemble, assemble_to_judge
from csat.model.files import read_model_config
from csat.prediction.answers import Answers
from csat.prediction.opening import open_answers
from csat.prediction.windows import View
from csat.settings import read_settings
from csat.tasks import DatasetInfo, Task
from csat.words import some
from workflows.comparison.config import EVERY_SPLIT
from workflows.shell.decode_samples import Prepared, decode


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


def other_data(run: JudgedRun, config: LabelledConfig, split: str, *, accept_leakage: bool) -> RunData:
    """Another labelled set as a run's model looks at it: with the resolution, tile and fit that it was trained with.

    Args:
        config: The set; its `tile_px` and `fit` are the run's, and so is its `mpp` where it is None.
        split: train, val, test or all.

    Raises:
        ConfigError: another task, or other classes.
        DatasetError: nothing in that split, images that the run or what it was built on has seen, or data that do not fit.
    """
    mine = run.config["data"]
    exported = read_model_config(exported_folder(run.uri))["metadata"]
    mpp = config.mpp or mine["mpp"] or (exported.get("mpp") if mine["fit"] == "crop" else None)
    config = replace(config, task=run.task, tile_px=mine["tile_px"], fit=mine["fit"], mpp=mpp)
    data = assemble_to_judge(config, None if split == EVERY_SPLIT else split)
    info = _common_info(run, data.info)
    if not accept_leakage:
        check_leakage(run.uri, data)
    return _run_data(decode(config, replace(data, info=info)), data.splits["test"], run)


def judge(run: JudgedRun, data: RunData, *, device: torch.device) -> Predictions:
    """What a run's model says of all samples of `data`."""
    indices = [data.index_of[sample.key] for sample in data.samples]
    return judging.judge(_open(run, data, device), data.source, data.samples, indices, data.info, data.view)


def look(run: JudgedRun, data: RunData, keys: Sequence[str], *, device: torch.device) -> list[dict[str, Any]]:
    """Pictures of some samples with what a run's model says of them: see `judging.show`."""
    samples = data.select(keys)
    indices = [data.index_of[sample.key] for sample in samples]
    return judging.show(_open(run, data, device), data.source, samples, indices, data.info, data.view)


def _open(run: JudgedRun, data: RunData, device: torch.device) -> Answers:
    return open_answers(run.uri, tile_px=data.tile_px, device=device, precision=run.config["train"]["precision"])


def _run_data(prepared: Prepared, samples: tuple[Sample, ...], run: JudgedRun) -> RunData:
    view = View(fit=prepared.config.fit, views=run.config["test_time_views"])
    return RunData(
        info=prepared.data.info,
        samples=samples,
        index_of={sample.key: index for index, sample in enumerate(prepared.data.samples)},
        source=prepared.source(),
        tile_px=prepared.config.tile_px,
        view=view,
    )


def _common_info(run: JudgedRun, info: DatasetInfo) -> DatasetInfo:
    """What can be judged: nuclei without types where either side has none."""
    if nuclei.are_same(info.classes, run.classes):
        return replace(info, classes=run.classes)  # in the run's spelling, by which its metrics are called
    if run.task == Task.NUCLEI and not (info.classes and run.classes):
        return replace(info, classes=())
    raise ConfigError(
        f"{run.uri} tells {', '.join(run.classes)} apart, and {info.name} has {', '.join(info.classes)}: give a set with the "
        "same classes in the same order"
    )
