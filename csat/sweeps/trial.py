"""What a sweep found: its trials, as their run folders tell it, and its cells, each a data set from one start."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from csat.runs.folder import RunFolder
from csat.runs.recorder import read_metrics

FINISHED, PRUNED, FAILED = "finished", "pruned", "failed"
ENDED = (FINISHED, PRUNED, FAILED)  # states of a trial that nothing more is done for


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One trial of a search.

    Attributes:
        params: Dotted setting → value.
        state: finished, pruned (stopped early because others were better), failed, running, or waiting (no run folder yet).
        metric: Best on the validation part; None before the first validation.
        curve: (epoch, metric) of each validation.
        error: Of a failed one.
        seconds: That it trained, over all attempts.
    """

    number: int
    params: dict[str, Any]
    state: str
    metric: float | None = None
    curve: tuple[tuple[float, float], ...] = field(default=(), repr=False)
    error: str | None = None
    seconds: float = 0.0

    @property
    def has_ended(self) -> bool:
        return self.state in ENDED

    @property
    def epochs(self) -> float:
        return self.curve[-1][0] if self.curve else 0.0


def read_trial(run_folder: str, *, number: int, params: Mapping[str, Any], seconds: float = 0.0) -> Trial:
    """A trial as its run folder tells it."""
    folder = RunFolder(run_folder)
    status = folder.read_json("status.json") or {"state": "waiting"}
    curve = {float(line["epoch"]): float(line["metric"]) for line in read_metrics(folder.uri, "validation")}
    if status["state"] == PRUNED:  # a bucket gets the lines at checkpoints only: the last ones may be missing there
        curve[float(status["epoch"])] = float(status["metric"])
    return Trial(
        number=number,
        params=dict(params),
        state=status["state"],
        metric=max(curve.values(), default=None),
        curve=tuple(sorted(curve.items())),
        error=status.get("error"),
        seconds=seconds,
    )


def best_trial(trials: Sequence[Trial]) -> Trial | None:
    """The highest validation metric among those that ran to their end; only where there is none, among the pruned."""
    for state in (FINISHED, PRUNED):
        measured = [trial for trial in trials if trial.state == state and trial.metric is not None]
        if measured:
            return max(measured, key=lambda trial: (trial.metric, -trial.number))
    return None


@dataclass(frozen=True, kw_only=True)
class CellResult:
    """One data set from one start, when all of its runs have ended.

    Attributes:
        trials: Of the search.
        best: Number of the best trial; None: there was no search, or nothing came of it.
        seeds: URIs of the finished runs with the best setting.
        error: Why there are no such runs, or not as many as asked for; None: all is well.
        wall_s: From the first trial to the last seed, over all attempts.
        given: The setting that the search of another data set has chosen, where this cell has no search of its own.
    """

    data_set: str
    start: str
    trials: tuple[Trial, ...] = field(repr=False)
    best: int | None
    seeds: tuple[str, ...]
    error: str | None = None
    wall_s: float = 0.0
    given: dict[str, Any] = field(default_factory=dict)

    @property
    def params(self) -> dict[str, Any]:
        """The best setting."""
        return self.given if self.best is None else next(trial.params for trial in self.trials if trial.number == self.best)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "CellResult":
        trials = tuple(
            Trial(**{**trial, "curve": tuple((epoch, metric) for epoch, metric in trial["curve"])}) for trial in raw["trials"]
        )
        return cls(**{**raw, "trials": trials, "seeds": tuple(raw["seeds"])})
