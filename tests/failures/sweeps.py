"""SIGKILL to a sweep, driver, cluster and trials together, at a moment drawn from a seed; then the same command again."""

import json
import random
import time
from pathlib import Path

import yaml

from csat.runs.recorder import read_metrics
from tests.cluster.nodes import BIN, environment, start
from tests.failures.cluster import kill_tree
from tests.failures.lab import Lab, Outcome
from tests.support.labelled_folders import data_settings, make_folder, sweep_settings

NUM_TRIALS, NUM_SEEDS, DATA_SETS = 4, 1, ("a", "b")
NUM_RUNS = len(DATA_SETS) * (NUM_TRIALS + NUM_SEEDS)
LIMIT_S = 600.0
PROMISE = "the same command resumes: runs that ended are kept, interrupted ones resume from their checkpoint"


def kill_sweep(lab: Lab, fault: str, seed: int) -> Outcome:
    """One sweep over two data sets, killed and given again. `tiles` are its runs: trials, and the seeds after them.

    Raises:
        AssertionError: the sweep took longer than it may, or ended otherwise than promised; with the log's end.
    """
    rng, folder = random.Random(f"{fault}-{seed}"), lab.folder / f"{fault}-{seed}"
    for number, name in enumerate(DATA_SETS):
        make_folder(folder / "data" / name, num_groups=6, per_group=2, seed=number)
    settings = sweep_settings(data_sets={name: data_settings(name) for name in DATA_SETS}, data_root=str(folder / "data"))
    settings |= dict(num_trials=NUM_TRIALS, final_seeds=NUM_SEEDS, run_folder=str(folder / "sweep"))
    (folder / "recipe.yaml").write_text(yaml.safe_dump(settings))
    command = [str(BIN / "python"), "workflows/tune.py", "--config", str(folder / "recipe.yaml")]
    variables = environment(RAY_AUTH_MODE="disabled")
    lab.end_cluster()  # a sweep starts its own

    first = start(command, folder / "first.log", variables)
    try:
        num_ended = rng.randint(1, NUM_RUNS - 2)
        deadline = time.monotonic() + LIMIT_S
        while len(_ended(folder)) < num_ended:
            assert first.poll() is None and time.monotonic() < deadline, (folder / "first.log").read_text()[-4000:]
            time.sleep(0.05)
        time.sleep(rng.uniform(0, 3))
    finally:
        kill_tree(first)
    before, killed_at = _ended(folder), time.monotonic()

    second = start(command, folder / "second.log", variables)
    try:
        while len(_ended(folder)) <= len(before) and second.poll() is None:
            assert time.monotonic() < killed_at + LIMIT_S, (folder / "second.log").read_text()[-4000:]
            time.sleep(0.05)
        recovery_s = round(time.monotonic() - killed_at, 1)
        assert second.wait(timeout=LIMIT_S) == 0, (folder / "second.log").read_text()[-4000:]
    finally:
        kill_tree(second)
    after = _ended(folder)
    for run in after:  # every step once, also in the run that was killed in the middle
        steps = [line["step"] for line in read_metrics(str(run), "metrics")]
        assert steps == sorted(set(steps)), run
    return Outcome(
        fault=fault,
        seed=seed,
        tiles=NUM_RUNS,
        lost=NUM_RUNS - len(after),
        doubled=sum(after.get(run) != changed for run, changed in before.items()),
        done_at_kill=round(len(before) / NUM_RUNS, 3),
        recovery_s=recovery_s,
        note=f"{len(before)} of {NUM_RUNS} runs had ended",
    )


def _ended(folder: Path) -> dict[Path, int]:
    """Run folders that have ended → when that was written."""
    found = {}
    for path in (folder / "sweep" / "cells").glob("*/*/*/*/status.json"):
        if json.loads(path.read_bytes())["state"] in ("finished", "pruned"):
            found[path.parent] = path.stat().st_mtime_ns
    return found
