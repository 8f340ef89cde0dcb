"""Search hyper-parameters on several data sets from several initialisations, and end in one table that compares them.

    python workflows/tune.py --config downstream_cpu --data_root data --starts.rckd.model.from_run runs/rckd \
        --run_folder runs/sweep

Every data set from every start is a cell: its hyper-parameters are searched with the same number of trials, and the best
setting by the validation part is trained again with several seeds. Those runs are what the table shows on the test part.
Settings below `base`, `data_sets.NAME` and `starts.NAME` are settings of finetune.py. Run the same command again to go on
after any interruption.
"""

import logging
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the script runs from a checkout, installed or not

from workflows import interruption

if __name__ == "__main__":
    interruption.listen()  # before the imports, which take seconds

from csat.data import storage
from csat.data.labelled import LabelledData
from csat.errors import ConfigError, DatasetError, StorageError
from csat.evaluation.sweep import CellResult
from csat.evaluation.sweep_report import write_sweep_report
from csat.evaluation.sweep_table import make_table, to_csv, to_json, to_text
from csat.training.run_folder import RunFolder
from workflows import cli, cluster
from workflows.config import RayConfig
from workflows.finetune import check as check_run
from workflows.kept import kept_of_sweep
from workflows.labelled_stream import decode
from workflows.search_space import Dimension, corners, read_space
from workflows.sweep_cells import Cell, make_cells, merge, unfold
from workflows.sweep_data import share
from workflows.sweep_run import finished_result, run_cell
from workflows.sweep_search import GROUP_DRIVER_CPUS, SCHEDULERS, AshaConfig, Progress
from workflows.sweep_study import SEARCHERS
from workflows.tracking import MlflowTracker

logger = logging.getLogger("tune")

# Settings that hold settings of finetune.py: one of them may be said on the command line.
NESTED = {
    **dict.fromkeys(("base", "data_sets", "starts"), lambda said, change: merge(unfold(said), unfold(change))),
    "search": lambda said, change: {**said, **change},
}


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """Settings of tune.py."""

    run_folder: str  # local path or s3://…; the same folder and settings go on with an interrupted sweep
    data_sets: dict[str, Any]  # name → settings of finetune.py that make the data set: data.sets, data.tile_px, …
    starts: dict[str, Any]  # name → settings of finetune.py that make the initialisation: model.name, model.init, …
    base: dict[str, Any] = field(default_factory=dict)  # settings of finetune.py that all runs share
    data_root: str | None = None  # folder that relative paths of data sets lie in; None: the current one
    search: dict[str, Any] = field(default_factory=dict)  # setting of finetune.py → {loguniform: [low, high]} and the like
    num_trials: int = 8  # settings tried in each cell
    searcher: str = "optuna"  # optuna (TPE) or random
    scheduler: str = "asha"  # asha (stops what lags behind) or none
    asha: AshaConfig = field(default_factory=AshaConfig)  # when trials are stopped
    seed: int = 0  # of the search
    final_seeds: int = 3  # runs with the best setting of each cell, each with a seed of its own: what the table shows
    max_concurrent: int = 1  # trials at once
    cpus_per_trial: float = 1.0  # CPUs reserved for each
    gpus_per_trial: float = 0.0  # GPUs reserved for each; 0.25 lets four share one
    mlflow: str | None = None  # tracking URI of an MLflow server to copy the runs to; None: TensorBoard files only
    ray: RayConfig = field(default_factory=RayConfig)  # the cluster
    overwrite: bool = False  # delete a sweep of another configuration in run_folder

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


def main(argv: list[str] | None = None) -> int:
    """Run the verb. Returns the exit code, see `cli.run`; 1 also where a cell failed."""
    return cli.run(sweep, SweepConfig, __doc__, argv, nested=NESTED, kept=lambda config: kept_of_sweep(config.run_folder))


def sweep(config: SweepConfig, plain: dict[str, Any]) -> int:
    """All of it, top to bottom."""
    folder = RunFolder(config.run_folder)
    space = read_space(config.search)
    cells = make_cells(config, space)
    tracker = MlflowTracker(config.mlflow, storage.base_name(folder.uri)) if config.mlflow is not None else None
    folder.open(plain, overwrite=config.overwrite, config_class=SweepConfig)
    results = {cell.name: result for cell in cells if (result := finished_result(cell)) is not None}
    waiting = [cell for cell in cells if cell.name not in results]
    if waiting:
        data = check(waiting, space)
        cluster.connect(config.ray, kept_gb=2 * max(cell.config.data.memory_gb for cell in waiting))
        _check_resources(config, waiting)
        cluster.check_run_folder_is_shared(folder.uri)
        folder.set_status("running")
        per_cell = (config.num_trials if space else 0) + config.final_seeds
        progress = Progress(num_runs=len(cells) * per_cell, num_done=len(results) * per_cell)
        for key in dict.fromkeys(cell.data_key for cell in waiting):
            members = [cell for cell in waiting if cell.data_key == key]
            name = f"data of {members[0].folder}"
            with share(name, decode(members[0].config.data, data[key])):
                for cell in members:
                    results[cell.name] = run_cell(cell, config, space, data_name=name, progress=progress, tracker=tracker)
    else:
        print("this sweep is finished: nothing to do")
    num_bootstraps = cells[0].config.num_bootstraps
    return finish(folder, [results[cell.name] for cell in cells], space, num_bootstraps)


def check(cells: list[Cell], space: tuple[Dimension, ...]) -> dict[str, LabelledData]:
    """Everything that can be known before a trial starts: data, parts, metrics, models and where they start from, leakage.

    Returns:
        `data_key` → the data of the cells that have it.

    Raises:
        ConfigError, DatasetError, StorageError: names the cell, what is wrong and what to try.
    """
    data: dict[str, LabelledData] = {}
    # Settings of the model and the method show only when it is built whether they fit.
    builds_all = any(dimension.name.startswith(("model.", "method.")) for dimension in space)
    for cell in cells:
        try:
            for point in corners(space) if builds_all else corners(space)[:1]:
                data[cell.data_key] = check_run(cell.read(point), data.get(cell.data_key))
        except (ConfigError, DatasetError, StorageError) as error:
            raise type(error)(f"{cell.name}: {error}") from error
    return data


def finish(folder: RunFolder, results: list[CellResult], space: tuple[Dimension, ...], num_bootstraps: int) -> int:
    """The table, in the terminal and in the run folder. Returns the exit code."""
    rows = make_table(results, num_bootstraps=num_bootstraps)
    text = to_text(rows)
    folder.write_text("table.txt", text + "\n")
    folder.write_text("table.csv", to_csv(rows))
    folder.write_json("table.json", to_json(rows))
    write_sweep_report(folder, results=results, rows=rows, space=space)
    folder.set_status("finished")
    print(f"{text}\nreport: {folder.path('report.html')}")
    return 1 if any(not result.seeds for result in results) else 0


def _check_resources(config: SweepConfig, cells: list[Cell]) -> None:
    for cell in cells:
        workers = cell.config.workers
        is_group = workers.num_workers > 1
        cluster.check_trials(
            max_concurrent=config.max_concurrent,
            cpus=GROUP_DRIVER_CPUS if is_group else config.cpus_per_trial,
            gpus=0.0 if is_group else config.gpus_per_trial,
            workers=workers if is_group else None,
        )


if __name__ == "__main__":
    sys.exit(main())
