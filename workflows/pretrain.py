"""Distil a pathology teacher into a small student over unlabelled slides.

    python workflows/pretrain.py --slides 's3://bucket/slides/*.svs' --teacher hovernet --teacher.weights hovernet_fast.pth \
        --data.mpp 0.25 --run_folder s3://bucket/runs/csat-1

Slides become a manifest of tiles (metadata only); tiles are read, answered by a pool of teacher actors and streamed to
the DDP workers that train the student. Run the same command again to go on after any interruption.
"""

import logging
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the script runs from a checkout, installed or not

from workflows.shell import interruption

if __name__ == "__main__":
    interruption.listen()  # before the imports, which take seconds

import ray
import ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from csat.errors import ConfigError, NonFiniteLossError
from csat.methods.contract import Method
from csat.methods.registry import wanted_responses, whole_step_px
from csat.responses import TeacherSpec
from csat.runs.checkpoints import Checkpoints
from csat.runs.folder import RunFolder
from csat.runs.plan import Plan
from csat.slides.synthetic import make_slides
from csat.storage import files
from csat.tiles.manifest import Manifest, ManifestConfig
from csat.tiles.manifest_writer import as_begun
from csat.tiles.resolutions import resolution_summary
from csat.tiles.sources import SlideRow, list_slides
from csat.words import last_line
from teachers.registry import describe_teacher
from teachers.response_cache import KEY, cache_key, open_cache
from workflows.pretraining import finish
from workflows.pretraining.config import PretrainConfig
from workflows.pretraining.job import Job, train_worker
from workflows.pretraining.stream import ResumingStream, StreamConfig, slide_cache
from workflows.shell import cluster, command_line
from workflows.shell.config import TeacherConfig, WorkerConfig, check_counts
from workflows.shell.data import CACHED, TRAIN, WholeSplit, execution_options
from workflows.shell.kept import kept_of_run
from workflows.shell.meters import StoreMeter
from workflows.shell.places import with_places_found
from workflows.shell.progress import ProgressDisplay, make_board
from workflows.shell.run_teacher import check_same_teacher
from workflows.shell.tile_slides import build_manifest

logger = logging.getLogger("pretrain")

DEMO = "demo"


def main(argv: list[str] | None = None) -> int:
    """Run the verb. Returns the exit code, see `command_line.run`; 0 also where the run was done before."""
    return command_line.run(pretrain, PretrainConfig, __doc__, argv, kept=lambda config: kept_of_run(config.run_folder))


def pretrain(config: PretrainConfig, plain: dict[str, Any]) -> int:
    """All of it, top to bottom. Everything before `_train` is checks and metadata; nothing costly has started until then."""
    config, plain = with_places_found(config, plain)
    folder = RunFolder(config.run_folder)
    check_counts(readers=config.readers, pool=config.pool)
    config.train.rows_per_worker(config.workers.num_workers)
    spec = _describe_teacher(config)
    recorded = (folder.config() or {}).get("manifest", {})
    begun, plain_begun = _with_holdout(config, plain, as_begun(config.manifest, recorded, whole=bool(config.data.whole)))
    is_rerun = folder.open(plain_begun, overwrite=config.overwrite, config_class=PretrainConfig)
    config, plain = (begun, plain_begun) if is_rerun else (config, plain)
    if is_rerun and folder.is_finished():
        print(f"this run is finished: nothing to do\n{finish.where(folder)}")
        return 0
    check_same_teacher(folder, spec)
    job_check = _make_job(config, folder, spec, Plan([config.train.batch_size], [0], num_epochs=1, seed=0))
    method = job_check.build_method()  # settings of student and method that cannot work are met here, on the driver
    Checkpoints(folder.path("checkpoints")).check_fits(method)
    _check_pixels(config, method)
    _check_cache(config, method)

    slides = list_slides(_with_demo(config, folder), source_mpp=config.data.source_mpp)
    cluster.connect(config.ray)
    _check_resources(config, _stream_config(config, folder, spec, job_check, method))
    cluster.check_run_folder_is_shared(folder.uri)
    manifest, done = _tile(config, folder, slides)
    config, plain = _with_holdout(config, plain, done)
    folder.write_config(plain)
    job = _make_job(config, folder, spec, _plan(config, manifest))
    stream = _stream_config(config, folder, spec, job, method, largest_px=manifest.largest_px)
    if config.data.whole:
        _check_resources(config, stream)  # again: how large the largest image is, only the manifest knows
    _print_plan(config, slides, manifest, stream)
    job, stream = _with_cache(config, manifest, job, stream)

    folder.set_status("running")
    _train(config, folder, job, stream)
    finish.finish(folder, job, stream, holdout=manifest.holdout(), config=config)
    folder.set_status("finished")
    print(finish.where(folder))
    return 0


# -------------------------------------------------------------------------------------------------------- before the start


def _describe_teacher(config: PretrainConfig) -> TeacherSpec:
    """The teacher's spec, reduced to the responses that the method wants, checked against the tiles."""
    spec = describe_teacher(config.teacher.name, config.teacher.weights, _teacher_options(config))
    wanted = wanted_responses(config.method.name, config.method.options, spec)
    spec.check_view(tile_px=_tile_px(config, spec), mpp=config.data.mpp, accept_any_mpp=config.teacher.accept_any_mpp)
    logger.info(
        "teacher %s (%s): learning %s", spec.name, spec.weights_sha256[:12], ", ".join(response.name for response in wanted)
    )
    return spec


def _tile_px(config: PretrainConfig, spec: TeacherSpec) -> int:
    """Edge of the tiles; of whole images, what their edges are made multiples of."""
    if not config.data.whole:
        return config.data.tile_px
    return whole_step_px(config.method.name, config.method.options, config.student, spec)


def _teacher_options(config: PretrainConfig) -> dict[str, Any]:
    """The weight-free teacher measures in micrometres: it is told the resolution of the tiles."""
    if config.teacher.name == "stain" and config.data.mpp is not None:
        return {"mpp": config.data.mpp, **config.teacher.options}
    return config.teacher.options


def _check_pixels(config: PretrainConfig, method: Method) -> None:
    if config.data.whole and config.manifest.holdout_by == "tile" and config.manifest.holdout_fraction:
        raise ConfigError("--manifest.holdout_by tile is about a grid of tiles: use slide with --data.whole")
    if config.student_pixels not in ("tile", "pyramid"):
        raise ConfigError(f"--student_pixels is tile or pyramid, not {config.student_pixels!r}")
    if config.student_pixels == "pyramid" and (not method.takes_any_size or config.student.downsample == 1):
        raise ConfigError(
            "--student_pixels pyramid is for a student at lower resolution than its teacher: --method.name resolution with "
            f"--student.downsample 2 or more, not {config.method.name} with {config.student.downsample}"
        )


def _check_cache(config: PretrainConfig, method: Method) -> None:
    if config.cache.uri is None:
        return
    if method.view_in_pool or method.colour_in_pool is not None:
        what = "view (flip and rotation)" if method.view_in_pool else "colours"
        raise ConfigError(
            f"--cache.uri: with --method.name {config.method.name} and these options the teacher sees each tile in another "
            f"{what} in every epoch, so that its earlier response is of no use: leave --cache.uri out, or choose responses "
            "(maps) and options with which the tile stays as it was scanned until the trainer has it"
        )


def _with_demo(config: PretrainConfig, folder: RunFolder) -> list[str]:
    if DEMO not in config.slides:
        return config.slides
    if config.data.mpp is None or not files.is_local(folder.uri):
        raise ConfigError("--slides demo needs a local --run_folder and a --data.mpp: it writes slides of known resolution")
    target = files.local_path(folder.path("demo_slides"))
    logger.info("making %d synthetic slides in %s", config.demo.num_slides, target)
    made = make_slides(target, num_slides=config.demo.num_slides, size_px=config.demo.size_px, seed=config.demo.seed)
    return [slide for slide in config.slides if slide != DEMO] + [str(path) for path in made]


def _with_holdout(
    config: PretrainConfig, plain: dict[str, Any], done: ManifestConfig
) -> tuple[PretrainConfig, dict[str, Any]]:
    """Settings and the run's record with what is held out, which the user may have left open."""
    held_out = {"holdout_by": done.holdout_by, "holdout_fraction": done.holdout_fraction}
    return replace(config, manifest=done), {**plain, "manifest": {**plain["manifest"], **held_out}}


def _tile(config: PretrainConfig, folder: RunFolder, slides: list[SlideRow]) -> tuple[Manifest, ManifestConfig]:
    cache = slide_cache(config.readers)
    return build_manifest(folder.path("manifest"), slides, config.data, config.manifest, cache)


def _plan(config: PretrainConfig, manifest: Manifest) -> Plan:
    chunks = manifest.chunks
    return Plan(chunks["rows"], chunks["shard"], num_epochs=config.train.epochs, seed=config.train.seed)


def _make_job(config: PretrainConfig, folder: RunFolder, spec: TeacherSpec, plan: Plan) -> Job:
    return Job(
        run_folder=folder.uri,
        student=config.student,
        method=config.method,
        train=config.train,
        workers=config.workers,
        teacher=spec,
        tile_px=_tile_px(config, spec),
        plan=plan,
        whole=config.data.whole is not None,
    )


def _check_resources(config: PretrainConfig, stream: StreamConfig) -> None:
    cluster.check_resources(
        readers=config.readers,
        pool=config.pool,
        workers=config.workers,
        ray_config=config.ray,
        slot_bytes=stream.bytes_per_block(config.manifest.chunk_tiles),
    )


def _stream_config(
    config: PretrainConfig,
    folder: RunFolder,
    spec: TeacherSpec,
    job: Job,
    method: Method,
    *,
    largest_px: tuple[tuple[int, int], ...] | None = None,
) -> StreamConfig:
    teacher = TeacherConfig(name=config.teacher.name, weights=config.teacher.weights, options=_teacher_options(config))
    return StreamConfig(
        manifest_uri=folder.path("manifest"),
        plan=job.plan,
        tile_px=job.tile_px,
        readers=config.readers,
        pool=config.pool,
        teacher=teacher,
        teacher_sha256=spec.weights_sha256,
        responses=wanted_responses(config.method.name, config.method.options, spec),
        view_seed=method.seed if method.view_in_pool else None,
        colour=method.colour_in_pool,
        colour_seed=method.seed,
        largest_px=(largest_px or ((job.tile_px, job.tile_px),)) if job.whole else None,
        student_factor=config.student.downsample if config.student_pixels == "pyramid" else None,
    )


def _with_cache(config: PretrainConfig, manifest: Manifest, job: Job, stream: StreamConfig) -> tuple[Job, StreamConfig]:
    """Job and stream with the response cache, where one is asked for. Says what it may take, or refuses."""
    if config.cache.uri is None:
        return job, stream
    key = cache_key(
        job.teacher,
        stream.teacher.options,
        stream.responses,
        manifest_fingerprint=manifest.fingerprint,
        tile_px=job.tile_px,
        mpp=config.data.mpp,
    )
    size = stream.largest_size()
    cache, num_bytes = open_cache(config.cache, key, stream.responses, num_tiles=manifest.num_tiles, tile_px=size)
    cluster.check_is_shared("response cache", cache.folder, file=KEY)
    state = "complete: training needs no teacher" if cache.is_complete() else "filled in the first epoch, read in later ones"
    print(f"response cache {cache.folder}: at most {num_bytes / 1e9:.4g} GB of {config.cache.budget_gb:g} GB, {state}")
    return replace(job, cache=cache), replace(stream, cache=cache)


def _print_plan(config: PretrainConfig, slides: list[SlideRow], manifest: Manifest, stream: StreamConfig) -> None:
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


# ------------------------------------------------------------------------------------------------------------ the training


def _train(config: PretrainConfig, folder: RunFolder, job: Job, stream: StreamConfig) -> None:
    """Ray Train over the stream, from the last committed checkpoint to the end of the plan."""
    checkpoints = Checkpoints(folder.path("checkpoints"))
    if len(checkpoints.latest_cursor().done) >= job.plan.num_positions:
        logger.info("every tile is trained: going on with the results")
        return
    attempt = 1 + (folder.read_json("attempts.json") or {"attempts": 0})["attempts"]
    folder.write_json("attempts.json", {"attempts": attempt})
    board = make_board()
    parts = [TRAIN] if stream.cache is None else [TRAIN, CACHED]
    resuming = ResumingStream(config=stream, checkpoints_uri=checkpoints.folder, settings=config.ray)
    store, path = files.arrow_filesystem(folder.path("ray"))
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"job": job, "progress": board},
        datasets={part: replace(resuming, part=part) for part in parts},
        dataset_config=WholeSplit(execution_options=execution_options(config.ray)),
        scaling_config=ScalingConfig(
            num_workers=config.workers.num_workers,
            use_gpu=config.workers.gpus_per_worker > 0,
            resources_per_worker=_worker_resources(config.workers),
        ),
        # Our own checkpoints say where a run is; each attempt therefore gets a fresh state of Ray's.
        run_config=RunConfig(
            name=f"attempt-{attempt:03d}",
            storage_path=path,
            storage_filesystem=store,
            failure_config=FailureConfig(max_failures=config.workers.max_failures),
        ),
    )
    started = time.monotonic()
    with StoreMeter() as meter, ProgressDisplay(board, total=job.plan.num_positions):
        try:
            with interruption.stoppable(lambda: ray.get(board.stop.remote())):
                trainer.fit()
        except ray.train.TrainingFailedError as error:
            folder.set_status("failed", error=last_line(error), kind=type(error).__name__)
            raise
    status = folder.read_json("status.json") or {}
    if status.get("state") == "failed":
        raise NonFiniteLossError(status["error"])
    assert len(checkpoints.latest_cursor().done) >= job.plan.num_positions, "the workers ended before the plan's end"
    finish.write_attempt(folder, attempt, seconds=time.monotonic() - started, store=meter.figures())


def _worker_resources(workers: WorkerConfig) -> dict[str, float]:
    gpus = {"GPU": workers.gpus_per_worker} if workers.gpus_per_worker else {}
    return {"CPU": workers.cpus_per_worker, **gpus}


if __name__ == "__main__":
    sys.exit(main())
