"""A fine-tuning from its decoded data to its finished run folder."""

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from csat.errors import StoppedError
from csat.methods.registry import spell_out
from csat.runs.checkpoints import Checkpoints
from csat.runs.folder import RunFolder
from csat.sweeps.trial import FAILED
from workflows.finetuning.build import describe
from workflows.finetuning.config import FinetuneConfig
from workflows.finetuning.finish import finish
from workflows.finetuning.first_stage import make_first_job
from workflows.finetuning.records import write_data, write_samples
from workflows.finetuning.train import FinetuneJob
from workflows.shell.config import MethodConfig
from workflows.shell.decode_samples import Prepared
from workflows.shell.failures import reason
from workflows.shell.group import train_here, train_in_group
from workflows.shell.kept import INTERRUPTED
from workflows.shell.run_teacher import check_same_teacher


def fit(
    config: FinetuneConfig,
    prepared: Prepared,
    *,
    on_validation: Callable[[dict[str, Any]], None] = lambda figures: None,
    in_this_process: bool = False,
    is_stopped: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Train, choose the best weights, judge them, write the run folder. Resumes from the last checkpoint.

    Args:
        prepared: Its data, checked and decoded. Trials of a sweep with the same `data` settings share them.
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
    open_folder(folder, config)
    if folder.is_finished():
        return folder.read_json("evaluation.json")
    write_data(folder, prepared)
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
        folder.set_status(FAILED, error=reason(error), kind=type(error).__name__)
        raise
    return finish(folder, job)


def open_folder(folder: RunFolder, config: FinetuneConfig) -> None:
    """Make the folder this run's own. What the method's defaults were when an earlier attempt began counts for that one."""
    folder.open(
        replace(config, method=MethodConfig(**spell_out(asdict(config.method)))),
        overwrite=config.overwrite,
        as_before=lambda earlier: {**earlier, "method": spell_out(earlier.get("method") or {}, as_before=True)},
    )
