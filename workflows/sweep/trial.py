"""What runs in the process of one trial: the same fine-tuning as finetune.py, every validation told to Ray Tune."""

import contextlib
import gc
import io
import logging
import os
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import ray
import ray.exceptions
import torch
from ray import tune

from csat.errors import StoppedError
from csat.runs.checkpoints import Checkpoints
from csat.runs.folder import RunFolder
from csat.runs.recorder import read_metrics
from csat.sweeps.trial import ENDED
from workflows.finetuning.config import FinetuneConfig, read_config
from workflows.finetuning.fit import fit
from workflows.shell.board import StopWatch
from workflows.shell.decode_samples import Prepared
from workflows.sweep.shared_data import shared_data

logger = logging.getLogger(__name__)

# What a trial reports.
METRIC = "metric"  # best so far
EPOCH, SHARE = "epoch", "share"  # epochs done, and the share of all
STANDS = "stands"  # whatever the metric is, it is no reason to stop the trial
Report = Callable[[dict[str, Any]], None]  # takes the figures of a validation
WATCH_EVERY_S = 1.0
# A process is used for one trial after another: the thread of the last one may take this long to end.
END_TIMEOUT_S = 120


def run_trial(config: dict[str, Any]) -> None:
    """Train one setting, or resume it. How it went is in its run folder, an exception of the training too.

    Args:
        config: `settings`, all of finetune.py; `data`, under which name they are shared; `board`, under which name the sweep's
            word to end is heard; `stands`, it is not to be stopped by others' being better.

    Raises:
        RayError: something was lost that another attempt may find again.
    """
    os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = str(END_TIMEOUT_S)
    settings = read_config(config["settings"])
    folder = RunFolder(settings.run_folder)
    if (folder.read_json("status.json") or {}).get("state") in ENDED:
        return  # its process died between the last word and the return
    watch = StopWatch(ray.get_actor(config["board"]))
    report = partial(_report, epochs=settings.train.epochs, stands=config["stands"])
    last_step = _replay(folder, partial(report, stands=True))
    prepared = shared_data(config["data"])
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # the sweep has a line of its own for all of its trials
            if settings.workers.num_workers == 1:
                fit(settings, prepared, on_validation=report, in_this_process=True, is_stopped=watch.is_stopped)
            else:
                _fit_in_group(settings, prepared, report, last_step, watch)
    except StoppedError:
        logger.info("%s: interrupted, what was trained is committed", folder.uri)
    except ray.exceptions.RayError:
        folder.set_status("running")
        raise
    except Exception as error:
        logger.warning("%s failed: %s", folder.uri, error)
        if (folder.read_json("status.json") or {}).get("state") not in ENDED:
            folder.set_status("failed", error=str(error), kind=type(error).__name__)
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _replay(folder: RunFolder, report: Report) -> int:
    """Tell Tune what an earlier attempt measured up to its last checkpoint. Returns that checkpoint's step."""
    step = Checkpoints(folder.path("checkpoints")).latest_cursor().step
    for line in read_metrics(folder.uri, "validation"):
        if line["step"] <= step:
            report(line)
    return step


def _report(figures: dict[str, Any], *, epochs: int, stands: bool) -> None:
    epoch = figures["epoch"]
    tune.report({METRIC: figures["best_metric"], EPOCH: epoch, SHARE: epoch / epochs, STANDS: stands})


def _fit_in_group(
    settings: FinetuneConfig,
    prepared: Prepared,
    report: Report,
    last_step: int,
    watch: StopWatch,
) -> None:
    """Several workers: Ray Train makes a group of them, and their validations are read from the run folder."""
    raised: list[BaseException] = []

    def work() -> None:
        try:
            fit(settings, prepared, is_stopped=watch.is_stopped)
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=work, daemon=True)  # where Tune stops the trial, the group ends with this process
    thread.start()
    while thread.is_alive():
        thread.join(WATCH_EVERY_S)
        for line in read_metrics(settings.run_folder, "validation"):
            if line["step"] > last_step:
                last_step = line["step"]
                report(line)
    if raised:
        raise raised[0]
