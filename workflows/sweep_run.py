"""One cell of a sweep, start to end: search, seeds with the best setting, tidying up, and the record that says it is done."""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from csat.data import storage
from csat.evaluation.sweep import FAILED, FINISHED, CellResult, Trial, read_trial
from csat.training.run_folder import RunFolder
from workflows.search_space import Dimension
from workflows.sweep_cells import SEEDS, TRIALS, Cell
from workflows.sweep_search import RAY_FOLDER, Progress, Resources, make_scheduler, run_trials
from workflows.sweep_study import Study, trial_name
from workflows.tracking import MlflowTracker

if TYPE_CHECKING:
    from workflows.tune import SweepConfig

logger = logging.getLogger(__name__)

RESULT = "cell.json"  # written last: the cell is done
NOT_KEPT = ("checkpoints", "exported")  # of trials that were not the best
# What a trial of the search does less of: nobody reads its intervals and pictures.
TRIAL_SETTINGS = {"num_bootstraps": 200, "report_samples": 4}
SEED = "train.seed"


def finished_result(cell: Cell) -> CellResult | None:
    """Of a cell that is done; None: there is something left to do."""
    raw = RunFolder(cell.folder).read_json(RESULT)
    return None if raw is None else CellResult.from_json(raw)


def run_cell(
    cell: Cell,
    config: "SweepConfig",
    space: tuple[Dimension, ...],
    *,
    data_name: str,
    progress: Progress,
    tracker: MlflowTracker | None,
) -> CellResult:
    """Do what is left of a cell.

    Args:
        data_name: Of the `DataHolder` with the cell's data.
    """
    train, is_group = cell.config.train, cell.config.workers.num_workers > 1
    common = dict(
        folder=cell.folder,
        data=data_name,
        progress=progress,
        resources=Resources(
            max_concurrent=config.max_concurrent, cpus=config.cpus_per_trial, gpus=config.gpus_per_trial, is_group=is_group
        ),
    )
    num_trials = config.num_trials if space else 0
    study = Study(cell.folder, space, searcher=config.searcher, num_trials=num_trials, seed=config.seed)
    if study.num_left:
        progress.begin(f"{cell.name}: trials", total=num_trials, ended=study.ended())
        scheduler = make_scheduler(config.scheduler, config.asha, epochs=train.epochs, history=study.ended())
        run_trials(study, _settings_of_trials(cell), scheduler=scheduler, **common)
    trials, best = study.ended(), study.best()
    seeds: list[Trial] = []
    if best is not None or not space:
        params = {} if best is None else best.params
        runs = SeedRuns(cell, params, first=train.seed + 1, num=config.final_seeds, on_end=study.save)
        if runs.num_left:
            progress.begin(f"{cell.name}: seeds", total=config.final_seeds, ended=runs.ended())
            scheduler = make_scheduler("none", config.asha, epochs=train.epochs, history=())
            run_trials(runs, runs.settings_of, scheduler=scheduler, **common)
        seeds = runs.ended()
    else:
        progress.skip(config.final_seeds)
    study.save()
    _tidy(cell, trials, best)
    if tracker is not None:
        _track(tracker, cell, trials, seeds)
    result = CellResult(
        data_set=cell.data_set,
        start=cell.start,
        trials=tuple(trials),
        best=None if best is None else best.number,
        seeds=tuple(_seed_folder(cell, run.number) for run in seeds if run.state == FINISHED),
        error=_what_failed(trials, seeds),
        wall_s=study.wall_s,
    )
    if result.error:
        logger.warning("%s: %s", cell.name, result.error)
    RunFolder(cell.folder).write_json(RESULT, result.to_json())
    return result


class SeedRuns:
    """Runs with one setting and different seeds of the training, by number.

    Args:
        params: The setting.
        first: Seed of the first run. It is not the trials': the best of them may owe it to its seed.
        num: Of runs.
        on_end: Called when one has ended.
    """

    def __init__(self, cell: Cell, params: dict[str, Any], *, first: int, num: int, on_end: Callable[[], None]):
        self.cell, self.params, self.first, self.on_end = cell, params, first, on_end
        self._runs = {number: self._read(number) for number in range(num)}
        self._waiting = [number for number, run in self._runs.items() if not run.has_ended]

    @property
    def num_left(self) -> int:
        return sum(not run.has_ended for run in self._runs.values())

    def ended(self) -> list[Trial]:
        return [run for run in self._runs.values() if run.has_ended]

    def suggest(self) -> tuple[int, dict[str, Any]] | None:
        if not self._waiting:
            return None
        number = self._waiting.pop(0)
        return number, {**self.params, SEED: self.first + number}

    def tell(self, number: int, *, seconds: float) -> Trial:
        self._runs[number] = self._read(number)
        self.on_end()
        return self._runs[number]

    def settings_of(self, number: int, values: dict[str, Any]) -> dict[str, Any]:
        return self.cell.run_settings(values, SEEDS, str(number))

    def _read(self, number: int) -> Trial:
        return read_trial(_seed_folder(self.cell, number), number=number, params=self.params)


def _settings_of_trials(cell: Cell) -> Callable[[int, dict[str, Any]], dict[str, Any]]:
    return lambda number, params: {**cell.run_settings(params, TRIALS, trial_name(number)), **TRIAL_SETTINGS}


def _seed_folder(cell: Cell, number: int) -> str:
    return storage.join(cell.folder, SEEDS, str(number))


def _tidy(cell: Cell, trials: list[Trial], best: Trial | None) -> None:
    """Weights of all trials but the best go; their settings, curves and figures stay."""
    for trial in trials:
        if best is None or trial.number != best.number:
            for name in NOT_KEPT:
                storage.delete(storage.join(cell.folder, TRIALS, trial_name(trial.number), name))
    storage.delete(storage.join(cell.folder, RAY_FOLDER))


def _what_failed(trials: list[Trial], seeds: list[Trial]) -> str | None:
    """Why a cell has no seeds, or not all; None where it has."""
    failed = [trial for trial in trials if trial.state == FAILED]
    if trials and len(failed) == len(trials):
        return f"all {len(trials)} trials failed; the first: {failed[0].error}"
    if trials and not seeds:
        return f"no trial of {len(trials)} was ever validated"
    lost = [run for run in seeds if run.state == FAILED]
    return f"{len(lost)} of {len(seeds)} seeds failed; the first: {lost[0].error}" if lost else None


def _track(tracker: MlflowTracker, cell: Cell, trials: list[Trial], seeds: list[Trial]) -> None:
    for kind, runs in ((TRIALS, trials), (SEEDS, seeds)):
        for run in runs:
            place = storage.join(cell.folder, kind, trial_name(run.number) if kind == TRIALS else str(run.number))
            tags = {
                "data_set": cell.data_set,
                "start": cell.start,
                "kind": kind,
                "number": str(run.number),
                "state": run.state,
            }
            tracker.log(place, params=run.params, tags=tags)
