"""What a run says about itself when its training is over: the fate of every tile, what each attempt cost, and the rates."""

import io
import logging
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from csat.runs.checkpoints import Checkpoint
from csat.runs.folder import RunFolder
from csat.runs.plan import Plan
from csat.runs.quarantine import read_quarantine
from csat.runs.recorder import read_metrics
from csat.runs.students import STUDENTS, seconds_meter, tiles_meter
from csat.storage import files

logger = logging.getLogger(__name__)

ATTEMPTS = "attempts.json"
UNANSWERED = "unanswered"  # by one of several teachers: status of a quarantine row, and the first part of a meter's name
DIVERGED = "diverged"  # what became of a student


def begin_attempt(folder: RunFolder) -> int:
    """Count another call of the trainer, from 1. Returns its number."""
    attempt = 1 + _num_attempts(folder)
    folder.write_json(ATTEMPTS, {"attempts": attempt})
    return attempt


def write_attempt(folder: RunFolder, attempt: int, *, seconds: float, store: dict[str, Any]) -> None:
    """What one call of the trainer cost; throughput.json sums over the attempts."""
    folder.write_json(f"attempt-{attempt:03d}.json", {"attempt": attempt, "wall_s": seconds, **store})


def attempts_of(folder: RunFolder) -> list[dict[str, Any]]:
    """What `write_attempt` was told of each attempt; one that was killed left no figures of its own."""
    numbers = range(1, _num_attempts(folder) + 1)
    return [each for number in numbers if (each := folder.read_json(f"attempt-{number:03d}.json"))]


def write_accounts(folder: RunFolder, plan: Plan, checkpoint: Checkpoint, *, is_stopped: bool = False) -> dict[str, Any]:
    """accounting.json and quarantine.parquet. The loop has checked the sums; here they are said, and of several students what
    became of each.

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
    tiles, in_manifest = f"{plan.num_tiles:,}", f"{total['manifest']:,}"
    logger.info("%d epochs of %s tiles: %s in the manifest = %s", len(epochs), tiles, in_manifest, parts)
    tables = [checkpoint.quarantine]
    slides_path = folder.path("manifest", "quarantine.parquet")
    if files.insist(lambda: files.exists(slides_path)):
        tables.insert(0, read_quarantine(files.insist(lambda: files.read_bytes(slides_path))))
    table = pa.concat_tables(tables)
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    files.insist(lambda: files.write_bytes(folder.path("quarantine.parquet"), buffer.getvalue()))
    reasons = table.group_by(["status", "reason"]).aggregate([([], "count_all")]).to_pylist()
    unused = [each for each in reasons if each["status"] != UNANSWERED]
    if number := sum(each["count_all"] for each in unused):
        logger.info("%d slides, rows and tiles were not used: quarantine.parquet says why", number)
    accounts = {"epochs": epochs, "not_used": unused}
    if teachers := _by_teacher(checkpoint.cursor.meters, total["trained"], [each for each in reasons if each not in unused]):
        accounts["teachers"] = teachers
    if students := _fates(checkpoint):
        accounts["students"] = students
    folder.write_json("accounting.json", accounts)
    return accounts


def _by_teacher(meters: dict[str, float], trained: int, reasons: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of several teachers: trained tiles that each has answered, and those that it has not, by reason. Says so."""
    told = {}
    for name in teachers_in(meters):
        unanswered = int(meters[f"unanswered.{name}"])
        mine = {each["reason"].removeprefix(f"{name}."): each["count_all"] for each in reasons if _is_of(each, name)}
        told[name] = {"answered": trained - unanswered, "unanswered": unanswered, "reasons": mine}
        if unanswered:
            logger.info(
                "%s has not answered %s of %s trained tiles: they were learned from the others",
                name,
                f"{unanswered:,}",
                f"{trained:,}",
            )
    return told


def teachers_in(meters: dict[str, float]) -> list[str]:
    """Names of several teachers, by what was counted of them."""
    return [name.removeprefix(f"{UNANSWERED}.") for name in meters if name.startswith(f"{UNANSWERED}.")]


def _is_of(entry: dict[str, Any], teacher: str) -> bool:
    return entry["reason"].startswith(f"{teacher}.")


def diverged_in(accounts: Mapping[str, Any]) -> dict[str, str]:
    """Students that were stopped alone → why."""
    fates = accounts.get("students", {})
    return {name: fate["error"] for name, fate in fates.items() if fate["state"] == DIVERGED}


def write_throughput(
    folder: RunFolder, checkpoint: Checkpoint, *, num_workers: int, costs: Mapping[str | None, dict[str, Any]]
) -> dict[str, Any]:
    """throughput.json: tiles/s of each stage, share of the time that the trainers waited, memory, spilled bytes.

    Args:
        costs: Student → what one forward pass costs: input_px, params, macs. Of the only one (None), or of several, by name.

    Returns:
        The figures: `student` of the only one, or `students`, by name, each with its share of the training.
    """
    meters, metrics = checkpoint.cursor.meters, read_metrics(folder.uri)
    attempts = attempts_of(folder)
    spilled = [each["spilled_bytes"] for each in attempts if each["spilled_bytes"] is not None]
    rows = meters.get("rows", 0.0)
    answered = meters.get("answered", rows)  # a run that an earlier version began did not count them
    loop_s, wait_s = meters.get("loop_s", 0.0), meters.get("wait_s", 0.0)
    by_name = {
        name: {"tiles_per_s_per_actor": _rate(meters[f"answered.{name}"], meters[f"teacher_s.{name}"])}
        for name in teachers_in(meters)
    }
    throughput = {
        "tiles": int(rows),
        "tiles_per_s": rows / (loop_s / num_workers) if loop_s else None,
        "stages": {
            "read": {"tiles_per_s_per_actor": _rate(rows, meters.get("read_s"))},
            "teacher": {
                "tiles_per_s_per_actor": _rate(answered, meters.get("teacher_s")),
                "answered_share": _rate(answered, rows),
                **({"by_name": by_name} if by_name else {}),
            },
            "student": {"tiles_per_s_per_worker": _rate(rows, loop_s - wait_s), "workers": num_workers},
        },
        "trainer_waiting_share": wait_s / loop_s if loop_s else None,
        "wall_s": sum(each["wall_s"] for each in attempts),
        "attempts": _num_attempts(folder),
        "trainer_peak_rss_bytes": max((line["peak_rss_bytes"] for line in metrics), default=None),
        "object_store_peak_bytes": max((each["object_store_peak_bytes"] for each in attempts), default=None),
        "spilled_bytes": sum(spilled) if spilled else None,
        **({"student": costs[None]} if None in costs else {"students": _with_shares(costs, meters)}),
        "predicted": _compared(folder, steady_rate(metrics)),
    }
    folder.write_json("throughput.json", throughput)
    return throughput


def write_own_throughput(folder: RunFolder, name: str, throughput: Mapping[str, Any]) -> dict[str, Any]:
    """throughput.json of one of several students: the run's, with its own cost and rate.

    Args:
        folder: The student's.
        throughput: The run's.
    """
    own, others = throughput["students"][name], {key: each for key, each in throughput.items() if key != "students"}
    student = {**others["stages"]["student"], "tiles_per_s_per_worker": own["tiles_per_s"]}
    written = {**others, "stages": {**others["stages"], "student": student}, "student": own}
    folder.write_json("throughput.json", written)
    return written


def steady_rate(metrics: list[dict[str, Any]]) -> float | None:
    """Tiles/s after the first line of metrics.jsonl, which has the start of all stages in it.

    None where less than half of the tiles come after it: of these, too many were answered before it.
    """
    seconds = tiles = 0.0
    for before, line in zip(metrics, metrics[1:], strict=False):
        done = line["tiles"] - before["tiles"]
        if done > 0 and line["tiles_per_s"]:
            tiles, seconds = tiles + done, seconds + done / line["tiles_per_s"]
    return tiles / seconds if seconds and tiles >= metrics[-1]["tiles"] / 2 else None


def _compared(folder: RunFolder, measured: float | None) -> dict[str, float] | None:
    """The plan's tiles/s beside those that came of it, and says so; None where nothing was planned or measured."""
    plan = (folder.read_json("plan.json") or {}).get("plan")
    if plan is None:
        return None
    if measured is None:
        logger.info("the plan said %.3g tiles/s; the run was too short to compare with it", plan["tiles_per_s"])
        return None
    predicted, ratio = plan["tiles_per_s"], measured / plan["tiles_per_s"]
    logger.info("%.3g tiles/s once all stages worked; the plan said %.3g (%.2f x)", measured, predicted, ratio)
    return {"tiles_per_s": predicted, "measured_tiles_per_s": measured, "ratio": ratio}


def _fates(checkpoint: Checkpoint) -> dict[str, dict[str, Any]]:
    """What became of each of several students; {} where there is one."""
    meters, fates = checkpoint.cursor.meters, {}
    for name, state in checkpoint.state.get(STUDENTS, {}).items():
        fault, tiles = state.get("fault"), int(meters.get(tiles_meter(name), 0))
        fates[name] = {"state": "trained", "steps": checkpoint.cursor.step, "tiles": tiles}
        if fault:
            why = f"step {fault['step']} ({fault['turn']}): {fault['what']} not finite"
            fates[name] = {"state": DIVERGED, "steps": fault["step"] - 1, "tiles": tiles, "error": why}
            logger.warning("student %s diverged and was stopped after %d tiles: %s", name, tiles, why)
    return fates


def _with_shares(costs: Mapping[str, dict[str, Any]], meters: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    """Each student's cost, its tiles/s on one worker if there were no other, and its share of the time of all students."""
    seconds = {name: meters.get(seconds_meter(name), 0.0) for name in costs}
    total = sum(seconds.values())
    return {
        name: {
            **cost,
            "tiles_per_s": _rate(meters.get(tiles_meter(name), 0.0), seconds[name]),
            "step_share": _rate(seconds[name], total),
        }
        for name, cost in costs.items()
    }


def _num_attempts(folder: RunFolder) -> int:
    return (folder.read_json(ATTEMPTS) or {"attempts": 0})["attempts"]


def _rate(rows: float, seconds: float | None) -> float | None:
    return rows / seconds if seconds else None
