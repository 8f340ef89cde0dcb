"""The settings of finetune.py."""

from dataclasses import dataclass, field
from typing import Any

from csat.errors import ConfigError
from csat.labels.sets import LabelledConfig
from csat.model.registry import ModelConfig
from csat.precision import BEST, FLOAT32
from csat.settings import Free, Often, Place, read_settings
from csat.training.config import TrainConfig
from csat.training.validation import ValidationConfig
from workflows.shell.config import MethodConfig, PoolConfig, RayConfig, ReaderConfig, TeacherConfig, WorkerConfig

TRAIN = TrainConfig(epochs=20, batch_size=32, precision=FLOAT32)


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Settings of finetune.py."""

    run_folder: Free[Place]  # local path or s3://…; the same folder and settings resume an interrupted run
    data: LabelledConfig  # labelled images
    model: ModelConfig = field(default_factory=ModelConfig)  # what is trained, and from where it starts
    method: MethodConfig = field(default_factory=lambda: MethodConfig(name="supervised"))  # how it learns from labels
    train: TrainConfig = field(default_factory=lambda: TRAIN)  # for how long, at which rates
    validation: ValidationConfig = field(default_factory=ValidationConfig)  # when it is measured and when it stops
    metric: str | None = None  # that chooses the best weights; None: balanced_accuracy, miou or dice, by task
    test_time_views: int = 1  # views of each test image that predictions are averaged over: 1 or 8
    num_bootstraps: int = 10_000  # resamples of the groups behind each interval
    report_samples: Free[int] = 12  # worst test samples shown in the report
    workers: Free[WorkerConfig] = field(default_factory=WorkerConfig)  # processes that train
    teacher: TeacherConfig | None = None  # whom a method such as coco learns from beside the labels
    pool: Free[PoolConfig] = field(default_factory=PoolConfig)  # actors that hold the teacher
    readers: Free[ReaderConfig] = field(default_factory=ReaderConfig)  # actors that decode, where no worker does by itself
    ray: Free[RayConfig] = field(default_factory=RayConfig)  # the cluster
    prepare_only: Often[Free[bool]] = False  # stop after reading, dividing and checking the data; writes samples.csv
    neighbours_only: Often[Free[bool]] = False  # train nothing: judge the model's layers as they start, by nearest neighbours
    accept_leakage: bool = False  # train although images of the test part were in the pretraining
    overwrite: Often[Free[bool]] = False  # delete a run of another configuration in run_folder

    def __post_init__(self):
        if self.train.precision == BEST:
            raise ConfigError(
                "train.precision of a fine-tuning is float32 or bfloat16: its figures are compared with those of other "
                "machines, and must not depend on what each does best"
            )
        if self.test_time_views not in (1, 8):
            raise ConfigError(f"test_time_views is 1 or 8 (the symmetries of the square), not {self.test_time_views}")
        if self.num_bootstraps < 1:
            raise ConfigError(f"num_bootstraps must be at least 1, not {self.num_bootstraps}")
        if self.data.sampling != "natural" and self.method.options.get("class_weights", "none") != "none":
            raise ConfigError(
                f"data.sampling {self.data.sampling} and method.options.class_weights both make up for rare classes, and "
                "together would do it twice: choose one of the two"
            )


def read_config(settings: dict[str, Any]) -> FinetuneConfig:
    """A configuration from nested plain settings. Raises ConfigError."""
    return read_settings(FinetuneConfig, settings, what="finetune")
