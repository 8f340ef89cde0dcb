"""Makes small run folders with the code of the day, which later code must still open.

    python -m tests.stories.old_runs.make /tmp/csat-old-runs

The folder's place is written into the runs (slides, data sets, teachers), so it is a fixed one.
"""

import contextlib
import lzma
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from csat.runs.checkpoints import Checkpoints
from csat.settings import with_places
from csat.slides.synthetic import make_slides
from tests.support.labelled_folders import data_settings, make_folder, taught_settings
from tests.support.verbs import ROOT, arguments, kill_group
from workflows import pretrain
from workflows.finetuning import fit as finetuning
from workflows.finetuning.check import check
from workflows.finetuning.config import read_config
from workflows.shell.decode_samples import Prepared

SMALL = {
    "train": {"epochs": 2, "batch_size": 8, "log_every_steps": 1, "keep_checkpoints": 1, "optim": {"lr": 0.005}},
    "num_bootstraps": 100,
    "report_samples": 1,
}
NUCLEI_PX = 96


class Stopped(Exception):
    """Ends a run in the middle, as a machine that goes away."""


def discs(folder: Path, *, number_them: bool, edge_px: int) -> Path:
    """Ten images with masks of dark discs on light ground: nuclei with a number each, or one class."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    y, x = np.mgrid[:edge_px, :edge_px]
    for index in range(10):
        rng = np.random.default_rng(index)
        mask = np.zeros((edge_px, edge_px), np.uint16)
        for nucleus, (row, column) in enumerate(rng.integers(6, edge_px - 6, (6, 2)), 1):
            mask[(y - row) ** 2 + (x - column) ** 2 <= 20] = nucleus if number_them else 1
        pixels = np.where(mask[..., None] > 0, (90, 60, 140), (230, 200, 220)) + rng.normal(0, 8, (edge_px, edge_px, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / "images" / f"{index}.png")
        Image.fromarray(mask if number_them else (mask * 255).astype(np.uint8)).save(folder / "masks" / f"{index}.png")
    return folder


def fit(run_folder: Path, *settings: dict, stop_after: int | None = None) -> None:
    """finetune.py in this process."""
    plain = {"run_folder": str(run_folder)}
    for each in (SMALL, *settings):
        plain = _merged(plain, each)
    config = with_places(read_config(plain))
    seen = []

    def on_validation(figures: dict) -> None:
        seen.append(figures)
        if len(seen) == stop_after:
            raise Stopped("in the middle")

    prepared = Prepared(check(config), config.data)
    with contextlib.suppress(Stopped):
        finetuning.fit(config, prepared, in_this_process=True, on_validation=on_validation)


def _merged(first: dict, second: dict) -> dict:
    both = [key for key in first if isinstance(first[key], dict) and isinstance(second.get(key), dict)]
    return {**first, **second, **{key: _merged(first[key], second[key]) for key in both}}


def main(root: Path) -> None:
    """All of them."""
    shutil.rmtree(root, ignore_errors=True)
    torch.backends.mkldnn.enabled = False  # oneDNN crashes in narrow HoVer-Nets (uxlfoundation/oneDNN#6035)
    small = {"model": {"name": "test_convnext", "decoder_channels": 8}}
    images = data_settings(str(make_folder(root / "data/images", num_groups=8, per_group=2)), tile_px=32, memory_gb=0.05)
    pairs = {}
    for name, edge, task in (("glands", 64, "segmentation"), ("nuclei", NUCLEI_PX, "nuclei")):
        folder = discs(root / "data" / name, number_them=task == "nuclei", edge_px=edge)
        sets = {"mine": {"path": str(folder), "layout": "pairs"}}
        pairs[name] = {"data": {"sets": sets, "task": task, "fit": "crop", "tile_px": edge, "memory_gb": 0.05}}

    fit(root / "classifier", images, small)
    fit(root / "classifier-stopped", images, small, {"train": {"epochs": 4, "checkpoint_every_steps": 2}}, stop_after=2)
    fit(root / "hovernet", pairs["nuclei"], {"model": {"name": "hovernet", "options": {"width": 0.05}}})
    fit(root / "fanet", pairs["glands"], {"model": {"name": "fanet", "options": {"width": 8}}})
    coco = {"lambda_s": 0.1, "lambda_adv": 0.01, "cells": 4, "paraphraser_epochs": 1, "critic_width": 4}
    fit(
        root / "coco",
        pairs["glands"],
        taught_settings(batch_size=4),
        {
            "model": {"name": "enet"},
            "teacher": {"name": str(root / "fanet"), "options": {"taps": True}},
            "method": {"name": "coco", "options": coco},
        },
    )
    resnet = {"name": "resnet10_gn", "options": {"layer": "layer1"}}
    fit(root / "resnet", images, {"model": resnet})
    attention = {
        "model": {**resnet, "downsample": 2},
        "teacher": {"name": str(root / "resnet"), "options": {"features": True, "cam": True}},
        "method": {"name": "attention"},
    }
    fit(root / "attention", images, taught_settings(batch_size=8), attention)

    slides = make_slides(root / "slides", num_slides=2, size_px=512, seed=5)
    more = dict(student__backbone="test_convnext", train__keep_checkpoints=1, train__checkpoint_every_steps=2)
    assert pretrain.main(arguments(slides, root / "rckd", **more)) == 0
    argv = arguments(slides, root / "rckd-stopped", **more, train__epochs=12)
    driver = subprocess.Popen([sys.executable, "workflows/pretrain.py", *argv], cwd=ROOT, start_new_session=True)
    checkpoints = Checkpoints(str(root / "rckd-stopped/checkpoints"))
    while driver.poll() is None and len(checkpoints.latest_cursor().done) < 200:
        time.sleep(0.1)
    kill_group(driver)


def pack(root: Path, archive: Path) -> None:
    """What later code opens of them, small: weights to three bits of mantissa, no pictures, no checkpoints of ended runs."""
    for path in root.rglob("*.safetensors"):
        with safe_open(path, "pt") as file:
            metadata, tensors = file.metadata(), {name: _rounded(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
        save_file(tensors, path, metadata=metadata)
    for path in root.rglob("state.pt"):
        torch.save(_rounded(torch.load(path, weights_only=True)), path)
    for path in [*root.glob("*/ray"), *root.glob("*/tensorboard"), *root.glob("coco/paraphrasers/checkpoints")]:
        shutil.rmtree(path)
    for path in [*root.rglob("report.html"), *root.glob("rckd/checkpoints/*/state.pt")]:
        path.unlink()
    for run in ("classifier", "hovernet", "fanet", "coco", "attention", "resnet"):
        shutil.rmtree(root / run / "checkpoints")
    with lzma.open(archive, "wb", preset=9 | lzma.PRESET_EXTREME) as file, tarfile.open(fileobj=file, mode="w") as tar:
        tar.add(root, arcname=".")


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return type(value)((key, _rounded(each)) for key, each in value.items())
    if isinstance(value, (list, tuple)):
        return type(value)(_rounded(each) for each in value)
    if not isinstance(value, torch.Tensor) or not value.is_floating_point() or value.numel() < 1000:
        return value
    mantissa, exponent = torch.frexp(value)
    return torch.ldexp((4 * mantissa).round() / 4, exponent).to(value.dtype)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    pack(Path(sys.argv[1]), Path(__file__).with_name("runs.tar.xz"))
