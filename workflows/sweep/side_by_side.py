"""The runs of several cells side by side: while a cell waits for its last trial or seed, the next one gets what is free."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ray.tune.schedulers import TrialScheduler

from csat.sweeps.space import Dimension
from csat.sweeps.study import Study
from csat.sweeps.tracking import MlflowTracker
from csat.sweeps.trial import CellResult
from workflows.sweep.cells import Cell
from workflows.sweep.config import SweepConfig
from workflows.sweep.runs import CellRuns
from workflows.sweep.search import Progress, Resources, make_scheduler, run_trials


def run_cells(
    cells: Sequence[Cell],
    config: SweepConfig,
    space: tuple[Dimension, ...],
    *,
    data_name: str,
    progress: Progress,
    tracker: MlflowTracker | None,
    leaders: Mapping[str, CellResult],
) -> dict[str, CellResult]:
    """Do what is left of cells of one group.

    Args:
        data_name: Under which their data are shared.
        leaders: Name → what the cells came to whose search chooses for these.

    Returns:
        Name → what each cell came to.
    """
    schedulers: dict[str, TrialScheduler] = {}
    results: dict[str, CellResult] = {}

    def open_cell(cell: Cell) -> CellRuns:
        study = Study(cell.folder, space, searcher=config.searcher, num_trials=cell.num_trials, seed=config.seed)
        epochs, history = cell.config.train.epochs, study.ended()
        schedulers[cell.name] = make_scheduler(config.scheduler, config.asha, epochs=epochs, history=history)
        return CellRuns(cell, study, progress=progress, leader=None if cell.leader is None else leaders[cell.leader])

    def end_cell(runs: CellRuns) -> None:
        results[runs.cell.name] = runs.finish(tracker)

    queue = RunQueue(cells, open_cell, end_cell)
    if queue.num_left:
        run_trials(
            queue,
            folder=config.run_folder,
            data=data_name,
            progress=progress,
            schedulers=schedulers,
            resources=Resources(
                max_concurrent=config.max_concurrent,
                cpus=config.cpus_per_trial,
                gpus=config.gpus_per_trial,
                is_group=cells[0].is_group,
            ),
        )
    return results


class RunQueue:
    """The runs of several cells, the first cell's first. A cell is opened when the ones before it have nothing to give.

    Args:
        open_cell: Called once for each cell.
        end_cell: Called as soon as all runs of a cell have ended.
    """

    def __init__(self, cells: Sequence[Cell], open_cell: Callable[[Cell], CellRuns], end_cell: Callable[[CellRuns], None]):
        self._waiting = list(cells)
        self._open_cell, self._end_cell = open_cell, end_cell
        self._open: list[CellRuns] = []
        self._running: dict[str, CellRuns] = {}  # run folder → the cell's
        while self._waiting and not self._open:
            self._open_next()

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune keeps a copy that nobody asks for

    @property
    def num_left(self) -> int:
        """Runs that have not ended; of cells that are not open yet, all."""
        return sum(runs.num_left for runs in self._open) + sum(cell.num_runs for cell in self._waiting)

    def suggest(self) -> dict[str, Any] | None:
        for runs in self._open:
            if found := self._suggest_of(runs):
                return found
        while self._waiting:
            runs = self._open_next()
            if found := self._suggest_of(runs):
                return found
        return None

    def tell(self, run_folder: str, *, seconds: float) -> None:
        runs = self._running.pop(run_folder)
        runs.tell(run_folder, seconds=seconds)
        self._close_if_done(runs)

    def _suggest_of(self, runs: CellRuns) -> dict[str, Any] | None:
        suggested = runs.suggest() if runs.num_left else None
        if suggested is None:
            return None
        self._running[suggested["settings"]["run_folder"]] = runs
        return {**suggested, "cell": runs.cell.name}

    def _open_next(self) -> CellRuns:
        runs = self._open_cell(self._waiting.pop(0))
        self._open.append(runs)
        self._close_if_done(runs)
        return runs

    def _close_if_done(self, runs: CellRuns) -> None:
        if not runs.num_left:
            self._open.remove(runs)
            self._end_cell(runs)
