"""What is left in the run folder when training is done: accounts, throughput, the student, its evaluation, the report."""

import io
import logging
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from ray.data import ActorPoolStrategy

from csat.evaluation.fidelity import summarise
from csat.evaluation.held_out import KNOWN, PICTURE, SLIDE, FidelityStage
from csat.evaluation.reports.pretraining import write_report
from csat.export.folder import export_student
from csat.model.cost import count_cost
from csat.runs.checkpoints import Checkpoint, Checkpoints
from csat.runs.folder import RunFolder
from csat.runs.plan import Intervals, Plan
from csat.runs.quarantine import read_quarantine
from csat.runs.recorder import read_metrics
from csat.storage import files
from csat.tiles.manifest import Manifest
from workflows.pretraining.job import Job
from workflows.pretraining.stream import StreamConfig, make_stream
from workflows.shell.config import WorkerConfig
from workflows.shell.data import configure_data

logger = logging.getLogger(__name__)


def finish(folder: RunFolder, job: Job, stream: StreamConfig, *, holdout: Manifest | None, config: Any) -> None:
    """Everything after the last step. Each part can be made again: a rerun starts here if it was killed here."""
    checkpoint = Checkpoints(folder.path("checkpoints")).load()
    assert checkpoint is not None, "training ended without a checkpoint"
    accounts = write_accounts(folder, job.plan, checkpoint)
    _export(folder, job, checkpoint)
    height, width = (edge // job.student.downsample for edge in stream.largest_size())
    input_px = height if height == width else f"{width} x {height}"
    cost = {"input_px": input_px, **count_cost(job.build_method().part("student"), (1, 3, height, width))}
    throughput = write_throughput(folder, checkpoint, num_workers=job.workers.num_workers, student=cost)
    evaluation: dict[str, Any] = {}
    pictures: list[dict[str, np.ndarray]] = []
    if holdout is not None and holdout.num_tiles:
        configure_data(config.ray)
        evaluation, pictures = _evaluate(folder, stream, holdout, job.workers, config.report_tiles, job.train.seed)
        folder.write_json("evaluation.json", evaluation)
    write_report(
        folder,
        metrics=read_metrics(folder.uri),
        accounts=accounts,
        throughput=throughput,
        evaluation=evaluation,
        pictures=pictures,
    )


def write_accounts(folder: RunFolder, plan: Plan, checkpoint: Checkpoint, *, is_stopped: bool = False) -> dict[str, Any]:
    """accounting.json and quarantine.parquet. The loop has checked the sums; here they are said.

    Args:
        is_stopped: A validation ended the run before its plan: the tiles of the last epoch that never came are said, too.
    """
    fates = ("trained", "quarantined", "filtered")
    epochs = [
        {"epoch": epoch, "manifest": plan.num_tiles, **dict(zip(fates, counts, strict=True))}
        for epoch, counts in sorted(checkpoint.cursor.counts.items())
    ]
    if is_stopped:
        fates = (*fates, "not_reached")
        epochs = [{**row, "not_reached": plan.num_tiles - sum(row[fate] for fate in fates[:3])} for row in epochs]
    total = {name: sum(row[name] for row in epochs) for name in ("manifest", *fates)}
    parts = " + ".join(f"{total[name]:,} {name.replace('_', ' ')}" for name in fates)
    print(f"{len(epochs)} epochs of {plan.num_tiles:,} tiles: {total['manifest']:,} in the manifest = {parts}")
    tables = [checkpoint.quarantine]
    slides_path = folder.path("manifest", "quarantine.parquet")
    if files.insist(lambda: files.exists(slides_path)):
        tables.insert(0, read_quarantine(files.insist(lambda: files.read_bytes(slides_path))))
    table = pa.concat_tables(tables)
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    files.insist(lambda: files.write_bytes(folder.path("quarantine.parquet"), buffer.getvalue()))
    reasons = table.group_by(["status", "reason"]).aggregate([([], "count_all")]).to_pylist()
    if table.num_rows:
        print(f"{table.num_rows:,} slides, rows and tiles were not used: quarantine.parquet says why")
    accounts = {"epochs": epochs, "not_used": reasons}
    folder.write_json("accounting.json", accounts)
    return accounts


def write_attempt(folder: RunFolder, attempt: int, *, seconds: float, store: dict[str, Any]) -> None:
    """What one call of the trainer cost; throughput.json sums over the attempts."""
    folder.write_json(f"attempt-{attempt:03d}.json", {"attempt": attempt, "wall_s": seconds, **store})


def write_throughput(
    folder: RunFolder, checkpoint: Checkpoint, *, num_workers: int, student: dict[str, Any]
) -> dict[str, Any]:
    """throughput.json: tiles/s of each stage, share of the time that the trainers waited, memory, spilled bytes.

    Args:
        student: What one forward pass costs: input_px, params, macs.
    """
    meters, metrics = checkpoint.cursor.meters, read_metrics(folder.uri)
    count = (folder.read_json("attempts.json") or {"attempts": 0})["attempts"]
    # An attempt that was killed left no figures of its own.
    attempts = [each for number in range(1, count + 1) if (each := folder.read_json(f"attempt-{number:03d}.json"))]
    spilled = [each["spilled_bytes"] for each in attempts if each["spilled_bytes"] is not None]
    rows = meters.get("rows", 0.0)
    answered = meters.get("answered", rows)  # a run that an earlier version began did not count them
    loop_s, wait_s = meters.get("loop_s", 0.0), meters.get("wait_s", 0.0)
    throughput = {
        "tiles": int(rows),
        "tiles_per_s": rows / (loop_s / num_workers) if loop_s else None,
        "stages": {
            "read": {"tiles_per_s_per_actor": _rate(rows, meters.get("read_s"))},
            "teacher": {
                "tiles_per_s_per_actor": _rate(answered, meters.get("teacher_s")),
                "answered_share": _rate(answered, rows),
            },
            "student": {"tiles_per_s_per_worker": _rate(rows, loop_s - wait_s), "workers": num_workers},
        },
        "trainer_waiting_share": wait_s / loop_s if loop_s else None,
        "wall_s": sum(each["wall_s"] for each in attempts),
        "attempts": count,
        "trainer_peak_rss_bytes": max((line["peak_rss_bytes"] for line in metrics), default=None),
        "object_store_peak_bytes": max((each["object_store_peak_bytes"] for each in attempts), default=None),
        "spilled_bytes": sum(spilled) if spilled else None,
        "student": student,
    }
    folder.write_json("throughput.json", throughput)
    return throughput


def where(folder: RunFolder) -> str:
    """Where a user finds the results."""
    return f"student: {folder.path('exported')}\nreport:  {folder.path('report.html')}"


def _export(folder: RunFolder, job: Job, checkpoint: Checkpoint) -> None:
    teacher = folder.read_json("teacher.json")
    index = folder.read_json("manifest/index.json")
    state = checkpoint.state["average"] or checkpoint.state["method"]
    metadata = {
        "tile_px": None if job.whole else job.tile_px,
        "mpp": index["mpp"],
        "method": job.method.name,
        "teacher": {key: teacher[key] for key in ("name", "weights_sha256", "licence", "source", "mpp")},
        "tiles_trained": sum(counts[0] for counts in checkpoint.cursor.counts.values()),
        "steps": checkpoint.cursor.step,
    }
    export_student(job.build_method(), state, folder.path("exported"), metadata)


def _evaluate(
    folder: RunFolder, stream: StreamConfig, holdout: Manifest, workers: WorkerConfig, num_pictures: int, seed: int
) -> tuple[dict[str, Any], list[dict[str, np.ndarray]]]:
    """The exported student against the teacher on the held-out tiles, through the same readers and teacher pool."""
    chunks = holdout.chunks
    plan = Plan(chunks["rows"], chunks["shard"], num_epochs=1, seed=seed)
    as_scanned = {"view_seed": None, "colour": None, "cache": None}
    held_out = replace(stream, manifest_uri=folder.path("manifest", "holdout"), plan=plan, **as_scanned)
    measured = make_stream(held_out, Intervals()).map_batches(
        FidelityStage,
        fn_constructor_kwargs=dict(
            student_uri=folder.path("exported"),
            tile_px=stream.tile_px,
            num_pictures=num_pictures,
            device="cuda" if workers.gpus_per_worker else "cpu",
        ),
        batch_size=stream.pool.batch_size,
        num_cpus=workers.cpus_per_worker,
        num_gpus=workers.gpus_per_worker or None,
        compute=ActorPoolStrategy(size=1),
    )
    rows = measured.take_all()
    if not rows:
        logger.warning("no held-out tile could be read: there is no evaluation")
        return {}, []
    figures = {name: np.stack([row[name] for row in rows]) for name in rows[0] if name not in (SLIDE, PICTURE, "position")}
    groups = np.array([row[SLIDE] for row in rows])
    faithful = {name: values for name, values in figures.items() if name not in KNOWN.values()}
    summary = summarise(faithful, groups, seed=seed)
    is_known = figures[KNOWN["student"]][:, 0] >= 0
    if is_known.any():
        summary |= summarise({name: figures[name][is_known] for name in KNOWN.values()}, groups[is_known], seed=seed)
    for name, figure in summary.items():
        print(
            f"held out: {name} {figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}] over {figure['tiles']} tiles"
        )
    rows.sort(key=lambda row: row["position"])
    pictures = [{"slide": row[SLIDE], **_load_picture(row[PICTURE])} for row in rows if row[PICTURE]]
    return summary, pictures


def _load_picture(data: bytes) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return dict(arrays)


def _rate(rows: float, seconds: float | None) -> float | None:
    return rows / seconds if seconds else None
