"""Train a model on labelled images: a student from pretrain.py, a timm backbone, a U-Net or a HoVer-Net.

    python workflows/finetune.py --data.sets.lc25000_lung data/lc25000_lung --model.init run --model.from_run runs/rckd \
        --run_folder runs/lung

Every image is decoded once, the data are divided by group, the model is trained under Ray Train, its best weights are kept
and judged on the test part with intervals. What comes out is a run folder: `pretrain.py --teacher runs/lung` takes it as a
teacher. Run the same command again to go on after any interruption.
"""

import csv
import io
import json
import logging
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the script runs from a checkout, installed or not

from workflows import interruption

if __name__ == "__main__":
    interruption.listen()  # before the imports, which take seconds

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from csat.data import storage
from csat.data.labelled import LabelledConfig, LabelledData, assemble
from csat.data.splits import PARTS
from csat.errors import ConfigError, NonFiniteLossError, StoppedError
from csat.evaluation import downstream
from csat.methods.registry import spell_out
from csat.model.registry import ModelConfig
from csat.responses import TeacherSpec
from csat.settings import read_settings
from csat.text import last_line
from csat.training.checkpoints import Checkpoints
from csat.training.loop import TrainConfig
from csat.training.run_folder import RunFolder
from csat.training.validation import ValidationConfig
from teachers.registry import describe_teacher
from workflows import cli, cluster, results
from workflows.config import MethodConfig, PoolConfig, RayConfig, ReaderConfig, TeacherConfig, WorkerConfig, check_counts
from workflows.kept import INTERRUPTED, kept_of_run
from workflows.labelled_stream import Prepared, decode
from workflows.labelled_worker import FinetuneJob, build_method, finetune_worker, train_and_judge
from workflows.leakage import check_leakage
from workflows.meters import StoreMeter
from workflows.paraphrase_worker import make_job, paraphrase_worker, train_paraphrasers
from workflows.paraphrasers import are_missing, ready_paraphrasers
from workflows.places import with_places_found
from workflows.progress import ProgressDisplay, make_board, passes_on
from workflows.run_teacher import check_same_teacher
from workflows.stream import TRAIN, WholeSplit, execution_options

logger = logging.getLogger("finetune")


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Settings of finetune.py."""

    run_folder: str  # local path or s3://…; the same folder and settings go on with an interrupted run
    data: LabelledConfig  # labelled images
    model: ModelConfig = field(default_factory=ModelConfig)  # what is trained, and from where it starts
    method: MethodConfig = field(default_factory=lambda: MethodConfig(name="supervised"))  # how it learns from labels
    train: TrainConfig = field(default_factory=lambda: TrainConfig(epochs=20, batch_size=32))  # for how long, at which rates
    validation: ValidationConfig = field(default_factory=ValidationConfig)  # when it is measured and when it stops
    metric: str | None = None  # that chooses the best weights; None: balanced_accuracy, miou or dice, by task
    test_time_views: int = 1  # views of each test image that predictions are averaged over: 1 or 8
    num_bootstraps: int = 10_000  # resamples of the groups behind each interval
    report_samples: int = 12  # worst test samples shown in the report
    workers: WorkerConfig = field(default_factory=WorkerConfig)  # processes that train
    teacher: TeacherConfig | None = None  # whom a method such as coco learns from beside the labels
    pool: PoolConfig = field(default_factory=PoolConfig)  # actors that hold the teacher
    readers: ReaderConfig = field(default_factory=ReaderConfig)  # actors that decode, where not every worker does by itself
    ray: RayConfig = field(default_factory=RayConfig)  # the cluster
    prepare_only: bool = False  # stop after reading, dividing and checking the data; writes samples.csv
    accept_leakage: bool = False  # go on although images of the test part were in the pretraining
    overwrite: bool = False  # delete a run of another configuration in run_folder

    def __post_init__(self):
        if self.test_time_views not in (1, 8):
            raise ConfigError(f"test_time_views is 1 or 8 (the symmetries of the square), not {self.test_time_views}")
        if self.num_bootstraps < 1:
            raise ConfigError(f"num_bootstraps must be at least 1, not {self.num_bootstraps}")
        if self.data.sampling != "natural" and self.method.options.get("class_weights", "none") != "none":
            raise ConfigError(
                f"data.sampling {self.data.sampling} and method.options.class_weights both make up for rare classes, and "
                "together would do it twice: choose one of the two"
            )


def main(argv: list[str] | None = None) -> int:
    """Run the verb. Returns the exit code, see `cli.run`; 0 also where the run was done before."""
    return cli.run(finetune, FinetuneConfig, __doc__, argv, kept=lambda config: kept_of_run(config.run_folder))


def read_config(settings: dict[str, Any]) -> tuple[FinetuneConfig, dict[str, Any]]:
    """A configuration from nested plain settings, and the same as plain values. Raises ConfigError."""
    config = read_settings(FinetuneConfig, settings, what="finetune")
    return config, json.loads(json.dumps(asdict(config)))


def finetune(config: FinetuneConfig, plain: dict[str, Any]) -> int:
    """All of it, top to bottom."""
    config, plain = with_places_found(config, plain)
    folder = RunFolder(config.run_folder)
    config.train.rows_per_worker(config.workers.num_workers)
    _open(folder, config, plain)
    if folder.is_finished():
        print(f"this run is finished: nothing to do\n{where(folder)}")
        return 0
    data = check(config)
    cluster.connect(config.ray, kept_gb=2 * config.data.memory_gb)
    cluster.check_workers(config.workers, pool=config.pool if config.teacher else None, readers=config.readers)
    cluster.check_run_folder_is_shared(folder.uri)
    prepared = decode(config.data, data)
    _print_data(data)
    if config.prepare_only:
        _write_samples(folder, prepared)
        print(f"the data are in order: {folder.path('samples.csv')}")
        return 0
    fit(config, plain, prepared)
    print(where(folder))
    return 0


def check(config: FinetuneConfig, data: LabelledData | None = None) -> LabelledData:
    """Everything that can be known without decoding: layouts, parts, classes, model, method, leakage.

    Args:
        data: Of the same `data` settings, where they were assembled before.

    Raises:
        ConfigError, DatasetError, StorageError: what is wrong and what to try.
    """
    data = data or assemble(config.data)
    downstream.check_metric(data.info.task, data.info.classes, config.metric)
    teacher = describe(config)
    method = build_method(config, data, teacher)
    if not are_missing(method, config):
        ready_paraphrasers(method, config, teacher)
    if not config.accept_leakage:
        check_leakage(config.model, data, teacher=config.teacher)
    return data


def describe(config: FinetuneConfig) -> TeacherSpec | None:
    """The teacher's spec, checked against the tiles; None without a teacher. Raises ConfigError, TeacherError."""
    if config.teacher is None:
        return None
    check_counts(pool=config.pool, readers=config.readers)
    spec = describe_teacher(config.teacher.name, config.teacher.weights, config.teacher.options)
    mpp = config.data.mpp if config.data.fit == "crop" else None  # an image stretched to its tile has no resolution
    spec.check_view(tile_px=config.data.tile_px, mpp=mpp, accept_any_mpp=config.teacher.accept_any_mpp)
    return spec


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
    _open(folder, config, plain)
    if folder.is_finished():
        return folder.read_json("evaluation.json")
    _write_data(folder, prepared)
    _write_samples(folder, prepared)
    job = FinetuneJob(config=config, prepared=prepared, teacher=describe(config))
    if job.teacher is not None:
        check_same_teacher(folder, job.teacher)
    folder.set_status("running")
    is_alone = in_this_process and config.workers.num_workers == 1
    try:
        method = build_method(config, prepared.data, job.teacher)
        Checkpoints(folder.path("checkpoints")).check_fits(method)
        if are_missing(method, config):
            first = make_job(job, method)
            if is_alone:
                train_paraphrasers(first, is_stopped=is_stopped)
            else:
                _train_in_group(first, folder, paraphrase_worker, is_stopped)
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
    results.write_accounts(folder, job.plan, checkpoint, is_stopped=is_stopped)
    results.write_throughput(folder, checkpoint, num_workers=config.workers.num_workers, student=evaluation["cost"])
    folder.set_status("finished")
    return evaluation


def _open(folder: RunFolder, config: FinetuneConfig, plain: dict[str, Any]) -> None:
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
    store, path = storage.arrow_filesystem(folder.path("ray"))
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
    results.write_attempt(folder, attempt, seconds=time.monotonic() - started, store=meter.figures())


def _print_data(data: LabelledData) -> None:
    for part in PARTS:
        samples = data.parts[part]
        groups = len({sample.group for sample in samples})
        by_class = ""
        if samples and samples[0].label is not None:
            counts = [sum(sample.label == index for sample in samples) for index in range(len(data.info.classes))]
            by_class = ": " + ", ".join(f"{name} {count:,}" for name, count in zip(data.info.classes, counts, strict=True))
        print(f"{part}: {len(samples):,} images of {groups:,} groups{by_class}")
    if data.unlabelled:
        print(f"not used (label_fraction): {len(data.unlabelled):,} images")
    if data.info.note:
        print(f"note: {data.info.note}")


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


def _write_samples(folder: RunFolder, prepared: Prepared) -> None:
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


if __name__ == "__main__":
    sys.exit(main())
