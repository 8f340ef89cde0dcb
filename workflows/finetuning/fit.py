"""A fine-tuning from its decoded data to its finished run folder."""

import csv
import io
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

from csat.errors import StoppedError
from csat.methods.registry import spell_out
from csat.runs.accounts import write_accounts, write_throughput
from csat.runs.checkpoints import Checkpoints
from csat.runs.folder import RunFolder
from csat.words import last_line
from workflows.finetuning.build import describe
from workflows.finetuning.check import check
from workflows.finetuning.config import FinetuneConfig
from workflows.finetuning.decode import Prepared, decode
from workflows.finetuning.first_stage import make_first_job
from workflows.finetuning.train import FinetuneJob
from workflows.shell.group import FAILED, train_here, train_in_group
from workflows.shell.kept import INTERRUPTED
from workflows.shell.run_teacher import check_same_teacher


def prepare(config: FinetuneConfig) -> Prepared:
    """Checked and decoded data; the cluster is connected. Trials of a sweep with the same `data` settings share it."""
    return decode(config.data, check(config))


def fit(
    config: FinetuneConfig,
    plain: dict[str, Any],
    prepared: Prepared,
    *,
    on_validation: Callable[[dict[str, Any]], None] = lambda figures: None,
    in_this_process: bool = False,
    is_stopped: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Train, choose the best weights, judge them, write the run folder. Goes on from the last checkpoint where there is one.

    Args:
        plain: `config` as plain values.
        prepared: Of `prepare`.
        on_validation: Called with the figures of each validation; only where the training runs in this process.
        in_this_process: Train here (a trial of a sweep is a process of its own already) instead of in a Ray Train group. More
            than one worker always makes a group.
        is_stopped: Whether this process was asked to end the training, by something else than a signal.

    Returns:
        What evaluation.json holds.

    Raises:
        StoppedError: it was asked to end; what was trained is committed.
        NonFiniteLossError, TrainingFailedError: training stopped; the last checkpoint is intact.
    """
    folder = RunFolder(config.run_folder)
    open_folder(folder, config, plain)
    if folder.is_finished():
        return folder.read_json("evaluation.json")
    _write_data(folder, prepared)
    write_samples(folder, prepared)
    job = FinetuneJob(config=config, prepared=prepared, teacher=describe(config))
    if job.teacher is not None:
        check_same_teacher(folder, job.teacher)
    folder.set_status("running")
    if in_this_process and config.workers.num_workers == 1:
        train = partial(train_here, on_validation=on_validation, is_stopped=is_stopped)
    else:
        train = partial(train_in_group, is_stopped=is_stopped)
    try:
        method = job.build_method()
        Checkpoints(folder.path("checkpoints")).check_fits(method)
        stage = method.first_stage()
        if stage and stage.is_missing(folder.uri):
            train(make_first_job(job, stage))
        train(job)
    except StoppedError:
        folder.set_status(INTERRUPTED)
        raise
    except Exception as error:
        folder.set_status(FAILED, error=last_line(error), kind=type(error).__name__)
        raise
    evaluation = folder.read_json("evaluation.json")
    checkpoint = Checkpoints(folder.path("checkpoints")).load()
    is_stopped_early = len(checkpoint.cursor.done) < job.num_positions
    write_accounts(folder, job.plan, checkpoint, is_stopped=is_stopped_early)
    write_throughput(folder, checkpoint, num_workers=config.workers.num_workers, student=evaluation["cost"])
    folder.set_status("finished")
    return evaluation


def open_folder(folder: RunFolder, config: FinetuneConfig, plain: dict[str, Any]) -> None:
    """Make the folder this run's own. What the method's defaults were when an earlier attempt began counts for that one."""

    def spelled_out(settings: dict[str, Any], *, as_before: bool = False) -> dict[str, Any]:
        return {**settings, "method": spell_out(settings.get("method") or {}, as_before=as_before)}

    folder.open(
        spelled_out(plain),
        overwrite=config.overwrite,
        config_class=FinetuneConfig,
        as_before=partial(spelled_out, as_before=True),
    )


def where(folder: RunFolder) -> str:
    """Where a user finds the results, and what they are."""
    figures = (folder.read_json("evaluation.json") or {}).get("test", {})
    lines = [
        f"test: {name} {figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"
        for name, figure in figures.items()
        if isinstance(figure, dict) and "low" in figure and "/" not in name
    ]
    return "\n".join([*lines, f"model:  {folder.path('exported')}", f"report: {folder.path('report.html')}"])


def _write_data(folder: RunFolder, prepared: Prepared) -> None:
    """data.json: what was learned from, for reports, model cards and whoever asks later."""
    data = prepared.data
    parts = {
        part: {"samples": len(samples), "groups": sorted({sample.group for sample in samples})}
        for part, samples in data.parts.items()
    }
    unreadable = [{"sample": data.samples[index].key, "reason": reason} for index, reason in prepared.unreadable.items()]
    folder.write_json(
        "data.json",
        {**asdict(data.info), "sets": [asdict(info) for info in data.sets], "parts": parts, "unreadable": unreadable},
    )


def write_samples(folder: RunFolder, prepared: Prepared) -> None:
    """samples.csv, a line per image with its part; pretrain.csv, the training images as `pretrain.py --slides` takes them."""
    data = prepared.data
    reasons = {data.samples[index].key: reason for index, reason in prepared.unreadable.items()}
    parts = {**data.parts, "not used": data.unlabelled}
    lines = [
        [sample.image, part, sample.key, sample.group, "" if sample.label is None else data.info.classes[sample.label]]
        + ["" if sample.mpp is None else sample.mpp, reasons.get(sample.key, "")]
        for part, samples in parts.items()
        for sample in samples
    ]
    _write_csv(folder, "samples.csv", ["image", "part", "sample", "group", "label", "mpp", "reason"], lines)
    # An image of a container (h5, npy) has no file of its own that a slide reader could open.
    unlabelled = [
        [sample.image, sample.group, "" if sample.mpp is None else sample.mpp]
        for sample in (*data.parts["train"], *data.unlabelled)
        if sample.index is None
    ]
    _write_csv(folder, "pretrain.csv", ["slide", "patient", "mpp"], unlabelled)


def _write_csv(folder: RunFolder, name: str, header: list[str], lines: list[list[Any]]) -> None:
    table = io.StringIO()
    csv.writer(table).writerows([header, *lines])
    folder.write_text(name, table.getvalue())
