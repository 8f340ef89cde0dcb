"""The launcher of every training: a `Job` is worked on by the ranks of a Ray Train group, or by this process alone.

All that trainings have in common is here and only here: attempts, progress, how a run is asked to end, what becomes of a loss
that is not finite. A job itself knows a `TrainContext`, and nothing of Ray Train.
"""

import logging
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Protocol

import ray
import ray.train
import torch
from ray.data import Dataset
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchTrainer

from csat.errors import NonFiniteLossError, StoppedError
from csat.runs.accounts import begin_attempt, write_attempt
from csat.runs.checkpoints import Checkpoints
from csat.runs.folder import RunFolder
from csat.runs.plan import Plan
from csat.storage import files
from csat.sweeps.trial import FAILED
from csat.training.context import Columns, TrainContext
from csat.training.spare_cores import SpareCores
from workflows.shell import interruption
from workflows.shell.board import StopWatch, make_board, passes_on
from workflows.shell.cluster import available_cpus, has_dashboard
from workflows.shell.config import RayConfig, WorkerConfig
from workflows.shell.data import WholeSplit, execution_options, start_helpers
from workflows.shell.failures import reason
from workflows.shell.meters import StoreMeter
from workflows.shell.process_group import ProcessGroupConfig
from workflows.shell.progress import ProgressDisplay
from workflows.shell.watch import fit_watched


class Job(Protocol):
    """One training; picklable, for it travels to every rank.

    Attributes:
        run_folder: URI of the run: its status and its attempts are kept there, also those of a stage with a folder of its own.
        num_positions: Of the plan, for the progress.
        workers, ray: The processes that train, and the bound on what is on its way to them.
        stage: What an error calls this training; None: it is the run's own.
    """

    run_folder: str
    num_positions: int
    workers: WorkerConfig
    ray: RayConfig
    stage: str | None = None

    @abstractmethod
    def streams(self) -> Mapping[str, Callable[[], Dataset]]:
        """Name → what makes that stream over all that the committed checkpoint has not done, whenever a group starts.

        They follow each other in this order. Without any, each rank reads by itself: see `read_here`.
        """

    @abstractmethod
    def work(self, context: TrainContext) -> dict[str, Any]:
        """What each rank does, to its end. Returns the figures that Ray Train keeps.

        Raises:
            NonFiniteLossError: on every rank at the same step.
            StoppedError: on every rank; it was asked to end, and what was trained is committed.
        """

    def read_here(self, batch_size: int, context: TrainContext) -> Iterator[Columns]:
        """This rank's rows, read by this process; of a job without streams, and of any that is worked on by one process."""
        raise NotImplementedError(f"{type(self).__name__} has streams")

    def rows_ahead(self, world_size: int) -> int | None:
        """Rows of the first step of one rank, which are made while `work` builds what they are for; None: when it asks."""
        return None

    def on_stream(self, name: str) -> None:
        """Called on every rank before it takes the first row of a stream; all ranks are through with what came before."""

    def on_validation(self, figures: dict[str, Any]) -> None:
        """Called on rank 0 of a group with the figures of each validation."""


class RunJob(Job):
    """A training as the settings of its run have it: those say where it is kept, who works on it, and for how long.

    Attributes:
        config: Of the run, whatever the verb: it has run_folder, workers, ray and train.
        plan: Of the training.
    """

    config: Any
    plan: Plan

    @property
    def run_folder(self) -> str:
        return RunFolder(self.config.run_folder).uri

    @property
    def folder(self) -> str:
        """URI of what this job trains: its checkpoints and metrics."""
        return self.run_folder

    @property
    def workers(self) -> WorkerConfig:
        return self.config.workers

    @property
    def ray(self) -> RayConfig:
        return self.config.ray

    @property
    def num_epochs(self) -> int:
        return self.config.train.epochs

    @property
    def num_positions(self) -> int:
        return self.plan.num_positions

    @property
    def checkpoints(self) -> str:
        """URI of the folder that this job's checkpoints are committed to."""
        return RunFolder(self.folder).path("checkpoints")

    @property
    def is_trained(self) -> bool:
        """Whether the committed checkpoint has the whole plan."""
        return len(Checkpoints(self.checkpoints).latest_cursor().done) >= self.num_positions

    def rows_ahead(self, world_size: int) -> int | None:
        return None if self.is_trained else self.config.train.rows_per_worker(world_size)


def train_in_group(
    job: Job, *, is_stopped: Callable[[], bool] = lambda: False, meanwhile: Callable[[], object] = lambda: None
) -> None:
    """Ray Train over the job's streams, from the last committed checkpoint to the end.

    Args:
        meanwhile: Called by a thread once the workers train: what comes next may be loaded then, which takes seconds.
        is_stopped: Whether this process was asked to end the training, by something else than a signal.

    Raises:
        NonFiniteLossError, TrainingFailedError: training stopped; status.json says so, and the last checkpoint is intact.
        StoppedError: `is_stopped`; what was trained is committed.
        Interrupted: a signal came; what was trained is committed.
    """
    folder = RunFolder(job.run_folder)
    attempt, board = begin_attempt(folder), make_board()
    trainer = _make_trainer(job, folder, attempt, board)
    started = time.monotonic()
    meter = StoreMeter()
    display = ProgressDisplay(board, total=job.num_positions, on_first=meanwhile)
    stoppable = interruption.stoppable(lambda: ray.get(board.stop.remote()))
    try:
        with meter, display, stoppable, passes_on(is_stopped, board):
            fit_watched(trainer.fit, board, job.workers, limit_s=job.ray.stall_timeout_s)
    except TrainingFailedError as error:
        folder.set_status(FAILED, error=reason(error), kind=type(error).__name__)
        raise
    finally:  # an attempt that was interrupted has its cost, too
        write_attempt(folder, attempt, seconds=time.monotonic() - started, store=meter.figures())
    status = folder.read_json("status.json") or {}
    if status.get("state") == FAILED:
        raise NonFiniteLossError(status["error"])
    if is_stopped():
        raise StoppedError("the run was asked to end")


def train_here(
    job: Job,
    *,
    on_validation: Callable[[dict[str, Any]], None] = lambda figures: None,
    is_stopped: Callable[[], bool] = lambda: False,
) -> None:
    """The same in this process alone, which reads its rows by itself: a trial of a sweep is a process of its own already.

    Args:
        on_validation: Called with the figures of each validation.
        is_stopped: Whether it was asked to end.

    Raises:
        NonFiniteLossError, StoppedError: as `Job.work`.
    """
    context = TrainContext(
        batches=lambda size: job.read_here(size, context),
        device=torch.device("cuda" if job.workers.gpus_per_worker else "cpu"),
        on_validation=on_validation,
        is_stopped=is_stopped,
    )
    try:
        job.work(context)
    except NonFiniteLossError as error:
        raise NonFiniteLossError(_told(job, error)) from error


class _Trainer(TorchTrainer):
    """Without what Ray Train starts to watch its controller, where that has nobody to ask.

    A process of its own looks every second whether the controller lives, and frees the workers' places where it died. It asks
    the dashboard. A Ray that a verb starts has none, and ends with the verb: there it fails at each look, takes a tenth of a
    core for that, and holds up the start and the end of the group.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        if has_dashboard():
            return callbacks
        return [each for each in callbacks if type(each).__name__ != "PlacementGroupCleanerCallback"]


def _make_trainer(job: Job, folder: RunFolder, attempt: int, board: ray.actor.ActorHandle) -> TorchTrainer:
    streams, workers = job.streams(), job.workers
    if streams:
        start_helpers()  # beside the group
    gpus = {"GPU": workers.gpus_per_worker} if workers.gpus_per_worker else {}
    store, path = files.arrow_filesystem(folder.path("ray"))
    return _Trainer(
        partial(_work_on_rank, job, board, list(streams)),  # no train_loop_config: Ray's controller would load all of the job
        datasets=dict(streams) or None,
        torch_config=ProcessGroupConfig(),
        dataset_config=WholeSplit(execution_options=execution_options(job.ray)),
        scaling_config=ScalingConfig(
            num_workers=workers.num_workers,
            use_gpu=workers.gpus_per_worker > 0,
            resources_per_worker={"CPU": workers.cpus_per_worker, **gpus},
        ),
        # Our own checkpoints say where a run is; each attempt therefore gets a fresh state of Ray's.
        run_config=RunConfig(
            name=f"attempt-{attempt:03d}",
            storage_path=path,
            storage_filesystem=store,
            failure_config=FailureConfig(max_failures=workers.max_failures),
        ),
    )


def _work_on_rank(job: Job, board: ray.actor.ActorHandle, streams: list[str]) -> None:
    """What Ray Train runs on every rank, with the names of the job's streams."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    waiting = iter(streams)

    def batches(size: int) -> Iterator[Columns]:
        return _rows(job, next(waiting), size) if streams else job.read_here(size, context)

    context = TrainContext(
        batches=batches,
        num_streams=max(1, len(streams)),
        device=ray.train.torch.get_device(),
        on_progress=lambda figures: board.update.remote(figures),
        on_validation=job.on_validation,
        is_stopped=StopWatch(board).is_stopped,
        is_leaving=_is_leaving,
        **_spare_cores(job.workers),
    )
    if streams and (rows := job.rows_ahead(context.world_size)):
        context.begin(rows)  # readers and teacher start now
    try:
        figures = job.work(context)
    except StoppedError:
        return  # committed, on every rank; the driver asked for it and knows
    except NonFiniteLossError as error:
        # Every rank is here at the same step. Trying again would end the same way: leave quietly and let the driver say it.
        if context.rank == 0:
            RunFolder(job.run_folder).set_status(FAILED, error=_told(job, error), kind=type(error).__name__)
        return
    ray.train.report(figures)


def _spare_cores(workers: WorkerConfig) -> dict[str, Callable[[int, float], None]]:
    """What looks for cores that this rank could use, too, where the settings leave the threads open."""
    if workers.threads is not None or workers.gpus_per_worker:
        return {}
    return {"after_step": SpareCores(max(1, int(workers.cpus_per_worker)), available_cpus()).after_step}


def _rows(job: Job, stream: str, size: int) -> Iterator[Columns]:
    job.on_stream(stream)
    shard = ray.train.get_dataset_shard(stream)
    return iter(shard.iter_batches(batch_size=size, batch_format="numpy", prefetch_batches=job.workers.prefetch_batches))


def _told(job: Job, error: NonFiniteLossError) -> str:
    return f"{job.stage}: {error}" if job.stage else str(error)


def _is_leaving() -> bool:
    """Whether a node with a worker of this group will be taken away: drained or preempted, as Ray Train was told."""
    return ray.train.get_preemption_info() is not None
