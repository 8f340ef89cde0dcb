"""What runs in a worker that trains on labels: build the model, train it, keep its best weights, judge and export them."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray
import ray.train
import torch
from torch import nn

from csat.data.labelled import LabelledData
from csat.data.labelled_reader import LabelledReader, SampleOrder, read_here
from csat.data.plan import Plan
from csat.data.splits import class_counts
from csat.errors import NonFiniteLossError
from csat.evaluation import downstream
from csat.evaluation.downstream_report import write_downstream_report
from csat.export import export_model
from csat.methods.contract import Method
from csat.methods.registry import build_labelled_method
from csat.model.cost import count_cost
from csat.model.registry import build_model
from csat.training.checkpoints import Checkpoints
from csat.training.context import TrainContext
from csat.training.loop import Trainer
from csat.training.run_folder import RunFolder
from csat.training.validation import Validation
from workflows.labelled_stream import LabelledStream, Prepared
from workflows.stream import TRAIN

if TYPE_CHECKING:
    from workflows.finetune import FinetuneConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class FinetuneJob:
    """Everything that a worker needs to know, picklable."""

    config: "FinetuneConfig"
    prepared: Prepared

    @property
    def plan(self) -> Plan:
        train = self.config.train
        return Plan([len(self.prepared.data.parts["train"])], [0], num_epochs=train.epochs, seed=train.seed)

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
        """Through Ray Data, for a set that is not kept in memory; None where every worker sees the decoded samples."""
        if self.prepared.tables is not None:
            return None
        return LabelledStream(
            reader=self.reader(),
            plan=self.plan,
            readers=self.config.readers,
            checkpoints_uri=RunFolder(self.config.run_folder).path("checkpoints"),
            settings=self.config.ray,
        )


def build_method(config: "FinetuneConfig", data: LabelledData) -> Method:
    """The method with its model, seeded: the same weights in every process. Raises ConfigError for what cannot work."""
    torch.manual_seed(config.train.seed)
    model = build_model(config.model, data.info)
    model.check_tile(config.data.tile_px)
    counts = class_counts(data.parts["train"], len(data.info.classes)) if data.parts["train"][0].label is not None else None
    options = {"seed": config.train.seed, **config.method.options}
    return build_labelled_method(
        config.method.name, options, model, info=data.info, tile_px=config.data.tile_px, class_counts=counts
    )


def finetune_worker(config: dict[str, Any]) -> None:
    """The function that Ray Train runs on every rank. `config` holds the `FinetuneJob` and the progress actor."""
    job: FinetuneJob = config["job"]
    progress: ray.actor.ActorHandle = config["progress"]
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    batches = None
    if job.prepared.tables is None:
        shard, ahead = ray.train.get_dataset_shard(TRAIN), job.config.workers.prefetch_batches
        batches = lambda size: iter(shard.iter_batches(batch_size=size, batch_format="numpy", prefetch_batches=ahead))  # noqa: E731
    try:
        figures = train_and_judge(
            job,
            device=ray.train.torch.get_device(),
            batches=batches,
            on_progress=lambda figures: progress.update.remote(figures),
            on_validation=lambda figures: logger.info("validation: %s", downstream.in_words(figures)),
        )
    except NonFiniteLossError as error:
        # Every rank is here at the same step. Trying again would end the same way: leave quietly and let the driver say it.
        if ray.train.get_context().get_world_rank() == 0:
            RunFolder(job.config.run_folder).set_status("failed", error=str(error), kind="NonFiniteLossError")
        return
    ray.train.report({"tiles": figures["tiles"]})


def train_and_judge(
    job: FinetuneJob,
    *,
    device: torch.device | None = None,
    batches: Callable | None = None,
    on_progress: Callable[[dict[str, Any]], None] | None = None,
    on_validation: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Train to the end (or to where the validation says stop), then judge and export the best weights.

    Args:
        device: Where to train; None: a GPU where the workers were given one, else the CPU.
        batches: Stream of this rank's rows; None: read by a thread of this process.
        on_progress: Called on rank 0 with each log line.
        on_validation: Called on rank 0 with each validation.

    Returns:
        What evaluation.json holds, and `tiles`, those that were trained.
    """
    config, data, plan = job.config, job.prepared.data, job.plan
    device = device or torch.device("cuda" if config.workers.gpus_per_worker else "cpu")
    folder = RunFolder(config.run_folder)
    ignore = lambda figures: None  # noqa: E731
    context = TrainContext(
        batches=batches or (lambda size: _read_here(job, size, context)),
        device=device,
        on_progress=on_progress or ignore,
        on_validation=on_validation or ignore,
    )
    method = build_method(config, data).to(device)
    parts = {part: _part(job, part) for part in ("val", "test")}
    views = config.test_time_views

    def measure(model: nn.Module, context: TrainContext) -> dict[str, float]:
        return downstream.validate(_predict(job, model, parts["val"], context, views=1), metric=config.metric)

    validation = Validation(config.validation, measure, tiles_per_epoch=plan.num_tiles)
    trainer = Trainer(
        method, plan, context, config.train, run_folder=folder.uri, tile_px=config.data.tile_px, validation=validation
    )
    cursor = trainer.run()
    method.load_state_dict(validation.best_state or trainer.averaged_state())
    model = method.part("student").eval()
    predictions = {
        part: _predict(job, model, samples, context, views=views) for part, samples in parts.items() if len(samples)
    }
    if context.rank == 0:
        _write_results(job, folder, model, predictions, validation)
    context.gather(None)  # nobody leaves before the results are written
    return {"tiles": len(cursor.done)}


def _read_here(job: FinetuneJob, batch_size: int, context: TrainContext):
    done = Checkpoints(RunFolder(job.config.run_folder).path("checkpoints")).latest_cursor().done
    return read_here(job.reader(), job.plan, done, batch_size=batch_size, rank=context.rank, world_size=context.world_size)
