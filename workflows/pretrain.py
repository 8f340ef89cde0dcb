r"""Distil a pathology teacher into a small student over unlabelled slides.

    python workflows/pretrain.py --slides 's3://bucket/slides/*.svs' --teacher hovernet --teacher.weights hovernet_fast.pth \
        --data.mpp 0.25 --run_folder s3://bucket/runs/csat-1

Slides become a manifest of tiles (metadata only); tiles are read, answered by a pool of teacher actors and streamed to
the DDP workers that train the student. The same command resumes after any interruption.
"""

import logging
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the script runs from a checkout, installed or not

from workflows.shell import interruption

if __name__ == "__main__":
    interruption.listen()  # before the imports, which take seconds

from csat.runs.checkpoints import Checkpoints
from csat.runs.folder import RunFolder
from workflows.pretraining.check import check_methods, describe, pools_of
from workflows.pretraining.config import NESTED, PretrainConfig
from workflows.shell import command_line
from workflows.shell.config import check_counts
from workflows.shell.kept import kept_of_run
from workflows.shell.run_teacher import check_same_teacher

logger = logging.getLogger("pretrain")


def main(argv: list[str] | None = None) -> int:
    """Run the verb. Returns the exit code, see `command_line.run` and `tell_result`; the same of a run that is finished."""
    return command_line.run(
        pretrain, PretrainConfig, __doc__, argv, nested=NESTED, kept=lambda config: kept_of_run(config.run_folder)
    )


def pretrain(config: PretrainConfig) -> int:
    """All of it, top to bottom. Up to `train_in_group` there are checks and metadata; nothing costly starts until then."""
    check_counts(readers=config.readers, **pools_of(config))
    config.train.rows_per_worker(config.workers.num_workers)
    # Not above: they take seconds to load, and `--help` or a refused setting needs none of them.
    import torch

    from workflows.shell import cluster

    torch.set_num_threads(1)  # this process only builds and checks: its threads would wait for each other while Ray starts

    folder = RunFolder(config.run_folder)
    if not folder.is_finished():
        cluster.start_meanwhile(config.ray)
    teacher = describe(config)
    from workflows.pretraining.first_stage import make_first_job
    from workflows.pretraining.job import make_job
    from workflows.pretraining.keeping import check_can_keep, decides_to_keep, kept_costs, with_cache
    from workflows.pretraining.plan import plan_run
    from workflows.pretraining.precision import as_before, settle
    from workflows.pretraining.start import check_resources, load_finish, tell_plan, tell_result
    from workflows.pretraining.students import begin_students
    from workflows.pretraining.tiles import as_recorded, cut_tiles, find_slides
    from workflows.shell.group import train_in_group

    begun = as_recorded(config, folder)
    asked = config
    if is_rerun := folder.open(begun, overwrite=config.overwrite, as_before=as_before):
        config = begun
    if is_rerun and folder.is_finished():
        return tell_result(folder, first="this run is finished: nothing to do")
    check_same_teacher(folder, teacher)
    job, methods = make_job(config, teacher)  # settings of students and method that cannot work are met here, on the driver
    Checkpoints(folder.path("checkpoints")).check_fits(methods)
    check_methods(config, methods)
    check_can_keep(job)
    first = make_first_job(job, methods)

    slides = find_slides(config, folder)
    cluster.connect(config.ray)
    for each in filter(None, (first, job)):
        check_resources(each)
    cluster.check_run_folder_is_shared(folder.uri)
    manifest, config = cut_tiles(config, folder, slides)
    job = job.with_config(config).over(manifest)
    config = settle(asked, job)
    job = job.with_config(config)
    is_kept = decides_to_keep(job, manifest)
    config = plan_run(job, manifest, kept_costs(job, manifest, is_kept=is_kept))
    job = job.with_config(config)
    folder.write_config(config)
    if config.data.whole:
        check_resources(job)  # again: how large the largest image is, only the manifest knows
    tell_plan(job, manifest, slides)
    if config.plan:
        return 0
    if is_kept:
        job = with_cache(job, manifest)

    begin_students(folder, config)
    folder.set_status("running")
    if first and not job.is_trained:
        train_in_group(first.with_config(config).over(manifest))
    if job.is_trained:
        logger.info("every tile is trained: continuing with the results")
    else:
        train_in_group(job, meanwhile=lambda: load_finish(job))
        assert job.is_trained, "the workers ended before the plan's end"
    from workflows.pretraining.finish import finish  # loaded by now, while the workers trained

    diverged = finish(folder, job, holdout=manifest.holdout())
    folder.set_status("finished", **({"diverged": diverged} if diverged else {}))
    return tell_result(folder)


if __name__ == "__main__":
    sys.exit(main())
