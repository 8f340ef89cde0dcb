"""Ray Tune over the runs of cells: hands out settings, stops what lags behind, tells how far it is."""

import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Protocol

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from csat.evaluation.sweep_table import duration
from csat.runs.folder import RunFolder
from csat.storage import files
from csat.sweeps.trial import FAILED, PRUNED, Trial
from workflows.shell import interruption, progress
from workflows.shell.board import make_board
from workflows.sweep.config import JUST_BEFORE_END, AshaConfig
from workflows.sweep.trial import EPOCH, METRIC, SHARE, STANDS, run_trial

RAY_FOLDER = "ray"  # of a sweep: Tune's own notes, deleted when it ends
MAX_DEATHS = 2  # of a trial's process, after which the trial counts as failed
GROUP_DRIVER_CPUS = 0.1  # of a trial whose training is a group of workers beside it
TUNE_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the run folders have it all
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # an interrupted sweep is not a finished one
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial that fails before its first validation has nothing to report
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune's own tables; the older ones obey `verbose`
}
# Loggers: one misses the files of the loggers that are switched off, the other counts half seconds.
TUNE_CHATTER = ("ray.tune.analysis.experiment_analysis", "ray.tune.utils.util")


class Work(Protocol):
    """Runs that are to be made."""

    @property
    def num_left(self) -> int:
        """Runs that have not ended; 0: there is nothing more to do."""

    def suggest(self) -> dict[str, Any] | None:
        """What the next run gets (`settings` and `stands` of `run_trial`), and the name of its `cell`; None: there is none
        before another has ended."""

    def tell(self, run_folder: str, *, seconds: float) -> None:
        """A run has ended, or was interrupted."""


@dataclass(frozen=True, kw_only=True)
class Resources:
    """Of one trial, and how many run at once."""

    max_concurrent: int
    cpus: float
    gpus: float
    is_group: bool  # its workers ask for their own

    def request(self) -> dict[str, float]:
        if self.is_group:
            return {"cpu": GROUP_DRIVER_CPUS}
        return {"cpu": self.cpus, **({"gpu": self.gpus} if self.gpus else {})}


def run_trials(
    work: Work,
    *,
    folder: str,
    data: str,
    resources: Resources,
    schedulers: Mapping[str, TrialScheduler],
    progress: "Progress",
) -> None:
    """Run all that is left of `work`. Returns when every run has ended, well or not.

    Args:
        folder: URI of the sweep's folder.
        data: Name under which the data are shared.
        schedulers: Of each cell, by its name; there when the first run of the cell is suggested.
    """
    os.environ.update(TUNE_SETTINGS)
    for name in TUNE_CHATTER:
        logging.getLogger(name).setLevel(logging.ERROR)
    files.delete(files.join(folder, RAY_FOLDER))
    store, path = files.arrow_filesystem(folder)
    board = make_board(f"stop of {folder}")
    tuner = tune.Tuner(
        tune.with_resources(run_trial, resources.request()),
        tune_config=tune.TuneConfig(
            search_alg=_Handout(work, {"data": data, "board": f"stop of {folder}"}),
            scheduler=_CellSchedulers(schedulers),
            num_samples=work.num_left,
            max_concurrent_trials=resources.max_concurrent,
            reuse_actors=not resources.is_group,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name=RAY_FOLDER,
            storage_path=path,
            storage_filesystem=store,
            failure_config=tune.FailureConfig(max_failures=MAX_DEATHS),
            verbose=0,
            callbacks=[progress],
        ),
    )
    with interruption.stoppable(lambda: ray.get(board.stop.remote())):
        tuner.fit()
    ray.kill(board)
    files.delete(files.join(folder, RAY_FOLDER))
    if work.num_left:
        raise RuntimeError(f"Ray Tune came to an end with {work.num_left} runs left: run the same command to resume")


def make_scheduler(name: str, asha: AshaConfig, *, epochs: int, history: Sequence[Trial]) -> TrialScheduler:
    """Of one cell, with the trials of earlier attempts already on its rungs."""
    if name == "none":
        return FIFOScheduler()
    scheduler = RecordedAsha(
        time_attr=SHARE,
        metric=METRIC,
        mode="max",
        grace_period=asha.grace,
        reduction_factor=asha.reduction_factor,
        max_t=JUST_BEFORE_END,
        stop_last_trials=False,  # a trial that has reached its end is judged and exported before it ends
    )
    scheduler.learn(history, epochs)
    return scheduler


class RecordedAsha(ASHAScheduler):
    """ASHA whose decisions are written down and stand: what an earlier attempt let continue is not stopped when told again."""

    def learn(self, history: Sequence[Trial], epochs: int) -> None:
        """Trials that ended before; `epochs` of those whose settings do not say."""
        for trial in history:
            stand_in = SimpleNamespace(trial_id=f"earlier-{trial.number}")
            self.on_trial_add(None, stand_in)
            best = float("-inf")
            for epoch, metric in trial.curve:
                best = max(best, metric)
                share = epoch / trial.params.get("train.epochs", epochs)
                super().on_trial_result(None, stand_in, {SHARE: share, METRIC: best})

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        action = super().on_trial_result(tune_controller, trial, result)
        if result.get(STANDS) or result.get("done"):
            return TrialScheduler.CONTINUE
        if action == TrialScheduler.STOP:
            # The trial waits for this answer: nobody else writes now.
            run_folder = RunFolder(trial.config["settings"]["run_folder"])
            run_folder.set_status(PRUNED, epoch=result[EPOCH], metric=result[METRIC])
        return action


class _CellSchedulers(FIFOScheduler):
    """A scheduler for each cell: a trial is compared with those of its own cell alone."""

    def __init__(self, schedulers: Mapping[str, TrialScheduler]):
        super().__init__()
        self._schedulers = schedulers

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        self._of(trial).on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        return self._of(trial).on_trial_result(tune_controller, trial, result)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        self._of(trial).on_trial_complete(tune_controller, trial, result)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        self._of(trial).on_trial_error(tune_controller, trial)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        self._of(trial).on_trial_remove(tune_controller, trial)

    def _of(self, trial: Any) -> TrialScheduler:
        return self._schedulers[trial.config["cell"]]


@dataclass
class _Part:
    """The trials, or the seeds, of a cell."""

    what: str
    total: int
    ended: list[Trial]
    best: float | None = field(init=False, default=None)

    def __post_init__(self):
        for trial in self.ended:
            self.note(trial.metric)

    def note(self, metric: float | None) -> None:
        if metric is not None and (self.best is None or metric > self.best):
            self.best = metric


class Progress(tune.Callback):
    """How far the whole sweep is.

    Args:
        num_runs: Of the sweep.
        num_done: Before this attempt.
    """

    def __init__(self, *, num_runs: int, num_done: int):
        self.num_runs, self.num_done = num_runs, num_done
        self._num_before, self._started = num_done, time.monotonic()
        self._shown = progress.Progress("sweep", total=num_runs, unit="run")
        self._parts: dict[str, _Part] = {}  # cell → what is done of it now

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_shown": None}  # Tune keeps a copy that nobody asks for, and a bar cannot be copied

    def begin(self, cell: str, kind: str, *, total: int, ended: Sequence[Trial]) -> None:
        """The next part of a cell: its trials, or its seeds."""
        self._parts[cell] = _Part(f"{cell}: {kind}", total, list(ended))
        self.num_done += len(ended)
        self._num_before += len(ended)

    def close(self) -> None:
        """The sweep is over, or was interrupted."""
        self._shown.close()

    def skip(self, num_runs: int) -> None:
        """Runs that will not be made."""
        self.num_runs -= num_runs
        self._shown.total = self.num_runs

    def ended(self, cell: str, trial: Trial) -> None:
        """A run is over."""
        part = self._parts[cell]
        part.ended.append(trial)
        part.note(trial.metric)
        self.num_done += 1
        self._show(part, is_last=len(part.ended) == part.total)

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict[str, Any], **info: Any) -> None:
        part = self._parts[trial.config["cell"]]
        part.note(result.get(METRIC))
        self._show(part)

    def line(self, cell: str) -> str:
        """What is shown when something of a cell is new."""
        return self._line(self._parts[cell])

    def _line(self, part: _Part) -> str:
        states = [trial.state for trial in part.ended]
        counts = [f"{states.count(state)} {state}" for state in (PRUNED, FAILED) if state in states]
        best = "" if part.best is None else f" | best {part.best:.3f}"
        made, left = self.num_done - self._num_before, self.num_runs - self.num_done
        eta = f" | ETA {duration((time.monotonic() - self._started) / made * left)}" if made and left else ""
        done = f"{len(states)}/{part.total}" + (f" ({', '.join(counts)})" if counts else "")
        return f"{part.what} {done}{best}{eta}"

    def _show(self, part: _Part, *, is_last: bool = False) -> None:
        self._shown.show(self.num_done, self._line(part), is_last=is_last, cell=part.what, best=part.best)


class _Handout(Searcher):
    """Tune's side of a `Work`."""

    def __init__(self, work: Work, names: dict[str, str]):
        super().__init__(metric=METRIC, mode="max")
        self._work, self._names = work, names
        self._running: dict[str, tuple[str, float]] = {}  # Tune's name → run folder, start

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if not self._work.num_left or interruption.is_interrupted():
            return Searcher.FINISHED
        suggested = self._work.suggest()
        if suggested is None:
            return None
        self._running[trial_id] = suggested["settings"]["run_folder"], time.monotonic()
        return {**suggested, **self._names}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        run_folder, started = self._running.pop(trial_id)
        if error:
            why = f"its process ended {MAX_DEATHS + 1} times without a word: killed, or out of memory"
            RunFolder(run_folder).set_status(FAILED, error=why, kind="ProcessDied")
        self._work.tell(run_folder, seconds=time.monotonic() - started)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the work keeps its own record."""

    def restore(self, checkpoint_path: str) -> None:
        raise AssertionError("a sweep resumes from its record, not from Tune's")
