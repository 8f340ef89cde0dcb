"""How a run is spread over its cluster: measured, planned, said, kept in plan.json, and compared with what came of it.

What the settings leave open (`pool.max_actors`, `readers.max_actors`, `pool.threads`, `workers.threads`) is planned; what they
say stands. Measuring costs some fifteen seconds, so that a run does it by itself from `PLANNED_FROM` tiles on; `plan true`
does it for any. A resumed run measures nothing again: it plans from the figures in plan.json, on the cluster that is there.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import ray

from csat.errors import ConfigError
from csat.runs.folder import RunFolder
from csat.runs.forecast import (
    TEACHER,
    Costs,
    Forecast,
    KeptCosts,
    Machines,
    Shares,
    TeacherCosts,
    TeacherShares,
    as_record,
)
from csat.runs.planner import make_plan
from csat.tiles.manifest import Manifest
from csat.tiles.sample import sample_rows
from workflows.pretraining.calibration import calibrate
from workflows.pretraining.check import as_named
from workflows.pretraining.config import PretrainConfig
from workflows.pretraining.job import PretrainJob
from workflows.shell import output
from workflows.shell.config import PoolConfig
from workflows.shell.flags import with_flags

logger = logging.getLogger("pretrain")

RECORD = "plan.json"
PLANNED_FROM = 20_000  # tiles to train, of a run that is measured without being asked to
NUM_TILES = 32  # that are measured with
RAY_CPUS = 0.13  # of every node: what Ray's own processes take, whatever the run (docs/performance.md)


def plan_run(job: PretrainJob, manifest: Manifest, kept: Sequence[KeptCosts | None]) -> PretrainConfig:
    """The settings with what they left open about actors and threads; unchanged where the run is too short to be measured.

    Args:
        kept: Of each teacher's responses; None: it answers in every epoch.

    Raises:
        ConfigError: it was asked to be planned, and could not be measured, or the cluster cannot hold it.
    """
    config, folder = job.config, RunFolder(job.run_folder)
    record: dict[str, Any] = folder.read_json(RECORD) or {}
    is_asked, positions = config.plan, job.num_positions
    if config.plan or (not record and positions >= PLANNED_FROM):
        rows = sample_rows(manifest, NUM_TILES)
        try:
            calibration = calibrate(job, rows, node_cpus=int(machines().node_cpus), is_brief=not is_asked)
        except ConfigError as error:
            if is_asked:
                raise
            logger.warning("no plan: %s", error)
            return config
        record = {"calibration": calibration.as_record()}
    if not record:
        return config
    costs = costs_of(record["calibration"]).with_kept(kept, epochs=job.num_epochs)
    record |= plan_record(costs, shares_of(config), positions)
    folder.write_json(RECORD, record)
    if is_asked:
        output.result(with_flags(in_words(record), PretrainConfig), plan=record["plan"], takes=record["takes"])
    else:
        logger.info("%s", in_words(record))
    return planned(config, record["plan"])


def machines() -> Machines:
    """The cluster that this process is connected to, as it is now."""
    has, nodes = ray.cluster_resources(), [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return Machines(
        cpus=has.get("CPU", 0.0),
        gpus=has.get("GPU", 0.0),
        node_cpus=max((node.get("CPU", 0.0) for node in nodes), default=0.0),
        memory_bytes=has.get("memory", 0.0),
        store_bytes=has.get("object_store_memory", 0.0),
        taken_cpus=RAY_CPUS * sum(node.get("CPU", 0.0) > 0 for node in nodes),
    )


def shares_of(config: PretrainConfig) -> Shares:
    """What the settings say of actors and threads, and what they leave open."""
    (first, *others), readers, workers = config.asked.items(), config.readers, config.workers
    name, pool = first[0], first[1].pool
    return Shares(
        reader_cpus=readers.cpus_per_actor,
        teacher_cpus=pool.cpus_per_actor,
        teacher_gpus=pool.gpus_per_actor,
        worker_cpus=workers.cpus_per_worker,
        worker_gpus=workers.gpus_per_worker,
        workers=workers.num_workers,
        chunk_tiles=config.manifest.chunk_tiles,
        readers=readers.max_actors,
        actors=pool.max_actors,
        teacher_threads=pool.threads,
        student_threads=workers.threads,
        teacher_name=name or "",
        others=tuple(
            TeacherShares(
                name=name,
                cpus=each.pool.cpus_per_actor,
                gpus=each.pool.gpus_per_actor,
                actors=each.pool.max_actors,
                threads=each.pool.threads,
            )
            for name, each in others
        ),
    )


def planned(config: PretrainConfig, plan: dict[str, Any]) -> PretrainConfig:
    """The settings with what a plan says of the actors and threads that they left open.

    As many actors are there from the start: pools that may grow only do so while the trainer mostly waits (`Demand` in
    workflows/shell/data.py), and would stay at half of what was planned.
    """
    readers, workers = config.readers, config.workers
    asked = {
        name: replace(each, pool=_planned_pool(each.pool, of))
        for (name, each), of in zip(config.asked.items(), teachers_in(plan), strict=True)
    }
    if readers.max_actors is None:
        number = max(readers.min_actors, plan["readers"])
        readers = replace(readers, min_actors=number, max_actors=number)
    if workers.threads is None:
        workers = replace(workers, threads=plan["student_threads"])
    return replace(config.with_asked(asked), readers=readers, workers=workers)


def teachers_in(plan: dict[str, Any]) -> list[dict[str, int]]:
    """Actors and threads of every teacher of a plan."""
    return [{"actors": plan["actors"], "threads": plan["teacher_threads"]}, *plan.get("others", ())]


def _planned_pool(pool: PoolConfig, planned: dict[str, int]) -> PoolConfig:
    if pool.max_actors is None:
        number = max(pool.min_actors, planned["actors"])
        pool = replace(pool, min_actors=number, max_actors=number)
    return replace(pool, threads=planned["threads"]) if pool.threads is None else pool


def plan_record(costs: Costs, shares: Shares, positions: int) -> dict[str, Any]:
    """The plan for so many tiles, what it takes, and what one more GPU or node would make of it.

    Raises:
        ConfigError: the cluster cannot hold it.
    """
    have = machines()
    plan = make_plan(have, costs, shares)
    more = {"one more node": have.with_node()}
    if shares.worker_gpus or any(each.gpus for each in shares.teachers):
        more["one more GPU"] = have.with_gpu()
    # What is settled now was settled for this cluster: with more, as many would be set.
    free = shares.with_any_number()
    return {
        "positions": positions,
        "plan": as_record(plan),
        "takes": plan.over(positions, costs.bytes_per_tile),
        "with": {name: _changed(plan, make_plan(larger, costs, free)) for name, larger in more.items()},
    }


def costs_of(calibration: dict[str, Any]) -> Costs:
    """As `Calibration.as_record` has them, from JSON, whose keys are text."""
    costs = calibration["costs"]
    by_threads = {name: _by_threads(costs[name]) for name in ("teacher", "student")}
    others = tuple(
        TeacherCosts(rates=_by_threads(each["rates"]), process_bytes=each["process_bytes"]) for each in costs.get("others", ())
    )
    return Costs(**{**costs, **by_threads, "others": others})


def _by_threads(rates: dict[str, float]) -> dict[int, float]:
    return {int(number): rate for number, rate in rates.items()}


def in_words(record: dict[str, Any]) -> str:
    """Lines for a terminal."""
    plan, takes, calibration = record["plan"], record["takes"], record["calibration"]
    stages = ", ".join(f"{name} {rate:,.4g}" for name, rate in plan["stages"].items())
    lines = [
        f"the plan ({calibration['seconds']:.0f} s of measuring), which settings may change:",
        f"  readers     {plan['readers']} (readers.max_actors)",
        *_of_teachers(plan, calibration),
        f"  student     workers: {plan['workers']}, threads: {plan['student_threads']} (workers.threads)",
        f"  reserved    {plan['cpus']:g} CPUs, {plan['gpus']:g} GPUs; {plan['stream_bytes'] / 1e9:.2f} GB on their way are "
        "enough (ray.stream_gb)",
        f"  tiles/s     {plan['tiles_per_s']:,.4g}, limited by {plan['bottleneck']} (each by itself: {stages})",
        *_by_epoch(plan),
        f"  the run     {record['positions']:,} tiles: {span(takes['hours'])}, {takes['gb_moved']:,.3g} GB between "
        f"processes, {takes['gpu_hours']:.3g} GPU-hours",
    ]
    for name, change in record["with"].items():
        told = f"{change['tiles_per_s']:,.4g} tiles/s ({change['times']:.2f} x), limited by {change['bottleneck']}"
        lines.append(f"  {name:11} {told}")
    return "\n".join(lines)


def _by_epoch(plan: dict[str, Any]) -> list[str]:
    if not plan.get("by_epoch"):
        return []
    first, later = plan["by_epoch"]
    return [
        f"              {first:,.4g} in the first epoch, {later:,.4g} in later ones, which read the responses that it keeps"
    ]


def span(hours: float) -> str:
    """For a person."""
    if hours < 1 / 60:
        return f"{hours * 3600:.2g} seconds"
    return f"{hours * 60:.2g} minutes" if hours < 1 else f"{hours:.3g} hours"


def _of_teachers(plan: dict[str, Any], calibration: dict[str, Any]) -> list[str]:
    """A line for each teacher; where there are several, with its name."""
    others = calibration.get("others_tiles_per_s", {})
    named = [stage.removeprefix(f"{TEACHER} ") for stage in plan["stages"] if stage.startswith(TEACHER)]
    names = named if others else [None]
    rates = [calibration["teacher_tiles_per_s"], *others.values()]
    lines = []
    for name, planned, measured in zip(names, teachers_in(plan), rates, strict=True):
        told = f"actors: {planned['actors']} (pool.max_actors), threads: {planned['threads']} (pool.threads)"
        tried = [each for each in measured if each["threads"] == 1]
        if len(tried) > 1:
            best = max(tried, key=lambda each: each["tiles_per_s"])
            told += f"; fastest with tiles at once: {best['tiles']} (teacher.options.micro_batch)"
        lines.append(f"  {name or 'teacher':11} {as_named(told, name)}")
    return lines


def _changed(now: Forecast, then: Forecast) -> dict[str, Any]:
    times = then.tiles_per_s / now.tiles_per_s
    return {"tiles_per_s": then.tiles_per_s, "times": times, "bottleneck": then.bottleneck, "actors": then.actors}
