"""What is left in the run folder when training is done: accounts, throughput, the student, its evaluation, the report."""

import io
import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from ray.data import ActorPoolStrategy

from csat.evaluation.fidelity import summarise
from csat.evaluation.held_out import FAITHFUL, KNOWN, PICTURE, SLIDE, FidelityStage, FidelityStages, answered_column, rows_of
from csat.evaluation.reports.pretraining import write_pretraining_report
from csat.export.folder import export_student
from csat.methods.contract import Method
from csat.model.cost import count_cost
from csat.runs.accounts import diverged_in, write_accounts, write_throughput
from csat.runs.checkpoints import Checkpoint, Checkpoints
from csat.runs.folder import RunFolder
from csat.runs.plan import Intervals, Plan
from csat.runs.recorder import read_metrics
from csat.runs.students import folder_of
from csat.tiles.manifest import Manifest
from workflows.pretraining.demo_picture import draw_demo
from workflows.pretraining.job import PretrainJob
from workflows.pretraining.stream import StreamConfig, make_stream
from workflows.pretraining.student_folders import Answers, finish_students
from workflows.shell.data import configure_data

logger = logging.getLogger(__name__)


def load(job: PretrainJob) -> None:
    """Load what `finish` will need beside this module, which takes a second: to be called while the workers train."""
    _costs(job)


def finish(folder: RunFolder, job: PretrainJob, *, holdout: Manifest | None) -> dict[str, str]:
    """Everything after the last step. Each part can be repeated: a rerun starts here if it was killed here.

    Returns:
        Of several students those that diverged → why.
    """
    checkpoint = Checkpoints(folder.path("checkpoints")).load()
    assert checkpoint is not None, "training ended without a checkpoint"
    told = write_accounts(folder, job.plan, checkpoint)
    diverged = diverged_in(told)
    methods = {name: method for name, method in job.build_methods().items() if name not in diverged}
    own = {name: RunFolder(folder_of(folder.uri, name)) for name in job.config.each_student()}
    for name, method in methods.items():
        _export(folder, job, method, checkpoint, own[name], name)
    throughput = write_throughput(folder, checkpoint, num_workers=job.workers.num_workers, costs=_costs(job))
    answers: Answers = {}
    if holdout is not None and holdout.num_tiles:
        configure_data(job.config.ray)
        answers = _evaluate(folder, job, holdout, {name: own[name].path("exported") for name in methods})
        for name, (evaluation, _) in answers.items():
            own[name].write_json("evaluation.json", evaluation)
    if None in methods:
        evaluation, pictures = answers.get(None, ({}, []))
        metrics = read_metrics(folder.uri)
        write_pretraining_report(
            folder, metrics=metrics, accounts=told, throughput=throughput, evaluation=evaluation, pictures=pictures
        )
        draw_demo(folder, job.config, holdout)
    else:
        finish_students(folder, job.config.each_student(), told, throughput, answers)
    return diverged


def _costs(job: PretrainJob) -> dict[str | None, dict[str, Any]]:
    """Parameters and MACs of one forward pass of each student, by the largest tile."""
    costs, methods = {}, job.build_methods()
    for name, student in job.config.each_student().items():
        height, width = (edge // student.downsample for edge in job.stream.largest_size())
        input_px = height if height == width else f"{width} x {height}"
        costs[name] = {"input_px": input_px, **count_cost(methods[name].part("student"), (1, 3, height, width))}
    return costs


def _export(
    folder: RunFolder, job: PretrainJob, method: Method, checkpoint: Checkpoint, own: RunFolder, name: str | None
) -> None:
    """The student of a method into its own folder."""
    teacher = folder.read_json("teacher.json")
    index = folder.read_json("manifest/index.json")
    state = checkpoint.state_of(name)
    metadata = {
        "tile_px": job.stream.tile_px if job.stream.largest_px is None else None,
        "mpp": index["mpp"],
        "method": job.config.method.name,
        "teacher": _named(teacher),
        "tiles_trained": sum(counts[0] for counts in checkpoint.cursor.counts.values()),
        "steps": checkpoint.cursor.step,
    }
    export_student(method, state["average"] or state["method"], own.path("exported"), metadata)


def _named(teacher: dict[str, Any]) -> dict[str, Any]:
    """What a student's files say of its teacher: of several as one, and each of them by its name."""
    told = {key: teacher[key] for key in ("name", "weights_sha256", "licence", "source", "mpp")}
    members = {each["name"]: {**_named(each["spec"]), "shrink": each["shrink"]} for each in teacher.get("members", ())}
    return {**told, "teachers": members} if members else told


def _evaluate(folder: RunFolder, job: PretrainJob, holdout: Manifest, students: Mapping[str | None, str]) -> Answers:
    """The exported students against the teacher on the held-out tiles, through the same readers and teacher pool.

    Args:
        students: Name → URI of the exported folder.

    Returns:
        Name → figures and pictures; none where no tile could be read.
    """
    chunks, stream, workers, seed = holdout.chunks, job.stream, job.workers, job.config.train.seed
    plan = Plan(chunks["rows"], chunks["shard"], num_epochs=1, seed=seed)
    held_out = replace(stream.without_cache(), manifest_uri=folder.path("manifest", "holdout"), plan=plan)
    held_out = replace(held_out, view_seed=None, colour=None)
    measured = make_stream(held_out, Intervals()).map_batches(
        FidelityStage if None in students else FidelityStages,
        fn_constructor_args=(students.get(None, students),),
        fn_constructor_kwargs=dict(
            tile_px=stream.tile_px,
            num_pictures=job.config.report_tiles,
            device="cuda" if workers.gpus_per_worker else "cpu",
        ),
        batch_size=min(each.pool.batch_size for each in stream.teachers),
        num_cpus=workers.cpus_per_worker,
        num_gpus=workers.gpus_per_worker or None,
        compute=ActorPoolStrategy(size=1),
    )
    rows = measured.take_all()
    if not rows:
        logger.warning("no held-out tile could be read: there is no evaluation")
        return {name: ({}, []) for name in students}
    return {name: _summary(rows if name is None else rows_of(rows, name), stream, seed=seed) for name in students}


def _summary(
    rows: list[dict[str, Any]], stream: StreamConfig, *, seed: int
) -> tuple[dict[str, Any], list[dict[str, np.ndarray]]]:
    """Of what `FidelityStage` says of each tile: the figures of all, and pictures."""
    figures = {name: np.stack([row[name] for row in rows]) for name in rows[0] if name not in (SLIDE, PICTURE, "position")}
    groups = np.array([row[SLIDE] for row in rows])
    summary: dict[str, Any] = {}
    for teacher in stream.teachers:
        is_answered = figures.pop(answered_column(teacher.name), np.ones(len(rows), bool)).astype(bool)
        own = tuple(f"{FAITHFUL}{spec.name}." for spec in teacher.responses)
        faithful = {name: values[is_answered] for name, values in figures.items() if name.startswith(own)}
        if is_answered.any():
            summary |= summarise(faithful, groups[is_answered], seed=seed)
    is_known = figures[KNOWN["student"]][:, 0] >= 0
    if is_known.any():
        summary |= summarise({name: figures[name][is_known] for name in KNOWN.values()}, groups[is_known], seed=seed)
    rows.sort(key=lambda row: row["position"])
    pictures = [{"slide": row[SLIDE], **_load_picture(row[PICTURE])} for row in rows if row[PICTURE]]
    return summary, pictures


def _load_picture(data: bytes) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return dict(arrays)
