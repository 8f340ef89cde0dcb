"""CoCo from end to end: a teacher's run, its paraphrasers, a student in one process and in a group on a local Ray cluster."""

import json

import numpy as np
import pytest
from PIL import Image

from csat.errors import ConfigError, TeacherError
from csat.methods.coco.paraphrasers import are_there, make_paraphrasers, save_paraphrasers
from csat.runs.folder import RunFolder
from csat.runs.recorder import read_metrics
from teachers.registry import load_teacher
from tests.support.labelled_folders import fit_alone, prepare, taught_settings
from workflows.finetuning.check import check
from workflows.finetuning.config import read_config
from workflows.finetuning.fit import fit

TILE_PX = 64


@pytest.fixture(scope="module")
def glands(tmp_path_factory):
    """Images with masks of dark discs on light ground."""
    folder = tmp_path_factory.mktemp("glands")
    for name in ("images", "masks"):
        (folder / name).mkdir()
    y, x = np.mgrid[:TILE_PX, :TILE_PX]
    for number in range(8):
        rng = np.random.default_rng(number)
        mask = np.zeros((TILE_PX, TILE_PX), np.uint8)
        for row, column in rng.integers(4, TILE_PX - 4, (2, 2)):
            mask[(y - row) ** 2 + (x - column) ** 2 <= 40] = 1
        pixels = np.where(mask[..., None] > 0, (90, 60, 140), (230, 200, 220)) + rng.normal(0, 8, (TILE_PX, TILE_PX, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / "images" / f"{number}.png")
        Image.fromarray(mask * 255).save(folder / "masks" / f"{number}.png")
    return folder


def settings(glands, run_folder, **more) -> dict:
    sets = {"mine": {"path": str(glands), "layout": "pairs"}}
    return {
        "run_folder": str(run_folder),
        "data": {"sets": sets, "task": "segmentation", "fit": "crop", "tile_px": TILE_PX, "memory_gb": 0.05},
        "train": {"epochs": 2, "batch_size": 4, "log_every_steps": 1, "checkpoint_every_steps": 1},
        **taught_settings(batch_size=4),
        **more,
    }


@pytest.fixture(scope="module")
def teacher(glands, tmp_path_factory):
    """A run folder of a narrow FANet."""
    folder = tmp_path_factory.mktemp("runs") / "fanet"
    fit_alone(settings(glands, folder, model={"name": "fanet", "options": {"width": 8}}))
    return folder


def taught(teacher, **options) -> dict:
    """A student of that teacher."""
    options = {"lambda_s": 0.1, "lambda_adv": 0.01, "cells": 4, "paraphraser_epochs": 1, **options}
    return {
        "model": {"name": "mobile_unet"},
        "teacher": {"name": str(teacher), "options": {"taps": True}},
        "method": {"name": "coco", "options": options},
    }


def check_run(folder, teacher) -> None:
    """Both stages were trained, by this teacher, and the student was judged and exported."""
    run = RunFolder(str(folder))
    assert run.is_finished() and run.read_json("evaluation.json")["test"]
    assert run.read_json("teacher.json")["weights_sha256"] == load_teacher(str(teacher)).spec.weights_sha256
    assert json.loads((folder / "exported" / "config.json").read_text())["model"] == "mobile_unet"
    assert {"loss/ce", "loss/coco", "loss/adv", "loss/critic", "loss/penalty"} <= read_metrics(run.uri)[-1].keys()
    assert {"loss/encoder", "loss/decoder", "loss/encoder_missed"} <= read_metrics(run.path("paraphrasers"))[-1].keys()
    assert are_there(run.path("paraphrasers"))


@pytest.mark.slow
def test_a_student_in_one_process(glands, teacher, tmp_path):
    fit_alone(settings(glands, tmp_path / "student", **taught(teacher)))
    check_run(tmp_path / "student", teacher)
    # Another weight, as a sweep would try it, with the paraphrasers of the run before.
    paraphrasers = str(tmp_path / "student" / "paraphrasers")
    fit_alone(settings(glands, tmp_path / "trial", **taught(teacher, lambda_s=1.0, paraphrasers=paraphrasers)))
    assert not (tmp_path / "trial" / "paraphrasers").exists()


def test_paraphrasers_of_another_teacher_are_refused_before_anything_starts(glands, teacher, tmp_path):
    folder, sha256 = str(tmp_path / "others"), load_teacher(str(teacher)).spec.weights_sha256
    save_paraphrasers(make_paraphrasers((32, 32), (24, 24)), folder, teacher_sha256="f" * 64)
    config = read_config(settings(glands, tmp_path / "run", **taught(teacher, paraphrasers=folder)))
    with pytest.raises(ConfigError, match=f"hash {'f' * 16}.*teacher has {sha256[:16]}"):
        check(config)


def test_a_teacher_without_taps_is_refused(glands, teacher, tmp_path):
    plain = settings(glands, tmp_path / "run", **taught(teacher))
    plain["teacher"]["options"] = {}
    with pytest.raises(TeacherError, match="method coco needs the response 'encoder'.*it gives: mask.*taps true"):
        check(read_config(plain))


@pytest.mark.ray
@pytest.mark.thorough
def test_two_workers_and_a_pool(ray_cluster, glands, teacher, tmp_path):
    plain = settings(glands, tmp_path / "student", **taught(teacher))
    plain["workers"]["num_workers"] = 2
    config = read_config(plain)
    fit(config, prepare(config))
    check_run(tmp_path / "student", teacher)
    folder = RunFolder(str(tmp_path / "student"))
    assert folder.read_json("throughput.json") and folder.read_json("attempts.json") == {"attempts": 2}  # one a stage
