r"""Search hyper-parameters on several data sets from several initialisations, and end in one table that compares them.

    python workflows/tune.py --config downstream_cpu --data_root data --starts.rckd.model.from_run runs/rckd \
        --run_folder runs/sweep

Every data set from every start is a cell: its hyper-parameters are searched with the same number of trials, and the best
setting by the validation part is trained again with several seeds. Those runs are what the table shows on the test part.
Settings below `base`, `data_sets.NAME` and `starts.NAME` are settings of finetune.py. After any interruption the same
command resumes.
"""

import sys
from contextlib import closing
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the script runs from a checkout, installed or not

from workflows.shell import interruption

if __name__ == "__main__":
    interruption.listen()  # before the imports, which take seconds

from csat.runs.folder import RunFolder
from csat.storage import files
from csat.sweeps.space import read_space
from workflows.shell import command_line
from workflows.shell.kept import kept_of_sweep
from workflows.sweep.config import HOLDS, NESTED, SweepConfig


def main(argv: list[str] | None = None) -> int:
    """Run the verb. Returns the exit code, see `command_line.run`; 1 also where a cell failed."""
    return command_line.run(
        sweep, SweepConfig, __doc__, argv, nested=NESTED, holds=HOLDS, kept=lambda config: kept_of_sweep(config.run_folder)
    )


def sweep(config: SweepConfig) -> int:
    """All of it, top to bottom."""
    # Not above: they take seconds to load, and `--help` or a refused setting needs none of them.
    from csat.sweeps.tracking import MlflowTracker
    from workflows.shell import cluster
    from workflows.shell.decode_samples import decode
    from workflows.sweep.cells import choose_cells, group_cells, make_cells
    from workflows.sweep.check import check_cells, check_resources
    from workflows.sweep.finish import finish
    from workflows.sweep.runs import finished_result
    from workflows.sweep.search import Progress
    from workflows.sweep.shared_data import share
    from workflows.sweep.side_by_side import run_cells

    folder = RunFolder(config.run_folder)
    space = read_space(config.search)
    cells = make_cells(config, space)
    tracker = MlflowTracker(config.mlflow, files.base_name(folder.uri)) if config.mlflow is not None else None
    folder.open(config, overwrite=config.overwrite)
    results = {cell.name: result for cell in cells if (result := finished_result(cell)) is not None}
    waiting = choose_cells(cells, done=results, only=config.only)
    if waiting:
        kept_gb = 2 * max(cell.config.data.memory_gb for cell in waiting)
        cluster.start_meanwhile(config.ray, kept_gb=kept_gb)
        data = check_cells(waiting, space)
        cluster.connect(config.ray, kept_gb=kept_gb)
        check_resources(config, waiting)
        cluster.check_run_folder_is_shared(folder.uri)
        folder.set_status("running")
        num_done = sum(cell.num_runs for cell in cells if cell.name in results)
        progress = Progress(num_runs=num_done + sum(cell.num_runs for cell in waiting), num_done=num_done)
        with closing(progress):
            for group in group_cells(waiting):
                name = f"data of {group[0].folder}"
                with share(name, decode(group[0].config.data, data[group[0].data_key])):
                    more = {"progress": progress, "tracker": tracker, "leaders": results}
                    results |= run_cells(group, config, space, data_name=name, **more)
    first = None if waiting else f"{'what only names' if config.only else 'this sweep'} is finished: nothing to do"
    later = list(dict.fromkeys(cell.data_set for cell in cells if cell.name not in results))
    ended = [results[cell.name] for cell in cells if cell.data_set not in later]
    num_bootstraps = cells[0].config.num_bootstraps
    return finish(folder, ended, space, num_bootstraps=num_bootstraps, questions=config.questions, first=first, later=later)


if __name__ == "__main__":
    sys.exit(main())
