"""Distil a pathology teacher into a small student over unlabelled slides.

    python workflows/pretrain.py --slides 's3://bucket/slides/*.svs' --teacher hovernet --teacher.weights hovernet_fast.pth \
        --data.mpp 0.25 --run_folder s3://bucket/runs/csat-1

Slides become a manifest of tiles (metadata only); tiles are read, answered by a pool of teacher actors and streamed to
the DDP workers that train the student. The same command resumes after any interruption.
"""

import logging
import sys
from dataclasses import replace
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the script runs from a checkout, installed or not

from workflows.shell import interruption

if __name__ == "__main__":
    interruption.listen()  # before the imports, which take seconds

from csat.errors import ConfigError
from csat.runs.checkpoints import Checkpoints
from csat.runs.folder import RunFolder
from csat.slides.synthetic import make_slides
from csat.storage import files
from csat.tiles.manifest import Manifest, ManifestConfig
from csat.tiles.manifest_writer import as_begun
from csat.tiles.resolutions import resolution_summary
from csat.tiles.sources import SlideRow, list_slides
from teachers.response_cache import KEY, cache_key, open_cache
from workflows.pretraining import finish
from workflows.pretraining.check import check_method, describe
from workflows.pretraining.config import DEMO, PretrainConfig
from workflows.pretraining.first_stage import make_first_job
from workflows.pretraining.job import PretrainJob, make_job
from workflows.pretraining.stream import slide_cache
from workflows.shell import cluster, command_line
from workflows.shell.config import check_counts
from workflows.shell.group import train_in_group
from workflows.shell.kept import kept_of_run
from workflows.shell.run_teacher import check_same_teacher
from workflows.shell.tile_slides import build_manifest

logger = logging.getLogger("pretrain")


def main(argv: list[str] | None = None) -> int:
    """Run the verb. Returns the exit code, see `command_line.run`; 0 also where the run was done before."""
    return command_line.run(pretrain, PretrainConfig, __doc__, argv, kept=lambda config: kept_of_run(config.run_folder))


def pretrain(config: PretrainConfig) -> int:
    """All of it, top to bottom. Before `train_in_group` there are checks and metadata; nothing costly starts until then."""
    folder = RunFolder(config.run_folder)
    check_counts(readers=config.readers, pool=config.pool)
    config.train.rows_per_worker(config.workers.num_workers)
    spec = describe(config)
    recorded = (folder.config() or {}).get("manifest", {})
    begun = replace(config, manifest=as_begun(config.manifest, recorded, whole=bool(config.data.whole)))
    is_rerun = folder.open(begun, overwrite=config.overwrite)
    config = begun if is_rerun else config
    if is_rerun and folder.is_finished():
        print(f"this run is finished: nothing to do\n{finish.where(folder)}")
        return 0
    check_same_teacher(folder, spec)
    job, method = make_job(config, spec)  # settings of student and method that cannot work are met here, on the driver
    Checkpoints(folder.path("checkpoints")).check_fits(method)
    check_method(config, method)
    first = make_first_job(job, method)

    slides = list_slides(_with_demo(config, folder), source_mpp=config.data.source_mpp)
    cluster.connect(config.ray)
    for each in filter(None, (first, job)):
        _check_resources(each)
    cluster.check_run_folder_is_shared(folder.uri)
    manifest, done = _tile(config, folder, slides)
    config = replace(config, manifest=done)  # what is held out, which the user may have left open
    folder.write_config(config)
    job = replace(job, config=config).over(manifest)
    if config.data.whole:
        _check_resources(job)  # again: how large the largest image is, only the manifest knows
    _print_plan(slides, manifest, job)
    job = _with_cache(manifest, job)

    folder.set_status("running")
    if first and not job.is_trained:
        train_in_group(replace(first, config=config).over(manifest))
    if job.is_trained:
        logger.info("every tile is trained: continuing with the results")
    else:
        train_in_group(job)
        assert job.is_trained, "the workers ended before the plan's end"
    finish.finish(folder, job, holdout=manifest.holdout())
    folder.set_status("finished")
    print(finish.where(folder))
    return 0


# -------------------------------------------------------------------------------------------------------- before the start


def _with_demo(config: PretrainConfig, folder: RunFolder) -> list[str]:
    if DEMO not in config.slides:
        return config.slides
    if config.data.mpp is None or not files.is_local(folder.uri):
        raise ConfigError("slides=demo needs a local run_folder and a data.mpp: it writes slides of known resolution")
    target = files.local_path(folder.path("demo_slides"))
    logger.info("making %d synthetic slides in %s", config.demo.num_slides, target)
    made = make_slides(target, num_slides=config.demo.num_slides, size_px=config.demo.size_px, seed=config.demo.seed)
    return [slide for slide in config.slides if slide != DEMO] + [str(path) for path in made]


def _tile(config: PretrainConfig, folder: RunFolder, slides: list[SlideRow]) -> tuple[Manifest, ManifestConfig]:
    cache = slide_cache(config.readers)
    return build_manifest(folder.path("manifest"), slides, config.data, config.manifest, cache)


def _check_resources(job: PretrainJob) -> None:
    config = job.config
    cluster.check_resources(
        readers=config.readers,
        pool=config.pool,
        workers=config.workers,
        ray_config=config.ray,
        slot_bytes=job.stream.bytes_per_block(config.manifest.chunk_tiles),
    )


def _with_cache(manifest: Manifest, job: PretrainJob) -> PretrainJob:
    """The job with the response cache, where one is asked for. Says what it may take, or refuses."""
    settings, stream = job.config.cache, job.stream
    if settings.uri is None:
        return job
    key = cache_key(
        job.teacher,
        stream.teacher.options,
        stream.responses,
        manifest_fingerprint=manifest.fingerprint,
        tile_px=stream.tile_px,
        mpp=job.config.data.mpp,
    )
    size = stream.largest_size()
    cache, num_bytes = open_cache(settings, key, stream.responses, num_tiles=manifest.num_tiles, tile_px=size)
    cluster.check_is_shared("response cache", cache.folder, file=KEY)
    state = "complete: training needs no teacher" if cache.is_complete() else "filled in the first epoch, read in later ones"
    print(f"response cache {cache.folder}: at most {num_bytes / 1e9:.4g} GB of {settings.budget_gb:g} GB, {state}")
    return job.with_cache(cache)


def _print_plan(slides: list[SlideRow], manifest: Manifest, job: PretrainJob) -> None:
    config, stream = job.config, job.stream
    if held_out := manifest.index["holdout"]:
        unused = held_out["not_kept"] + held_out["on_the_border"]
        how = "in blocks of the slides" if config.manifest.holdout_by == "tile" else "of whole slides"
        print(
            f"{held_out['num_tiles']:,} tiles, {how}, are held out to judge the student "
            f"({unused:,} more beside them are not used)"
        )
    else:
        print("no tiles are held out: the student is not judged")
    if said := resolution_summary(manifest.index.get("resolutions")):
        print(said)
    what, each = f"tiles of {config.data.tile_px} px", "a tile"
    if config.data.whole:
        height, width = stream.largest_size()
        what, each = f"whole images up to {width} x {height} px (multiples of {stream.tile_px})", "for the largest"
    per_tile, positions = stream.bytes_per_tile(), stream.plan.num_positions
    print(
        f"{len(slides):,} slides → {manifest.num_tiles:,} {what}, {config.train.epochs} epochs: "
        f"{positions:,} to train; {per_tile / 1e3:.0f} kB {each} on its way, at most {config.ray.stream_gb:g} GB "
        f"in memory (storing every response would take {per_tile * manifest.num_tiles / 1e9:.1f} GB an epoch)"
    )


if __name__ == "__main__":
    sys.exit(main())
