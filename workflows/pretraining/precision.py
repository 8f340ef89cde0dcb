"""In which number format a pretraining computes: decided once, for all actors and workers, and kept to its end.

`best` becomes float32 or bfloat16 by what the machines have, and of the teacher by what it answers: it is asked about some
tiles both ways, and stays in float32 where that makes more of a difference than `teachers.precision.BOUNDS` allows. What was
decided stands in config.yaml, as if it had been asked for, and how in precision.json.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from csat.errors import ConfigError
from csat.precision import BEST, BFLOAT16, FLOAT32
from csat.runs.folder import RunFolder
from csat.tiles.manifest import read_manifest
from csat.tiles.sample import Rows, sample_rows
from teachers.contract import PRECISION
from teachers.registry import has_precision
from workflows.pretraining.check import as_named
from workflows.pretraining.config import PretrainConfig
from workflows.pretraining.job import PretrainJob
from workflows.pretraining.rehearsal import on_actor, rehearse
from workflows.shell import cluster
from workflows.shell.config import TeacherConfig

logger = logging.getLogger("pretrain")

RECORD = "precision.json"
NUM_TILES = 32  # that a teacher answers both ways


def of_teacher(teacher: TeacherConfig) -> str | None:
    """What is asked of a teacher; None: it computes in one way only."""
    return teacher.options.get(PRECISION, BEST) if has_precision(teacher.name) else None


def in_record(name: str | None) -> str:
    """What the record calls a teacher."""
    return "teacher" if name is None else f"teacher {name}"


def as_begun(config: PretrainConfig, folder: RunFolder) -> PretrainConfig:
    """The settings with what an earlier attempt decided, where they leave that open."""
    earlier = as_before(folder.config() or {}) if _is_decided(folder) else {}
    student = earlier.get("train", {}).get("precision")
    if config.train.precision == BEST and student:
        config = replace(config, train=replace(config.train, precision=student))
    begun = {None: earlier.get("teacher") or {}, **(earlier.get("teachers") or {})}
    settled = {name: begun.get(name, {}).get("options", {}).get(PRECISION) for name in config.asked}
    return _with_teachers(config, {name: used for name, used in settled.items() if used and _is_open(config, name)})


def as_before(earlier: dict[str, Any]) -> dict[str, Any]:
    """A run's settings with what an earlier version, which had no choice, left unsaid: its teacher computed in float32."""
    teacher = earlier.get("teacher") or {}
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
    names = {in_record(name): name for name in config.asked}
    devices = {who: "cuda" if config.asked[name].pool.gpus_per_actor else "cpu" for who, name in names.items()}
    devices["student"] = "cuda" if config.workers.gpus_per_worker else "cpu"
    given = {who: (of_teacher(asked.asked[name]), of_teacher(config.asked[name])) for who, name in names.items()}
    given["student"] = (asked.train.precision, config.train.precision)
    record = dict(record)
    for who, (by_user, by_run) in given.items():
        lacking = cluster.without_bfloat16(devices[who]) if by_user == BEST and by_run != FLOAT32 else []
        if by_run == BFLOAT16 and lacking:
            raise ConfigError(_cannot(who, lacking, job.run_folder, name=names.get(who)))
        if by_run != BEST:
            why = "as asked" if by_run else "the only way that it computes"
            record.setdefault(who, {"used": by_run or FLOAT32, "why": why})
        elif lacking:
            record[who] = {"used": FLOAT32, "why": f"{lacking[0]} does not multiply bfloat16"}
        elif who in names:
            record[who] = _tried(job, list(names).index(who), some_rows())
        else:
            record[who] = {"used": BFLOAT16, "why": "the hardware multiplies it"}
    told = "; ".join(f"{who} in {record[who]['used']} ({record[who]['why']})" for who in given)
    used = {name: record[who]["used"] for who, name in names.items() if of_teacher(config.asked[name])}
    config = _with_teachers(config, used)
    return replace(config, train=replace(config.train, precision=record["student"]["used"])), record, told


def _tried(job: PretrainJob, number: int, rows: Rows) -> dict[str, Any]:
    """The record of one of the stream's teachers, after it answered some tiles both ways."""
    seen = on_actor(job.stream.teachers[number], rehearse, job.stream, rows, number)
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


def _is_open(config: PretrainConfig, name: str | None) -> bool:
    return of_teacher(config.asked[name]) == BEST


def _with_teachers(config: PretrainConfig, used: Mapping[str | None, str]) -> PretrainConfig:
    """The settings with these teachers in these number formats."""
    asked = config.asked
    changed = {name: replace(asked[name], options={**asked[name].options, PRECISION: each}) for name, each in used.items()}
    return config.with_asked({**asked, **changed}) if changed else config


def _is_decided(folder: RunFolder) -> bool:
    return folder.has_begun() or folder.read_json(RECORD) is not None


def _cannot(who: str, lacking: list[str], run_folder: str, *, name: str | None) -> str:
    setting = "train.precision bfloat16" if who == "student" else as_named("teacher.options.precision bfloat16", name)
    return (
        f"{run_folder} began with its {who} in bfloat16, and {', '.join(lacking)} does not multiply that in hardware: resume "
        f"it on machines that do, or set {setting} to compute it slowly, to other last digits; or choose another run_folder"
    )
