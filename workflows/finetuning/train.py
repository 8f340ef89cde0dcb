"""What runs in a worker that trains on labels: build the model, train it, keep its best weights, judge and export them."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray
import ray.train
import torch
from torch import nn

from csat.errors import NonFiniteLossError, StoppedError
from csat.evaluation import judging, scores
from csat.evaluation.predictions import Predictions, concatenate, write_predictions
from csat.evaluation.reports.finetuning import write_downstream_report
from csat.export.folder import export_model, exported_folder, load_exported, read_exported_config
from csat.labels.datasets.contract import Decoded, Sample
from csat.labels.decoded import SampleSource
from csat.labels.reader import LabelledReader, SampleOrder, read_here, visits_an_epoch
from csat.labels.sets import LabelledData
from csat.labels.splits import class_counts
from csat.methods import registry
from csat.methods.contract import Method, Setting
from csat.model.cost import count_cost, measure_speed
from csat.model.registry import ModelConfig, build_model
from csat.prediction.windows import View
from csat.responses import ResponseSpec, TeacherSpec
from csat.runs.checkpoints import Checkpoints
from csat.runs.folder import RunFolder
from csat.runs.plan import Plan
from csat.training.context import TrainContext
from csat.training.loop import Trainer
from csat.training.validation import Validation
from teachers.contract import teacher_manifest
from teachers.stage import TeacherStage
from workflows.finetuning.config import FinetuneConfig
from workflows.finetuning.decode import LabelledStream, Prepared
from workflows.pretraining.job import is_leaving
from workflows.shell.data import TRAIN
from workflows.shell.progress import StopWatch

logger = logging.getLogger(__name__)

JUDGED = ("val", "test")
SPEED_BATCH = 8  # images at once of the speed that evaluation.json states


@dataclass(frozen=True, kw_only=True)
class FinetuneJob:
    """Everything that a worker needs to know, picklable."""

    config: FinetuneConfig
    prepared: Prepared
    teacher: TeacherSpec | None = None  # whom the method learns from too

    @property
    def num_epochs(self) -> int:
        return self.config.train.epochs

    @property
    def plan(self) -> Plan:
        labels = [sample.label for sample in self.prepared.data.parts["train"]]
        visits = int(visits_an_epoch(labels, self.config.data.sampling).sum())
        return Plan([visits], [0], num_epochs=self.num_epochs, seed=self.config.train.seed)

    @property
    def run_folder(self) -> str:
        """URI of what this job trains: its checkpoints and metrics."""
        return RunFolder(self.config.run_folder).uri

    @property
    def responses(self) -> tuple[ResponseSpec, ...]:
        """What the teacher is asked."""
        return registry.wanted_responses(self.config.method.name, self.config.method.options, self.teacher, has_labels=True)

    def teacher_stage(self) -> dict[str, Any] | None:
        """Arguments of a `TeacherStage`, less the device; None where no response is learned."""
        if not self.responses:
            return None
        asked = self.config.teacher
        return {
            "name": asked.name,
            "weights": asked.weights,
            "options": asked.options,
            "wanted": [spec.name for spec in self.responses],
            "expected_sha256": self.teacher.weights_sha256,
        }

    def reader(self) -> LabelledReader:
        """Of the training part, over decoded tables or over files."""
        data, settings, plan = self.prepared.data, self.config.data, self.plan
        samples = data.parts["train"]  # the first part: its samples have the first indices
        order = SampleOrder(plan, sampling=settings.sampling, labels=[sample.label for sample in samples])
        return LabelledReader(
            self.prepared.source(),
            samples,
            data.info,
            order,
            augment=settings.augment,
            tile_px=settings.tile_px,
            fit=settings.fit,
            seed=self.config.train.seed,
        )

    def stream(self) -> LabelledStream | None:
        """Through Ray Data, for a teacher or a set that is not kept in memory; None where every worker reads by itself."""
        teacher = self.teacher_stage()
        if self.prepared.tables is not None and teacher is None:
            return None
        return LabelledStream(
            make_reader=self.reader,
            plan=self.plan,
            readers=self.config.readers,
            teacher=teacher,
            pool=self.config.pool,
            checkpoints_uri=RunFolder(self.run_folder).path("checkpoints"),
            settings=self.config.ray,
        )


def build_method(config: FinetuneConfig, data: LabelledData, teacher: TeacherSpec | None = None) -> Method:
    """The method with its model, seeded: the same weights in every process. Raises ConfigError for what cannot work."""
    torch.manual_seed(config.train.seed)
    model = build_model(config.model, data.info, load=lambda run: load_exported(exported_folder(run)))
    counts = None
    if data.parts["train"][0].label is not None:
        counts = tuple(class_counts(data.parts["train"], len(data.info.classes)).tolist())
    setting = Setting(
        tile_px=config.data.tile_px, teacher=teacher, data=data.info, class_counts=counts, seed=config.train.seed
    )
    return registry.build_method(config.method.name, config.method.options, model, setting)


def finetune_worker(config: dict[str, Any]) -> None:
    """The function that Ray Train runs on every rank. `config` holds the `FinetuneJob` and the progress actor."""
    job: FinetuneJob = config["job"]
    progress: ray.actor.ActorHandle = config["progress"]
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    try:
        figures = train_and_judge(
            job,
            device=ray.train.torch.get_device(),
            batches=shard_batches(job),
            on_progress=lambda figures: progress.update.remote(figures),
            on_validation=lambda figures: logger.info("validation: %s", scores.in_words(figures)),
            is_stopped=StopWatch(progress).is_stopped,
            is_leaving=is_leaving,
        )
    except StoppedError:
        return  # committed, on every rank; the driver asked for it and knows
    except NonFiniteLossError as error:
        # Every rank is here at the same step. Trying again would end the same way: leave quietly and let the driver say it.
        if ray.train.get_context().get_world_rank() == 0:
            RunFolder(job.config.run_folder).set_status("failed", error=str(error), kind="NonFiniteLossError")
        return
    ray.train.report({"tiles": figures["tiles"]})


def shard_batches(job: FinetuneJob) -> Callable | None:
    """This worker's share of the job's stream; None where it reads by itself."""
    if job.stream() is None:
        return None
    shard, ahead = ray.train.get_dataset_shard(TRAIN), job.config.workers.prefetch_batches
    return lambda size: iter(shard.iter_batches(batch_size=size, batch_format="numpy", prefetch_batches=ahead))


def train_and_judge(
    job: FinetuneJob,
    *,
    device: torch.device | None = None,
    batches: Callable | None = None,
    on_progress: Callable[[dict[str, Any]], None] | None = None,
    on_validation: Callable[[dict[str, Any]], None] | None = None,
    is_stopped: Callable[[], bool] = lambda: False,
    is_leaving: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Train to the end (or to where the validation says stop), then judge and export the best weights.

    Args:
        device: Where to train; None: a GPU where the workers were given one, else the CPU.
        batches: Stream of this rank's rows; None: read by a thread of this process.
        on_progress: Called on rank 0 with each log line.
        on_validation: Called on rank 0 with each validation.
        is_stopped, is_leaving: As `TrainContext` has them.

    Returns:
        What evaluation.json holds, and `tiles`, those that were trained.
    """
    config, data, plan = job.config, job.prepared.data, job.plan
    device = device or torch.device("cuda" if config.workers.gpus_per_worker else "cpu")
    folder = RunFolder(config.run_folder)
    ignore = lambda figures: None  # noqa: E731
    context = TrainContext(
        batches=batches or (lambda size: read_in_process(job, size, context)),
        device=device,
        on_progress=on_progress or ignore,
        on_validation=on_validation or ignore,
        is_stopped=is_stopped,
        is_leaving=is_leaving,
    )
    method = build_method(config, data, job.teacher)
    if stage := method.first_stage():
        stage.load(stage.folder(folder.uri))
    method = method.to(device)
    judge = _Judge(job, context)

    def measure(model: nn.Module, context: TrainContext) -> dict[str, float]:
        return scores.validate(judge.predict(model, "val", is_final=False), metric=config.metric)

    validation = Validation(config.validation, measure, tiles_per_epoch=plan.num_tiles)
    trainer = Trainer(
        method, plan, context, config.train, run_folder=folder.uri, tile_px=config.data.tile_px, validation=validation
    )
    cursor = trainer.run()
    method.load_state_dict(validation.best_state or trainer.averaged_state())
    model = method.part("student").eval()
    predictions = {part: judge.predict(model, part, is_final=True) for part in JUDGED if data.parts[part]}
    if context.rank == 0:
        _write_results(folder, job, model, predictions, validation)
        pictures = judge.pictures(model, predictions.get("test") or predictions["val"])
        write_downstream_report(folder, pictures=pictures)
    context.gather(None)  # nobody leaves before the results are written
    return {"tiles": len(cursor.done)}


class _Judge:
    """Measures a model on the validation and test parts; every rank takes its share of the samples.

    Raises:
        StoppedError: in the midst of it, on every rank, when the run was asked to end.
    """

    def __init__(self, job: FinetuneJob, context: TrainContext):
        self.job, self.context = job, context
        self._source = job.prepared.source()
        self._until_stopped = _UntilStopped(self._source, context.is_stopped)
        data = job.prepared.data
        self._index_of = {sample.key: index for index, sample in enumerate(data.samples)}
        self._view = View(
            tile_px=job.config.data.tile_px,
            fit=job.config.data.fit,
            precision=job.config.train.precision,
        )

    def predict(self, model: nn.Module, part: str, *, is_final: bool) -> Predictions:
        """Of all samples of a part, the same on every rank. While training, only what the choosing metric needs."""
        info, config = self.job.prepared.data.info, self.job.config
        needs_instances = is_final or scores.check_metric(info.task, info.classes, config.metric) != "dice"
        view = replace(self._view, views=config.test_time_views) if is_final else self._view
        mine = self.job.prepared.data.parts[part][self.context.rank :: self.context.world_size]
        try:
            said = self._ask(judging.judge, model, mine, view, self._until_stopped, with_instances=needs_instances)
        except StoppedError:
            said = None
        parts = self.context.gather(said)
        if any(part is None for part in parts):
            raise StoppedError("the run was asked to end")
        return concatenate(parts)

    def pictures(self, model: nn.Module, predictions: Predictions) -> list[dict[str, Any]]:
        """Of the samples that the model is most wrong about."""
        worst = np.argsort(-predictions.loss, kind="stable")[: self.job.config.report_samples]
        keys = [predictions.keys[row] for row in worst]
        samples = [self.job.prepared.data.samples[self._index_of[key]] for key in keys]
        return self._ask(judging.show, model, samples, self._view, self._source)

    def _ask(
        self, how: Callable, model: nn.Module, samples: Sequence[Sample], view: View, source: SampleSource, **options: Any
    ) -> Any:
        indices = [self._index_of[sample.key] for sample in samples]
        info = self.job.prepared.data.info
        return how(model, source, samples, indices, info, view, device=self.context.device, **options)


@dataclass(frozen=True)
class _UntilStopped:
    """Samples of a source, until the run is asked to end: then StoppedError."""

    source: SampleSource
    is_stopped: Callable[[], bool]

    def get(self, index: int) -> Decoded:
        if self.is_stopped():
            raise StoppedError("the run was asked to end")
        return self.source.get(index)


def _write_results(
    folder: RunFolder, job: FinetuneJob, model: nn.Module, predictions: dict[str, Predictions], validation: Validation
) -> None:
    """predictions/, evaluation.json and exported/."""
    config, data = job.config, job.prepared.data
    for part, said in predictions.items():
        write_predictions(folder.path("predictions", f"{part}.parquet"), said)
    figures = {
        part: scores.evaluate([said], num_bootstraps=config.num_bootstraps, seed=config.data.split.seed)
        for part, said in predictions.items()
    }
    input_px = config.data.tile_px // model.downsample
    cost = count_cost(model, (1, 3, input_px, input_px))
    cost |= {"input_px": input_px, "images_per_s": measure_speed(model, (SPEED_BATCH, 3, input_px, input_px))}
    started_from = _started_from(config.model)
    folder.write_json(
        "evaluation.json",
        {
            "task": data.info.task,
            "classes": data.info.classes,
            "metric": scores.check_metric(data.info.task, data.info.classes, config.metric),
            **figures,
            "best_step": validation.best_step,
            "best_metric": validation.best,
            "seed": config.train.seed,
            "model": {"name": config.model.name, "init": config.model.init, "from_run": config.model.from_run},
            "cost": cost,
        },
    )
    metadata = {
        "task": data.info.task,
        "classes": data.info.classes,
        "tile_px": config.data.tile_px,
        "fit": config.data.fit,
        # A whole image that is stretched to the tile has no resolution of its own.
        "mpp": (config.data.mpp or data.info.mpp) if config.data.fit == "crop" else None,
        "licence": data.info.licence,
        "source": data.info.source,
        "data": data.info.name,
        "started_from": started_from,
        "teacher": teacher_manifest(job.teacher) if job.teacher else None,
    }
    export_model(model, folder.path("exported"), metadata)


def _started_from(model: ModelConfig) -> dict[str, Any] | str:
    """Where the weights came from, for the model card: of a run, what its own export says, its teacher and licence too."""
    if model.from_run is None:
        return model.init
    return {"run": model.from_run, **read_exported_config(exported_folder(model.from_run))["metadata"]}


def read_in_process(job: FinetuneJob, batch_size: int, context: TrainContext):
    """This rank's rows, read by a thread of this process, which asks the teacher too where there is one."""
    done = Checkpoints(RunFolder(job.run_folder).path("checkpoints")).latest_cursor().done
    reader, teacher = job.reader(), job.teacher_stage()
    if teacher is not None:
        stage = TeacherStage(**teacher, device=context.device.type)
        answered = lambda columns: stage(reader(columns))  # noqa: E731
    else:
        answered = reader
    return read_here(answered, job.plan, done, batch_size=batch_size, rank=context.rank, world_size=context.world_size)
