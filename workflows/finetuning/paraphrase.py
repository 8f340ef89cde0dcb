"""The stage before method coco in a run: trains the paraphrasers of the teacher's maps over the training part, and keeps them.

It has a folder of its own in the run's, `paraphrasers/`, with checkpoints and metrics: killed and started again, it goes on.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray.train
import torch

from csat.errors import NonFiniteLossError, StoppedError
from csat.methods.coco.coco import CoCo
from csat.methods.coco.paraphrasers import LAYERS, save_paraphrasers
from csat.methods.coco.paraphrasing import LR, Paraphrasing, missed
from csat.responses import ResponseSpec
from csat.runs.folder import RunFolder
from csat.runs.recorder import read_metrics
from csat.training.context import TrainContext
from csat.training.loop import Trainer
from workflows.finetuning.train import FinetuneJob, build_method, read_in_process, shard_batches
from workflows.pretraining.job import is_leaving
from workflows.shell.progress import StopWatch

MISSED_AT_MOST = 1.0  # of a map's variance: as much as saying each channel's mean over the tile would miss

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ParaphraseJob(FinetuneJob):
    """The same data and teacher, for other epochs, in another folder."""

    epochs: int

    @property
    def num_epochs(self) -> int:
        return self.epochs

    @property
    def run_folder(self) -> str:
        return RunFolder(self.config.run_folder).path("paraphrasers")

    @property
    def responses(self) -> tuple[ResponseSpec, ...]:
        return tuple(self.teacher.response(name) for name in LAYERS)


def make_job(job: FinetuneJob, method: CoCo) -> ParaphraseJob:
    """The stage before a run."""
    return ParaphraseJob(
        config=job.config, prepared=job.prepared, teacher=job.teacher, epochs=method.config.paraphraser_epochs
    )


def paraphrase_worker(config: dict[str, Any]) -> None:
    """The function that Ray Train runs on every rank. `config` holds the `ParaphraseJob` and the progress actor."""
    job: ParaphraseJob = config["job"]
    progress: ray.actor.ActorHandle = config["progress"]
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    try:
        train_paraphrasers(
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
            RunFolder(job.config.run_folder).set_status("failed", error=f"paraphrasers: {error}", kind="NonFiniteLossError")
        return
    ray.train.report({})


def train_paraphrasers(
    job: ParaphraseJob,
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
    method = build_method(job.config, job.prepared.data, job.teacher)
    stage = Paraphrasing(method.paraphrasers, job.responses, lr=method.config.paraphraser_lr).to(device)
    settings = replace(job.config.train, epochs=job.epochs, optim=replace(job.config.train.optim, ema_decay=None))
    trainer = Trainer(stage, job.plan, context, settings, run_folder=job.run_folder, tile_px=job.config.data.tile_px)
    trainer.run()
    if context.rank == 0:
        save_paraphrasers(stage.student, job.run_folder, teacher_sha256=job.teacher.weights_sha256)
        logger.info("the paraphrasers of teacher %s are trained", job.teacher.weights_sha256[:12])
        warn_of_untrained(read_metrics(job.run_folder))
    context.gather(None)  # nobody reads them before they are written


def warn_of_untrained(metrics: Sequence[dict[str, Any]]) -> None:
    """Say so where paraphrasers miss most of what they should say: the student is then compared with noise."""
    last = metrics[-1] if metrics else {}
    shares = {name: last.get(f"loss/{missed(name)}", 0.0) for name in LAYERS}
    if max(shares.values()) > MISSED_AT_MOST:
        logger.warning(
            "the paraphrasers' error is %s of the variance of the teacher's maps, and the student is compared with what "
            "they say: set a higher --method.options.paraphraser_lr (the paper's is %g) or more "
            "--method.options.paraphraser_epochs",
            " and ".join(f"{share:.0%} ({name})" for name, share in shares.items()),
            LR,
        )
