"""A fine-tuning from its decoded data to its finished run folder."""

import csv
import io
import logging
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from csat.errors import NonFiniteLossError, StoppedError
from csat.methods.registry import spell_out
from csat.runs.checkpoints import Checkpoints
from csat.runs.folder import RunFolder
from csat.storage import files
from csat.words import last_line
from workflows.finetuning.check import check, describe
from workflows.finetuning.config import FinetuneConfig
from workflows.finetuning.decode import Prepared, decode
from workflows.finetuning.first_stage import first_stage_worker, make_job, train_first_stage
from workflows.finetuning.train import FinetuneJob, build_method, finetune_worker, train_and_judge
from workflows.pretraining import finish
from workflows.shell import interruption
from workflows.shell.data import TRAIN, WholeSplit, execution_options
from workflows.shell.kept import INTERRUPTED
from workflows.shell.meters import StoreMeter
from workflows.shell.progress import ProgressDisplay, make_board, passes_on
from workflows.shell.run_teacher import check_same_teacher

logger = logging.getLogger("finetune")


def prepare(config: FinetuneConfig) -> Prepared:
    """Checked and decoded data; the cluster is connected. Trials of a sweep with the same `data` settings share it."""
    return decode(config.data, check(config))


def fit(
    config: FinetuneConfig,
    plain: dict[str, Any],
    prepared: Prepared,
    *,
    on_validation: Any = None,
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
    is_alone = in_this_process and config.workers.num_workers == 1
    try:
        method = build_method(config, prepared.data, job.teacher)
        Checkpoints(folder.path("checkpoints")).check_fits(method)
        stage = method.first_stage()
        if stage and stage.is_missing(folder.uri):
            first = make_job(job, stage)
            if is_alone:
                train_first_stage(first, is_stopped=is_stopped)
            else:
                _train_in_group(first, folder, first_stage_worker, is_stopped)
        if folder.read_json("status.json")["state"] == "failed":
            raise NonFiniteLossError(folder.read_json("status.json")["error"])
        if is_alone:
            train_and_judge(job, on_validation=on_validation, is_stopped=is_stopped)
        else:
            _train_in_group(job, folder, finetune_worker, is_stopped)
    except StoppedError:
        folder.set_status(INTERRUPTED)
        raise
    except Exception as error:
        folder.set_status("failed", error=last_line(error), kind=type(error).__name__)
        raise
    status = folder.read_json("status.json")
    if status["state"] == "failed":
        raise NonFiniteLossError(status["error"])
    evaluation = folder.read_json("evaluation.json")
    checkpoint = Checkpoints(folder.path("checkpoints")).load()
    is_stopped = len(checkpoint.cursor.done) < job.plan.num_positions
    finish.write_accounts(folder, job.plan, checkpoint, is_stopped=is_stopped)
    finish.write_throughput(folder, checkpoint, num_workers=config.workers.num_workers, student=evaluation["cost"])
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


def _train_in_group(
    job: FinetuneJob, folder: RunFolder, worker: Callable[[dict[str, Any]], None], is_stopped: Callable[[], bool]
) -> None:
    config = job.config
    attempt = 1 + (folder.read_json("attempts.json") or {"attempts": 0})["attempts"]
    folder.write_json("attempts.json", {"attempts": attempt})
    board = make_board()
    stream = job.stream()
    gpus = {"GPU": config.workers.gpus_per_worker} if config.workers.gpus_per_worker else {}
    store, path = files.arrow_filesystem(folder.path("ray"))
    trainer = TorchTrainer(
        worker,
        train_loop_config={"job": job, "progress": board},
        datasets={TRAIN: stream} if stream else None,
        dataset_config=WholeSplit(execution_options=execution_options(config.ray)),
        scaling_config=ScalingConfig(
            num_workers=config.workers.num_workers,
            use_gpu=config.workers.gpus_per_worker > 0,
            resources_per_worker={"CPU": config.workers.cpus_per_worker, **gpus},
        ),
        run_config=RunConfig(
            name=f"attempt-{attempt:03d}",
            storage_path=path,
            storage_filesystem=store,
            failure_config=FailureConfig(max_failures=config.workers.max_failures),
        ),
    )
    started = time.monotonic()
    display = ProgressDisplay(board, total=job.plan.num_positions)
    stoppable = interruption.stoppable(lambda: ray.get(board.stop.remote()))
    with StoreMeter() as meter, display, stoppable, passes_on(is_stopped, board):
        trainer.fit()
    if is_stopped():
        raise StoppedError("the run was asked to end")
    finish.write_attempt(folder, attempt, seconds=time.monotonic() - started, store=meter.figures())


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
