"""The settings of tune.py."""

from dataclasses import dataclass, field
from typing import Any

from csat.errors import ConfigError
from csat.settings import Free, Often, Place, merge, unfold
from csat.sweeps.study import SEARCHERS
from workflows.finetuning.config import FinetuneConfig
from workflows.shell.config import RayConfig

SCHEDULERS = ("asha", "none")
JUST_BEFORE_END = 0.999  # share of a trial's epochs from which stopping it saves nothing


@dataclass(frozen=True, kw_only=True)
class AshaConfig:
    """Asynchronous successive halving (Li et al. 2020): at each rung only the best share continues."""

    grace: float = 0.2  # share of its epochs that every trial may train: the first rung
    reduction_factor: float = 3.0  # one in so many continues, and each rung is so many times later than the one before

    def __post_init__(self):
        if not 0 < self.grace < JUST_BEFORE_END:
            raise ConfigError(f"asha.grace is a share of the epochs, above 0 and below 1, not {self.grace}")
        if not self.reduction_factor > 1:
            raise ConfigError(f"asha.reduction_factor must be above 1, not {self.reduction_factor}")


HOLDS = {"base": FinetuneConfig}  # where a message finds a setting of finetune.py
# Settings that hold settings of finetune.py: one of them may be said on the command line.
NESTED = {
    **dict.fromkeys(("base", "data_sets", "starts"), lambda said, change: merge(unfold(said), unfold(change))),
    "search": lambda said, change: {**said, **change},
}


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """Settings of tune.py."""

    run_folder: Free[Place]  # local path or s3://…; the same folder and settings resume an interrupted sweep
    data_sets: dict[str, Any]  # name → settings of finetune.py that make the data set: data.sets, data.tile_px, …
    starts: dict[str, Any]  # name → settings of finetune.py that make the initialisation: model.name, model.init, …
    base: Often[dict[str, Any]] = field(default_factory=dict)  # settings of finetune.py that all runs share
    data_root: Often[Place | None] = None  # folder that relative paths of data sets lie in; None: the current one
    search: Often[dict[str, Any]] = field(default_factory=dict)  # setting of finetune.py → {loguniform: [low, high]}, …
    num_trials: Often[int] = 8  # settings tried in each cell
    searcher: str = "optuna"  # optuna (TPE) or random
    scheduler: str = "asha"  # asha (stops what lags behind) or none
    asha: AshaConfig = field(default_factory=AshaConfig)  # when trials are stopped
    seed: int = 0  # of the search
    final_seeds: Often[int] = 3  # runs with the best setting of each cell, each with a seed of its own: what the table shows
    max_concurrent: Often[Free[int]] = 1  # trials at once
    cpus_per_trial: Often[Free[float]] = 1.0  # CPUs reserved for each
    gpus_per_trial: Often[Free[float]] = 0.0  # GPUs reserved for each; 0.25 lets four share one
    mlflow: Free[str | None] = None  # tracking URI of an MLflow server to copy the runs to; None: TensorBoard files only
    ray: Free[RayConfig] = field(default_factory=RayConfig)  # the cluster
    overwrite: Often[Free[bool]] = False  # delete a sweep of another configuration in run_folder

    def __post_init__(self):
        for name, allowed in (("searcher", SEARCHERS), ("scheduler", SCHEDULERS)):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name} is one of {', '.join(allowed)}, not {getattr(self, name)!r}")
        for name in ("num_trials", "final_seeds", "max_concurrent"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not self.cpus_per_trial > 0 or self.gpus_per_trial < 0:
            raise ConfigError(
                f"cpus_per_trial must be above 0 and gpus_per_trial not below, not {self.cpus_per_trial:g} and "
                f"{self.gpus_per_trial:g}"
            )
