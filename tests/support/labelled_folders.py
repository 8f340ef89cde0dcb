"""Tiny labelled images in a folder per class, and the settings of runs and sweeps over them that take seconds."""

from pathlib import Path

import numpy as np
from PIL import Image

from tests.support.forks import in_a_process
from workflows.finetuning.check import check
from workflows.finetuning.config import FinetuneConfig, read_config
from workflows.finetuning.fit import fit
from workflows.shell.decode_samples import Prepared, decode

COLORS = {"pink": (210, 140, 180), "violet": (120, 90, 170)}
SIZE_PX = 32


def make_folder(folder: Path, *, num_groups: int = 8, per_group: int = 3, seed: int = 0) -> Path:
    """`class/<class><group>_<number>.png`: classes differ in colour, with much noise."""
    rng = np.random.default_rng(seed)
    for name, color in COLORS.items():
        (folder / name).mkdir(parents=True)
        for group in range(num_groups):
            for number in range(per_group):
                pixels = rng.normal(color + rng.normal(0, 30, 3), 40, (SIZE_PX, SIZE_PX, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / name / f"{name}{group}_{number}.png")
    return folder


def data_settings(folder: str, **more) -> dict:
    """Of finetune.py."""
    options = {"group_pattern": "^([a-z]+[0-9]+)_"}
    split = {"val_fraction": 0.25, "test_fraction": 0.25}
    return {"data": {"sets": {"folder": {"path": folder, "options": options}}, "split": split, **more}}


def sweep_settings(**more) -> dict:
    """Of tune.py, without data sets and run folder."""
    return {
        "base": {
            "data": {"tile_px": SIZE_PX, "memory_gb": 0.05},
            "model": {"decoder_channels": 8},
            "train": {"epochs": 4, "batch_size": 8, "log_every_steps": 1, "checkpoint_every_steps": 2},
            "num_bootstraps": 100,
            "report_samples": 2,
        },
        "starts": {"nano": {"model": {"name": "csat_nano"}}},
        "search": {"train.optim.lr": {"loguniform": [1e-4, 1e-1]}, "train.optim.weight_decay": {"choice": [0.0, 0.1]}},
        "asha": {"grace": 0.25, "reduction_factor": 2},
        "num_trials": 4,
        "final_seeds": 2,
        "max_concurrent": 2,
        "cpus_per_trial": 0.5,
        **more,
    }


def taught_settings(*, batch_size: int) -> dict:
    """Of a small run of finetune.py that has a teacher: its resources, and little to report."""
    return {
        "workers": {"cpus_per_worker": 0.25},
        "pool": {"max_actors": 1, "cpus_per_actor": 0.25, "batch_size": batch_size},
        "readers": {"max_actors": 1},
        "num_bootstraps": 100,
        "report_samples": 1,
    }


def prepare(config: FinetuneConfig) -> Prepared:
    """The checked and decoded data of a run; Ray is connected."""
    return decode(config.data, check(config))


def fit_alone(plain: dict) -> dict:
    """`fit_here` in a process of its own. What it returns."""
    return in_a_process(fit_here, plain)


def fit_here(plain: dict) -> dict:
    """finetune.py in one process, as a trial of a sweep does it, over files: Ray is not started."""
    config = read_config(plain)
    prepared = Prepared(check(config), config.data)
    return fit(config, prepared, in_this_process=True)
