"""The settings of tune.py."""

from collections.abc import Mapping, Sequence
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
    **dict.fromkeys(("search", "settings_from", "questions"), lambda said, change: {**said, **change}),
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
    num_trials: Often[int] = 8  # settings tried in each cell; of a grid all are
    searcher: str = "optuna"  # optuna (TPE), random, or grid (every combination of choices)
    settings_from: dict[str, str] = field(default_factory=dict)  # data set → the one whose search chooses for it too
    search_only: list[str] = field(default_factory=list)  # data sets that are searched for others: they get no seeds
    scheduler: str = "asha"  # asha (stops what lags behind) or none
    asha: AshaConfig = field(default_factory=AshaConfig)  # when trials are stopped
    seed: int = 0  # of the search
    final_seeds: Often[int] = 3  # runs with the best setting of each cell, each with a seed of its own: what the table shows
    questions: Free[dict[str, list[str]]] = field(default_factory=dict)  # name → starts: a table of theirs against the first
    only: Often[Free[list[str]]] = field(default_factory=list)  # data sets that are worked at now, others later; []: all
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
        _check_leaders(self.data_sets, self.settings_from, self.search_only, has_search=bool(self.search))
        if unknown := [name for name in self.only if name not in self.data_sets]:
            raise ConfigError(f"only names {unknown[0]!r}; the data sets are: {', '.join(self.data_sets)}")
        for name, starts in self.questions.items():
            if len(starts) < 2 or len(set(starts) & set(self.starts)) < len(starts):
                raise ConfigError(f"questions.{name} compares two or more of {', '.join(self.starts)}, not {starts}")
        if not self.cpus_per_trial > 0 or self.gpus_per_trial < 0:
            raise ConfigError(
                f"cpus_per_trial must be above 0 and gpus_per_trial not below, not {self.cpus_per_trial:g} and "
                f"{self.gpus_per_trial:g}"
            )


def _check_leaders(
    data_sets: Mapping[str, Any], leaders: Mapping[str, str], search_only: Sequence[str], *, has_search: bool
) -> None:
    """Which data set searches for which."""
    if (leaders or search_only) and not has_search:
        raise ConfigError("settings_from and search_only are about the search, and nothing is searched: set search")
    for name in (*leaders, *leaders.values(), *search_only):
        if name not in data_sets:
            raise ConfigError(f"settings_from and search_only name {name!r}; the data sets are: {', '.join(data_sets)}")
    for name, leader in leaders.items():
        if leader in leaders:
            raise ConfigError(f"settings_from.{name}: {leader} is in settings_from too, and has no search of its own")
    if both := sorted(set(leaders) & set(search_only)):
        raise ConfigError(f"{both[0]} is in settings_from and in search_only: then nothing of it would be run")
