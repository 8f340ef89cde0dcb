"""What a sweep costs beside what its trials train: a small one over labelled images, one run after the other.

Called by benchmark.py (`--stages sweep`). A run's own time lies between its config.yaml and its last status.json: a model is
built, trained, judged and exported. What the command takes beyond that is overhead: its start and end (Ray, checks, decoding,
the table), and what lies between one run and the next.
"""

import json
import logging
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from workflows.rates.commands import run
from workflows.rates.config import BenchmarkConfig
from workflows.rates.spread import cell, summary
from workflows.shell import output
from workflows.shell.interruption import scratch_folder

logger = logging.getLogger("benchmark")

EDGE_PX, NUM_GROUPS, PER_GROUP = 64, 40, 8
COLOURS = {"pink": (180, 140, 210), "violet": (170, 90, 120)}  # class → BGR
EPOCHS, QUICK_EPOCHS = 4, 1
NUM_TRIALS, NUM_SEEDS, QUICK_TRIALS = 6, 2, 2


def measure_sweep(config: BenchmarkConfig) -> dict[str, Any]:
    """Seconds of the command, of the runs by themselves, and of what is between them; of every round.

    Raises:
        ConfigError: the sweep failed.
    """
    rounds = []
    with scratch_folder("csat-bench-") as scratch:
        _make_images(scratch / "images", config.seed)
        for index in range(config.rounds):
            folder = scratch / f"sweep-{index}"
            watched = run(_command(config, scratch / "images", folder))
            rounds.append(_round(folder, watched.seconds))
            logger.info("round %d: %s", index + 1, {name: round(value, 1) for name, value in rounds[-1].items()})
    _print(rounds)
    return {name: summary([each[name] for each in rounds]) for name in rounds[0]}


def _command(config: BenchmarkConfig, images: Path, folder: Path) -> list[str]:
    data = {"sets": {"folder": {"path": str(images), "options": {"group_pattern": "^([a-z]+[0-9]+)_"}}}, "tile_px": EDGE_PX}
    data["split"] = {"val_fraction": 0.25, "test_fraction": 0.25}
    base = {
        "train": {"epochs": QUICK_EPOCHS if config.quick else EPOCHS, "batch_size": 16, "seed": config.seed},
        "num_bootstraps": 200,
        "report_samples": 4,
    }
    return [
        "workflows/tune.py",
        f"--run_folder={folder}",
        f"--data_sets={json.dumps({'two': {'data': data}})}",
        f"--starts={json.dumps({'nano': {'model': {'name': 'csat_nano'}}})}",
        f"--base={json.dumps(base)}",
        f"--search={json.dumps({'train.optim.lr': {'loguniform': [1e-4, 1e-2]}})}",
        f"--num_trials={QUICK_TRIALS if config.quick else NUM_TRIALS}",
        f"--final_seeds={1 if config.quick else NUM_SEEDS}",
        "--scheduler=none",
    ]


def _round(folder: Path, whole_s: float) -> dict[str, float]:
    runs = sorted(_span(path.parent) for path in folder.glob("cells/**/status.json"))
    own_s = sum(end - start for start, end in runs)
    gaps = [max(0.0, after - end) for (_, end), (after, _) in zip(runs, runs[1:], strict=False)]
    return {
        "runs": len(runs),
        "whole_s": whole_s,
        "own_s": own_s,
        "between_two_runs_s": sum(gaps) / max(1, len(gaps)),
        "start_and_end_s": whole_s - own_s - sum(gaps),
        "overhead_share": (whole_s - own_s) / own_s,
    }


def _span(folder: Path) -> tuple[float, float]:
    """When a run began and ended."""
    return tuple((folder / name).stat().st_mtime for name in ("config.yaml", "status.json"))


def _make_images(folder: Path, seed: int) -> None:
    """Two classes that differ in colour, with much noise."""
    rng = np.random.default_rng(seed)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for group in range(NUM_GROUPS):
            for number in range(PER_GROUP):
                pixels = rng.normal(colour + rng.normal(0, 30, 3), 40, (EDGE_PX, EDGE_PX, 3)).clip(0, 255)
                cv2.imwrite(str(folder / name / f"{name}{group}_{number}.png"), pixels.astype(np.uint8))


def _print(rounds: list[dict[str, float]]) -> None:
    named = {
        "the command, s": "whole_s",
        "its runs by themselves, s": "own_s",
        "from one run to the next, s": "between_two_runs_s",
        "start and end, s": "start_and_end_s",
    }
    lines = [f"\nsweep: {rounds[0]['runs']} runs of csat_nano, one after the other, {len(rounds)} rounds"]
    lines += [f"  {words:32}{cell([each[name] for each in rounds])}" for words, name in named.items()]
    share = cell([100 * each["overhead_share"] for each in rounds])
    lines.append(f"  {'overhead over its runs, %':32}{share}")
    output.result("\n".join(lines), rounds=rounds)
