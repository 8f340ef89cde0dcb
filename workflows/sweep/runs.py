"""One cell of a sweep, start to end: search, seeds with the best setting, tidying up, and the record that says it is done."""

import logging
from typing import Any

from csat.runs.folder import RunFolder
from csat.storage import files
from csat.sweeps.study import SEEDS, TRIALS, Study, trial_name
from csat.sweeps.tracking import MlflowTracker
from csat.sweeps.trial import FAILED, FINISHED, CellResult, Trial, read_trial
from workflows.sweep.cells import Cell
from workflows.sweep.search import Progress

logger = logging.getLogger(__name__)

RESULT = "cell.json"  # written last: the cell is done
NOT_KEPT = ("checkpoints", "exported")  # of trials that were not the best
# What a trial of the search does less of: nobody reads its intervals and pictures.
TRIAL_SETTINGS = {"num_bootstraps": 200, "report_samples": 4}


def finished_result(cell: Cell) -> CellResult | None:
    """Of a cell that is done; None: there is something left to do."""
    raw = RunFolder(cell.folder).read_json(RESULT)
    return None if raw is None else CellResult.from_json(raw)


class CellRuns:
    """The runs of a cell: the trials of its study, and when they are over, the best setting with several seeds.

    The seeds are others than the trials': the best of those may owe it to its seed.
    """

    def __init__(self, cell: Cell, study: Study, *, progress: Progress, leader: CellResult | None = None):
        """
        Args:
            leader: The cell whose search chooses for this one; None: its own.
        """
        self.cell, self.study, self.progress = cell, study, progress
        self.given = {} if leader is None else leader.params
        self._has_setting = leader is None or leader.best is not None
        self._num_seeds = cell.num_seeds if self._has_setting else 0
        self._numbers: dict[str, int] = {}  # run folder → number of a trial that runs
        self._seeds: dict[int, Trial] | None = None
        progress.skip(cell.num_seeds - self._num_seeds)
        progress.begin(cell.name, TRIALS, total=study.num_trials, ended=study.ended())
        if not study.num_left:
            self._begin_seeds()

    @property
    def num_left(self) -> int:
        """Runs that have not ended. Seeds count as soon as they may come, and no more when no trial came to anything."""
        if self._seeds is None:
            return self.study.num_left + self._num_seeds
        return sum(not run.has_ended for run in self._seeds.values())

    def suggest(self) -> dict[str, Any] | None:
        if self._seeds is None:
            suggested = self.study.suggest()
            if suggested is None:
                return None
            number, params = suggested
            place = _place(self.cell, TRIALS, number)
            self._numbers[place] = number
            return {"settings": {**self.cell.run_settings(params, place), **TRIAL_SETTINGS}, "stands": False}
        if not self._waiting:
            return None
        number = self._waiting.pop(0)
        place, seed = _place(self.cell, SEEDS, number), self.cell.config.train.seed + 1 + number
        self._numbers[place] = number
        return {"settings": self.cell.run_settings({**self._params, "train.seed": seed}, place), "stands": True}

    def tell(self, run_folder: str, *, seconds: float) -> None:
        number = self._numbers.pop(run_folder)
        if self._seeds is None:
            run = self.study.tell(number, seconds=seconds)
        else:
            run = self._seeds[number] = self._read_seed(number)
            self.study.save()
        if run.has_ended:
            self.progress.ended(self.cell.name, run)
        if self._seeds is None and not self.study.num_left:
            self._begin_seeds()

    def seeds(self) -> list[Trial]:
        """Seeds that have ended."""
        return [run for run in (self._seeds or {}).values() if run.has_ended]

    def finish(self, tracker: MlflowTracker | None) -> CellResult:
        """When no run is left: tidy up, and write the record that says that the cell is done."""
        self.study.save()
        trials, best, seeds = self.study.ended(), self.study.best(), self.seeds()
        _tidy(self.cell, trials, best)
        if tracker is not None:
            _track(tracker, self.cell, trials, seeds)
        result = CellResult(
            data_set=self.cell.data_set,
            start=self.cell.start,
            trials=tuple(trials),
            best=None if best is None else best.number,
            seeds=tuple(_place(self.cell, SEEDS, run.number) for run in seeds if run.state == FINISHED),
            error=_what_failed(trials, best, seeds) if self._has_setting else f"{self.cell.leader} came to no setting",
            wall_s=self.study.wall_s,
            given=self.given,
        )
        if result.error:
            logger.warning("%s: %s", self.cell.name, result.error)
        RunFolder(self.cell.folder).write_json(RESULT, result.to_json())
        return result

    def _begin_seeds(self) -> None:
        best = self.study.best()
        if best is None and self.study.num_trials:
            self._seeds, self._waiting = {}, []
            self.progress.skip(self._num_seeds)
            return
        self._params = self.given if best is None else best.params
        self._seeds = {number: self._read_seed(number) for number in range(self._num_seeds)}
        self._waiting = [number for number, run in self._seeds.items() if not run.has_ended]
        self.progress.begin(self.cell.name, SEEDS, total=self._num_seeds, ended=self.seeds())

    def _read_seed(self, number: int) -> Trial:
        return read_trial(_place(self.cell, SEEDS, number), number=number, params=self._params)


def _place(cell: Cell, kind: str, number: int) -> str:
    return files.join(cell.folder, kind, trial_name(number))


def _tidy(cell: Cell, trials: list[Trial], best: Trial | None) -> None:
    """Weights of all trials but the best go; their settings, curves and figures stay."""
    for trial in trials:
        if best is None or trial.number != best.number:
            for name in NOT_KEPT:
                files.delete(files.join(_place(cell, TRIALS, trial.number), name))


def _what_failed(trials: list[Trial], best: Trial | None, seeds: list[Trial]) -> str | None:
    """Why a cell has no seeds, or not all; None where it has."""
    failed = [trial for trial in trials if trial.state == FAILED]
    if trials and len(failed) == len(trials):
        return f"all {len(trials)} trials failed; the first: {failed[0].error}"
    if trials and best is None:
        return f"no trial of {len(trials)} was ever validated"
    lost = [run for run in seeds if run.state == FAILED]
    return f"{len(lost)} of {len(seeds)} seeds failed; the first: {lost[0].error}" if lost else None


def _track(tracker: MlflowTracker, cell: Cell, trials: list[Trial], seeds: list[Trial]) -> None:
    for kind, runs in ((TRIALS, trials), (SEEDS, seeds)):
        for run in runs:
            tags = {
                "data_set": cell.data_set,
                "start": cell.start,
                "kind": kind,
                "number": str(run.number),
                "state": run.state,
            }
            tracker.log(_place(cell, kind, run.number), params=run.params, tags=tags)
