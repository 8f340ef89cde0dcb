r"""Train a model on labelled images: a student from pretrain.py, a timm backbone, a U-Net or a HoVer-Net.

    python workflows/finetune.py --data.sets.lc25000_lung data/lc25000_lung --model.init run --model.from_run runs/rckd \
        --run_folder runs/lung

Every image is decoded once, the data are divided by group, the model is trained under Ray Train, its best weights are kept
and judged on the test part with intervals. What comes out is a run folder: `pretrain.py --teacher runs/lung` takes it as a
teacher. The same command resumes after any interruption.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the script runs from a checkout, installed or not

from workflows.shell import interruption

if __name__ == "__main__":
    interruption.listen()  # before the imports, which take seconds

from csat.runs.folder import RunFolder
from workflows.finetuning.config import FinetuneConfig
from workflows.shell import command_line, output
from workflows.shell.kept import kept_of_run


def main(argv: list[str] | None = None) -> int:
    """Run the verb. Returns the exit code, see `command_line.run`; 0 also where the run was done before."""
    return command_line.run(finetune, FinetuneConfig, __doc__, argv, kept=lambda config: kept_of_run(config.run_folder))


def finetune(config: FinetuneConfig) -> int:
    """All of it, top to bottom."""
    config.train.rows_per_worker(config.workers.num_workers)
    # Not above: they take seconds to load, and `--help` or a refused setting needs none of them.
    import torch

    from workflows.finetuning.check import check
    from workflows.finetuning.fit import fit, open_folder
    from workflows.finetuning.neighbours import judge_neighbours
    from workflows.finetuning.records import tell_data, tell_result, write_samples
    from workflows.shell import cluster, resources
    from workflows.shell.decode_samples import decode

    torch.set_num_threads(1)  # this process only builds and checks: its threads would wait for each other while Ray starts
    folder = RunFolder(config.run_folder)
    open_folder(folder, config)
    if folder.is_finished():
        tell_result(folder, first="this run is finished: nothing to do")
        return 0
    cluster.start_meanwhile(config.ray, kept_gb=2 * config.data.memory_gb)
    data = check(config)
    cluster.connect(config.ray, kept_gb=2 * config.data.memory_gb)
    resources.check_workers(config.workers, pool=config.pool if config.teacher else None, readers=config.readers)
    cluster.check_run_folder_is_shared(folder.uri)
    prepared = decode(config.data, data)
    tell_data(data)
    if config.prepare_only:
        write_samples(folder, prepared)
        samples = folder.path("samples.csv")
        output.result(f"the data are in order: {samples}", run_folder=folder.uri, samples=samples)
        return 0
    if config.neighbours_only:
        judge_neighbours(config, prepared)
        return 0
    fit(config, prepared)
    tell_result(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
