"""How near a run comes to what the machine can do, and where the rest goes.

Called by benchmark.py (`--stages ceiling`), with the images, teacher and student of the stage peers. Each round measures the
stages by themselves (`pretrain.py --plan true`: reading, teacher and student in one process each, with a thread on a core of
its own), and then the whole run. Without a GPU the ceiling is

    tiles/s = cores / (core-seconds of reading + of the teacher + of the student, each for one tile and by itself)

and no run can be faster, but for the machine's own ups and downs. Beside it stand the core-seconds that the run's processes
took in its middle, by role: what is more than by itself is lost to sharing the memory and its caches, what the driver and Ray
take is lost to them, and what no core did is idle. On a GPU the ceiling is the slowest stage.
"""

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from csat.runs.recorder import read_metrics
from workflows.rates.commands import run
from workflows.rates.config import BenchmarkConfig
from workflows.rates.contenders import DEFAULTS, STUDENT, TEACHER, TILE_PX, Ours, Task
from workflows.rates.images import MIDDLE, gather_images, make_teacher, steady
from workflows.rates.spread import cell, ratio, summary
from workflows.shell import output
from workflows.shell.interruption import scratch_folder

logger = logging.getLogger("benchmark")

CPU_STAGES = {"reading": "reader", "teacher": "teacher", "student": "worker"}  # stage by itself → role in the run


def measure_ceiling(config: BenchmarkConfig) -> dict[str, Any]:
    """Rates, their ratio, and core-seconds a tile: of every round.

    Raises:
        ConfigError: too few images; a command failed.
    """
    ours = Ours(more=config.ours)
    rounds: list[dict[str, Any]] = []
    with scratch_folder("csat-bench-") as folder:
        task = Task(weights=folder / "teacher.pt", device=config.device, seed=config.seed)
        num_images = gather_images(config, folder)
        make_teacher(task.weights, config.seed)
        for index in range(config.rounds):
            here = folder / f"round-{index}"
            once = measure_once(lambda out: ours.command(task, folder / "images", out, DEFAULTS), here, config.device)
            told = (index + 1, once["steady_tiles_per_s"], once["ceiling_tiles_per_s"])
            logger.info("round %d: %.2f of %.2f tiles/s", *told)
            rounds.append(once)
    names = ("steady_tiles_per_s", "ceiling_tiles_per_s", "waiting_share", "busy_share")
    figures = {name: summary([each[name] for each in rounds]) for name in names}
    figures["steady_to_ceiling"] = ratio(*([each[name] for each in rounds] for name in names[:2]))
    figures |= {"rounds": rounds, "images": num_images}
    _print(f"{num_images:,} images of {TILE_PX} px, {TEACHER} → {STUDENT}, defaults, {config.rounds} rounds", rounds)
    return figures


def measure_once(command: Callable[[Path], list[str]], folder: Path, device: str) -> dict[str, Any]:
    """A run and what its stages can do by themselves.

    Args:
        command: Run folder → arguments of pretrain.py, which write a line of metrics.jsonl for each step.

    Raises:
        ConfigError: a command failed, or had too few steps.
    """
    planned, out = folder / "plan", folder / "run"
    run([*command(planned), "--plan=true"])
    watched = run(command(out), progress=out / "metrics.jsonl")
    plan = json.loads((planned / "plan.json").read_text())
    costs, stages = plan["calibration"]["costs"], plan["plan"]["stages"]
    lines = read_metrics(str(out))
    first, last = (max(1, round(share * len(lines))) for share in MIDDLE)
    seconds, core_s = watched.between(first, last)
    tiles = lines[last - 1]["tiles"] - lines[first - 1]["tiles"]
    done = [0, *(line["tiles"] for line in lines)]
    numbers = [after - before for before, after in zip(done, done[1:], strict=False)]
    alone = {"reading": costs["read_s"], "teacher": 1 / costs["teacher"]["1"], "student": 1 / costs["student"]["1"]}
    num_cores = _cores()
    of_cores = num_cores / sum(alone.values())
    of_stages = min(stages[name] for name in ("reading", "the teacher", "the student"))
    return {
        "steady_tiles_per_s": steady([(n, n / line["tiles_per_s"]) for n, line in zip(numbers, lines, strict=True)]),
        "ceiling_tiles_per_s": of_stages if device == "cuda" else of_cores,
        "waiting_share": json.loads((out / "throughput.json").read_text())["trainer_waiting_share"],
        "busy_share": sum(core_s.values()) / (seconds * num_cores),
        "alone_core_s": alone,
        "in_the_run_core_s": {role: used / tiles for role, used in core_s.items()},
    }


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _print(title: str, rounds: list[dict[str, Any]]) -> None:
    """The table: milliseconds of a core for each tile, by itself and in the run."""
    lines = [f"\nceiling: {title}", f"  {'ms of a core for a tile':26}{'by itself':26}in the run"]
    roles = sorted({role for each in rounds for role in each["in_the_run_core_s"]} - set(CPU_STAGES.values()))
    for stage, role in [*CPU_STAGES.items(), *(("", role) for role in roles)]:
        alone = [1000 * each["alone_core_s"][stage] for each in rounds] if stage else []
        used = [1000 * each["in_the_run_core_s"].get(role, 0.0) for each in rounds]
        lines.append(f"  {stage or role:26}{cell(alone):26}{cell(used)}")
    sums = [[1000 * sum(each[name].values()) for each in rounds] for name in ("alone_core_s", "in_the_run_core_s")]
    lines.append(f"  {'together':26}{cell(sums[0]):26}{cell(sums[1])}")
    rates = {name: [each[name] for each in rounds] for name in ("ceiling_tiles_per_s", "steady_tiles_per_s")}
    shares = [cell([100 * each[name] for each in rounds]) for name in ("busy_share", "waiting_share")]
    lines += [
        f"  {'tiles/s':26}{cell(rates['ceiling_tiles_per_s']):26}{cell(rates['steady_tiles_per_s'])}",
        f"  steady / ceiling {cell(ratio(rates['steady_tiles_per_s'], rates['ceiling_tiles_per_s'])['rounds'])}",
        f"  cores busy {shares[0]} %, trainer waiting {shares[1]} % (of the whole run)",
    ]
    output.result("\n".join(lines), rounds=rounds)
