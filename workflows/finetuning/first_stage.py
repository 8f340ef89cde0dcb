"""What a method needs trained before it, within a run: trained over the training part, and kept in a folder of its own.

Which modules these are, and how they learn, the method says (`csat.methods.contract.FirstStage`). The folder lies in the run's
and has checkpoints and metrics: interrupted and started again, the stage resumes.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import ray.train
import torch

from csat.errors import NonFiniteLossError, StoppedError
from csat.methods.contract import FirstStage
from csat.responses import ResponseSpec
from csat.runs.folder import RunFolder
from csat.runs.recorder import read_metrics
from csat.training.context import TrainContext
from csat.training.loop import Trainer
from workflows.finetuning.train import FinetuneJob, build_method, read_in_process, shard_batches
from workflows.pretraining.job import is_leaving
from workflows.shell.progress import StopWatch

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class FirstStageJob(FinetuneJob):
    """The same data and teacher, for other epochs, in another folder."""

    name: str
    epochs: int
    asked: tuple[ResponseSpec, ...]

    @property
    def num_epochs(self) -> int:
        return self.epochs

    @property
    def run_folder(self) -> str:
        return RunFolder(self.config.run_folder).path(self.name)

    @property
    def responses(self) -> tuple[ResponseSpec, ...]:
        return self.asked


def make_job(job: FinetuneJob, stage: FirstStage) -> FirstStageJob:
    """The stage before a run."""
    asked = stage.make_method().responses
    return FirstStageJob(
        config=job.config, prepared=job.prepared, teacher=job.teacher, name=stage.name, epochs=stage.epochs, asked=asked
    )


def first_stage_worker(config: dict[str, Any]) -> None:
    """The function that Ray Train runs on every rank. `config` holds the `FirstStageJob` and the progress actor."""
    job: FirstStageJob = config["job"]
    progress: ray.actor.ActorHandle = config["progress"]
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    try:
        train_first_stage(
            job,
            device=ray.train.torch.get_device(),
            batches=shard_batches(job),
            on_progress=lambda figures: progress.update.remote(figures),
            is_stopped=StopWatch(progress).is_stopped,
            is_leaving=is_leaving,
        )
    except StoppedError:
        return  # committed, on every rank; the driver asked for it and knows
    except NonFiniteLossError as error:
        if ray.train.get_context().get_world_rank() == 0:
            RunFolder(job.config.run_folder).set_status("failed", error=f"{job.name}: {error}", kind="NonFiniteLossError")
        return
    ray.train.report({})


def train_first_stage(
    job: FirstStageJob,
    *,
    device: torch.device | None = None,
    batches: Callable | None = None,
    on_progress: Callable[[dict[str, Any]], None] = lambda figures: None,
    is_stopped: Callable[[], bool] = lambda: False,
    is_leaving: Callable[[], bool] = lambda: False,
) -> None:
    """Train to the end and write the folder. Arguments as `train_and_judge`."""
    device = device or torch.device("cuda" if job.config.workers.gpus_per_worker else "cpu")
    context = TrainContext(
        batches=batches or (lambda size: read_in_process(job, size, context)),
        device=device,
        on_progress=on_progress,
        is_stopped=is_stopped,
        is_leaving=is_leaving,
    )
    stage = build_method(job.config, job.prepared.data, job.teacher).first_stage()
    method = stage.make_method().to(device)
    settings = replace(job.config.train, epochs=job.epochs, optim=replace(job.config.train.optim, ema_decay=None))
    trainer = Trainer(method, job.plan, context, settings, run_folder=job.run_folder, tile_px=job.config.data.tile_px)
    trainer.run()
    if context.rank == 0:
        stage.save(job.run_folder)
        logger.info("the %s of teacher %s are trained", stage.name, job.teacher.weights_sha256[:12])
        metrics = read_metrics(job.run_folder)
        if said := stage.warning(metrics[-1] if metrics else {}):
            logger.warning(said)
    context.gather(None)  # nobody reads them before they are written
