"""What runs in each Ray Train worker: build the method, hand it to the training loop, report."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
import torch

from csat.errors import NonFiniteLossError, StoppedError
from csat.methods.contract import Method, Setting
from csat.methods.registry import build_method, build_student
from csat.model.student import StudentConfig
from csat.responses import TeacherSpec
from csat.runs.folder import RunFolder
from csat.runs.plan import Plan
from csat.training.context import Columns, TrainContext
from csat.training.loop import TrainConfig, Trainer
from teachers.response_cache import ResponseCache
from workflows.shell.config import MethodConfig, WorkerConfig
from workflows.shell.data import CACHED, TRAIN
from workflows.shell.progress import StopWatch

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything that a worker needs to know, picklable."""

    run_folder: str
    student: StudentConfig
    method: MethodConfig
    train: TrainConfig
    workers: WorkerConfig
    teacher: TeacherSpec
    tile_px: int  # of whole images, what their edges are multiples of
    plan: Plan
    whole: bool = False  # images of any size, not tiles
    cache: ResponseCache | None = None  # of the teacher's responses: then there are two streams

    def build_method(self) -> Method:
        """The method with its student, seeded: the same weights in every process."""
        torch.manual_seed(self.train.seed)
        setting = Setting(tile_px=self.tile_px, teacher=self.teacher, whole=self.whole, seed=self.train.seed)
        student = build_student(self.method.name, self.method.options, self.student, self.teacher)
        return build_method(self.method.name, self.method.options, student, setting)


def train_worker(config: dict[str, Any]) -> None:
    """The function that Ray Train runs on every rank. `config` holds the `Job` and the progress actor."""
    job: Job = config["job"]
    progress: ray.actor.ActorHandle = config["progress"]
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    device = ray.train.torch.get_device()
    streams = [TRAIN] if job.cache is None else [TRAIN, CACHED]
    names = iter(streams)

    def batches(size: int) -> Iterator[Columns]:
        name = next(names)
        if name == CACHED:
            job.cache.mark_complete()  # an epoch has been through the teacher stage
        shard = ray.train.get_dataset_shard(name)
        return iter(shard.iter_batches(batch_size=size, batch_format="numpy", prefetch_batches=job.workers.prefetch_batches))

    context = TrainContext(
        batches=batches,
        num_streams=len(streams),
        device=device,
        on_progress=lambda figures: progress.update.remote(figures),
        is_stopped=StopWatch(progress).is_stopped,
        is_leaving=is_leaving,
    )
    method = job.build_method().to(device)
    trainer = Trainer(method, job.plan, context, job.train, run_folder=job.run_folder, tile_px=job.tile_px)
    try:
        cursor = trainer.run()
    except StoppedError:
        return  # committed, on every rank; the driver asked for it and knows
    except NonFiniteLossError as error:
        # Every rank is here at the same step. Trying again would end the same way: leave quietly and let the driver say it.
        if context.rank == 0:
            RunFolder(job.run_folder).set_status("failed", error=str(error), kind="NonFiniteLossError")
        return
    ray.train.report({"step": cursor.step, "tiles": len(cursor.done)})


def is_leaving() -> bool:
    """Whether a node with a worker of this group will be taken away: drained or preempted, as Ray Train was told."""
    return ray.train.get_preemption_info() is not None
