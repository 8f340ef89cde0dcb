"""The last things before the workers start: can the cluster hold the run, what will it take, and where."""

import logging
from typing import Any

from csat.evaluation.students import has_diverged
from csat.runs.folder import RunFolder
from csat.storage import files
from csat.tiles.manifest import Manifest
from csat.tiles.resolutions import resolution_summary
from csat.tiles.sources import SlideRow
from workflows.pretraining.check import pools_of
from workflows.pretraining.config import DEMO_PICTURE
from workflows.pretraining.job import PretrainJob
from workflows.shell import output, resources

EXIT_CODE_DIVERGED = 3  # some students are trained, others were stopped

logger = logging.getLogger("pretrain")


def check_resources(job: PretrainJob) -> None:
    """Whether the cluster can hold this job. Raises ConfigError with the sums, and what to change."""
    config = job.config
    resources.check_resources(
        readers=config.readers,
        pools=pools_of(config),
        workers=config.workers,
        ray_config=config.ray,
        slot_bytes=job.stream.bytes_per_block(config.manifest.chunk_tiles),
    )


def load_finish(job: PretrainJob) -> None:
    """Load what comes after the training, which takes two seconds: to be called while the workers train."""
    from workflows.pretraining import finish

    finish.load(job)


def tell_result(folder: RunFolder, *, first: str | None = None) -> int:
    """How faithful the student is on held-out tiles, and where a user finds it.

    Args:
        first: Said before that.

    Returns:
        The exit code: 0, or 3 where one of several students diverged and the others are trained.
    """
    if students := folder.read_json("students.json"):
        return _tell_students(folder, students, first=first)
    figures, places = folder.read_json("evaluation.json") or {}, (folder.path("exported"), folder.path("report.html"))
    lines = [
        f"held out: {name} {figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}] over {figure['tiles']} tiles"
        for name, figure in figures.items()
    ]
    lines = [*([first] if first else []), *lines, f"student: {places[0]}", f"report:  {places[1]}"]
    if files.exists(picture := folder.path(DEMO_PICTURE)):
        lines.append(f"picture: {picture} (the student's nuclei on a slide that it has not seen)")
    output.result("\n".join(lines), run_folder=folder.uri, model=places[0], report=places[1], figures=figures)
    return 0


def _tell_students(folder: RunFolder, students: dict[str, dict[str, Any]], *, first: str | None) -> int:
    """The same of several students, one line each. Returns the exit code."""
    lines, diverged = [first] if first else [], {}
    for name, student in students.items():
        figures = [f"{figure} {found['value']:.3f}" for figure, found in student["fidelity"].items()]
        told = "; ".join([f"{student['params'] / 1e6:.2f} M parameters", f"{student['macs'] / 1e9:.2f} GMAC", *figures])
        if has_diverged(student):
            diverged[name] = student["error"]
            told = f"diverged and was stopped, and has left no model: {student['error']}"
        lines.append(f"student {name}: {told}")
    models = {name: folder.path(student["folder"], "exported") for name, student in students.items() if name not in diverged}
    report, page = folder.path("report.html"), folder.path("students.html")
    lines += [f"students: {folder.path('students')}", f"compared: {page}", f"report:   {report}"]
    figures = {name: student["fidelity"] for name, student in students.items()}
    places = {"run_folder": folder.uri, "models": models, "report": report, "comparison": page}
    output.result("\n".join(lines), **places, figures=figures, diverged=diverged)
    return EXIT_CODE_DIVERGED if diverged else 0


def tell_plan(job: PretrainJob, manifest: Manifest, slides: list[SlideRow]) -> None:
    """What is held out, how much is trained, what travels."""
    config, stream = job.config, job.stream
    if held_out := manifest.index["holdout"]:
        unused = held_out["not_kept"] + held_out["on_the_border"]
        how = "in blocks of the slides" if config.manifest.holdout_by == "tile" else "of whole slides"
        said = f"{held_out['num_tiles']:,} tiles, {how}, are held out to judge the student"
        logger.info("%s (%d more beside them are not used)", said, unused)
    else:
        logger.info("no tiles are held out: the student is not judged")
    if said := resolution_summary(manifest.index.get("resolutions")):
        logger.info("%s", said)
    what, each = f"tiles of {config.data.tile_px} px", "a tile"
    if config.data.whole:
        height, width = stream.largest_size()
        what, each = f"whole images up to {width} x {height} px (multiples of {stream.tile_px})", "for the largest"
    per_tile, positions = stream.bytes_per_tile(), stream.plan.num_positions
    logger.info(
        "%s",
        f"{len(slides):,} slides → {manifest.num_tiles:,} {what}, {config.train.epochs} epochs: "
        f"{positions:,} to train; {per_tile / 1e3:.0f} kB {each} on its way, at most {config.ray.stream_gb:g} GB "
        f"in memory (storing every response would take {per_tile * manifest.num_tiles / 1e9:.1f} GB an epoch)",
    )
