"""In which number format a pretraining computes: decided once, for all actors and workers, and kept to its end.

`best` becomes float32 or bfloat16 by what the machines have, and of the teacher by what it answers: it is asked about some
tiles both ways, and stays in float32 where that makes more of a difference than `teachers.precision.BOUNDS` allows. What was
decided stands in config.yaml, as if it had been asked for, and how in precision.json.
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from csat.errors import ConfigError
from csat.precision import BEST, BFLOAT16, FLOAT32
from csat.runs.folder import RunFolder
from csat.tiles.manifest import read_manifest
from csat.tiles.sample import Rows, sample_rows
from teachers.contract import PRECISION
from teachers.registry import has_precision
from workflows.pretraining.config import PretrainConfig
from workflows.pretraining.job import PretrainJob
from workflows.pretraining.rehearsal import on_actor, rehearse
from workflows.shell import cluster

logger = logging.getLogger("pretrain")

RECORD = "precision.json"
NUM_TILES = 32  # that a teacher answers both ways


def of_teacher(config: PretrainConfig) -> str | None:
    """What is asked of the teacher; None: it computes in one way only."""
    return config.teacher.options.get(PRECISION, BEST) if has_precision(config.teacher.name) else None


def as_begun(config: PretrainConfig, folder: RunFolder) -> PretrainConfig:
    """The settings with what an earlier attempt decided, where they leave that open."""
    earlier = as_before(folder.config() or {}) if _is_decided(folder) else {}
    student, teacher = earlier.get("train", {}).get("precision"), earlier.get("teacher", {}).get("options", {}).get(PRECISION)
    if config.train.precision == BEST and student:
        config = replace(config, train=replace(config.train, precision=student))
    if of_teacher(config) == BEST and teacher:
        config = _with_teacher(config, teacher)
    return config


def as_before(earlier: dict[str, Any]) -> dict[str, Any]:
    """A run's settings with what an earlier version, which had no choice, left unsaid: its teacher computed in float32."""
    teacher = earlier.get("teacher", {})
    if teacher.get("name") is None or not has_precision(teacher["name"]) or PRECISION in teacher.get("options", {}):
        return earlier
    return {**earlier, "teacher": {**teacher, "options": {**teacher["options"], PRECISION: FLOAT32}}}


def settle(asked: PretrainConfig, job: PretrainJob) -> PretrainConfig:
    """The settings of a run, decided: see `decide`. Writes down what and why.

    Args:
        asked: What the user asked for, before an earlier attempt was looked at.
        job: Over its tiles; its settings are those of the run.

    Raises:
        ConfigError: an earlier attempt decided for bfloat16, and these machines cannot do it.
    """
    folder = RunFolder(job.run_folder)
    some = lambda: sample_rows(read_manifest(job.stream.manifest_uri), NUM_TILES)  # noqa: E731
    config, record, told = decide(asked, job, some, folder.read_json(RECORD) or {})
    folder.write_json(RECORD, record)
    logger.info("%s", told)
    return config


def decide(
    asked: PretrainConfig, job: PretrainJob, some_rows: Callable[[], Rows], record: dict[str, Any]
) -> tuple[PretrainConfig, dict[str, Any], str]:
    """The settings with float32 or bfloat16 in the place of every `best`.

    Args:
        asked: What the user asked for, before an earlier attempt was looked at.
        job: Its settings are those of the run.
        some_rows: Some of its tiles, without pixels, where the teacher has to be tried.
        record: Of an earlier attempt.

    Returns:
        The settings, the record, and both in a sentence.

    Raises:
        ConfigError: an earlier attempt decided for bfloat16, and these machines cannot do it.
    """
    config = job.config
    devices = {
        "teacher": "cuda" if config.pool.gpus_per_actor else "cpu",
        "student": "cuda" if config.workers.gpus_per_worker else "cpu",
    }
    given = {"teacher": (of_teacher(asked), of_teacher(config)), "student": (asked.train.precision, config.train.precision)}
    record = dict(record)
    for who, (by_user, by_run) in given.items():
        lacking = cluster.without_bfloat16(devices[who]) if by_user == BEST and by_run != FLOAT32 else []
        if by_run == BFLOAT16 and lacking:
            raise ConfigError(_cannot(who, lacking, job.run_folder))
        if by_run != BEST:
            why = "as asked" if by_run else "the only way that it computes"
            record.setdefault(who, {"used": by_run or FLOAT32, "why": why})
        elif lacking:
            record[who] = {"used": FLOAT32, "why": f"{lacking[0]} does not multiply bfloat16"}
        else:
            record[who] = (
                _tried(job, some_rows()) if who == "teacher" else {"used": BFLOAT16, "why": "the hardware multiplies it"}
            )
    told = "; ".join(f"{who} in {record[who]['used']} ({record[who]['why']})" for who in given)
    if of_teacher(config):
        config = _with_teacher(config, record["teacher"]["used"])
    return replace(config, train=replace(config.train, precision=record["student"]["used"])), record, told


def _tried(job: PretrainJob, rows: Rows) -> dict[str, Any]:
    """The teacher's record, after it answered some tiles both ways."""
    seen = on_actor(job.stream, rehearse, job.stream, rows)
    if isinstance(seen, str):
        return {"used": FLOAT32, "why": f"it could not be tried in bfloat16: {seen}"}
    worst = max(seen.deviations, key=lambda each: each["worst"] / each["bound"])
    told = f"{worst['response']}: {worst['measure']} of the worst of {seen.tiles} tiles {worst['worst']:.2g}"
    is_within = all(each["is_within"] for each in seen.deviations)
    return {
        "used": BFLOAT16 if is_within else FLOAT32,
        "why": f"{told}, {'of' if is_within else 'more than'} {worst['bound']:g} allowed",
        "tiles": seen.tiles,
        "deviations": seen.deviations,
        "tiles_per_s": seen.tiles_per_s,
    }


def _with_teacher(config: PretrainConfig, precision: str) -> PretrainConfig:
    options = {**config.teacher.options, PRECISION: precision}
    return replace(config, teacher=replace(config.teacher, options=options))


def _is_decided(folder: RunFolder) -> bool:
    return folder.has_begun() or folder.read_json(RECORD) is not None


def _cannot(who: str, lacking: list[str], run_folder: str) -> str:
    setting = "train.precision bfloat16" if who == "student" else "teacher.options.precision bfloat16"
    return (
        f"{run_folder} began with its {who} in bfloat16, and {', '.join(lacking)} does not multiply that in hardware: resume "
        f"it on machines that do, or set {setting} to compute it slowly, to other last digits; or choose another run_folder"
    )
