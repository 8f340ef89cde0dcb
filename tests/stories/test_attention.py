"""Attention from end to end: a teacher's run at full resolution, a student at half of it, alone, in a group and in a sweep."""

import json

import pytest
import yaml

from csat.errors import TeacherError
from csat.runs.folder import RunFolder
from csat.runs.recorder import read_metrics
from teachers.registry import load_teacher
from tests.support.labelled_folders import (
    SIZE_PX,
    data_settings,
    fit_alone,
    make_folder,
    prepare,
    sweep_settings,
    taught_settings,
)
from workflows import tune
from workflows.finetuning.check import check
from workflows.finetuning.config import read_config
from workflows.finetuning.fit import fit

MODEL = {"name": "resnet10_gn", "options": {"layer": "layer1"}}  # a cell per 4 px
STUDENT = {"model": {**MODEL, "downsample": 2}, "method": {"name": "attention"}}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("images") / "a")


def settings(images, run_folder, **more) -> dict:
    data = data_settings(str(images))["data"]
    return {
        "run_folder": str(run_folder),
        "data": {**data, "tile_px": SIZE_PX, "memory_gb": 0.05},
        "model": MODEL,
        "train": {"epochs": 2, "batch_size": 8, "log_every_steps": 1, "checkpoint_every_steps": 2},
        **taught_settings(batch_size=8),
        **more,
    }


def asked(teacher, **options) -> dict:
    return {"name": str(teacher), "options": {"features": True, "cam": True, **options}}


@pytest.fixture(scope="module")
def teacher(images, tmp_path_factory):
    """A run folder of the same net at full resolution."""
    folder = tmp_path_factory.mktemp("runs") / "high"
    fit_alone(settings(images, folder))
    return folder


def check_run(folder, teacher, *, terms: set[str]) -> None:
    """The student was trained by this teacher, with these terms, at half its resolution, judged and exported."""
    run = RunFolder(str(folder))
    evaluation = run.read_json("evaluation.json")
    assert run.is_finished() and {"balanced_accuracy", "kappa"} <= evaluation["test"].keys()
    assert evaluation["cost"]["input_px"] == SIZE_PX // 2
    teachers = RunFolder(str(teacher)).read_json("evaluation.json")
    assert teachers["cost"]["macs"] / evaluation["cost"]["macs"] == pytest.approx(4, rel=0.001)
    assert run.read_json("teacher.json")["weights_sha256"] == load_teacher(str(teacher)).spec.weights_sha256
    logged = {name for name in read_metrics(run.uri)[-1] if name.startswith("loss/")}
    assert logged == {f"loss/{term}" for term in terms} | {"loss/total"} & logged
    accounts = run.read_json("accounting.json")["epochs"]
    assert all(row["trained"] == row["manifest"] > 0 for row in accounts)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "terms"),
    [({"variant": "at"}, {"ce", "fm", "at"}), ({"variant": "none", "alpha_kd": 1.0, "alpha_fm": 0.0}, {"ce", "kd"})],
    ids=["at", "kd alone"],
)
def test_a_student_in_one_process(images, teacher, tmp_path, options, terms):
    plain = settings(images, tmp_path / "low", **STUDENT, teacher=asked(teacher))
    plain["method"] = {"name": "attention", "options": options}
    fit_alone(plain)
    check_run(tmp_path / "low", teacher, terms=terms)


def test_a_teacher_without_maps_is_refused(images, teacher, tmp_path):
    plain = settings(images, tmp_path / "low", **STUDENT, teacher=asked(teacher, cam=False))
    with pytest.raises(
        TeacherError, match="method attention needs the response 'cam_at_plus'.*it gives: label .*, features .*cam true"
    ):
        check(read_config(plain))


@pytest.mark.ray
@pytest.mark.thorough
def test_two_workers_and_a_pool(ray_cluster, images, teacher, tmp_path):
    plain = settings(images, tmp_path / "low", **STUDENT, teacher=asked(teacher))
    plain["data"]["sampling"] = "oversampled"
    plain["workers"]["num_workers"] = 2
    config = read_config(plain)
    fit(config, prepare(config))
    check_run(tmp_path / "low", teacher, terms={"ce", "fm", "at"})


@pytest.mark.ray
@pytest.mark.thorough
def test_a_sweep_over_the_weights(ray_cluster, images, teacher, tmp_path):
    """Every trial asks the teacher by itself."""
    starts = {"taught": {**STUDENT, "teacher": asked(teacher)}}
    search = {"method.options.alpha_at": {"loguniform": [0.1, 10.0]}}
    recipe = sweep_settings(data_sets={"a": data_settings(str(images))}, starts=starts, search=search)
    del recipe["base"]["model"]  # of a student with a decoder
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "num_trials": 2, "final_seeds": 1}))
    folder = tmp_path / "sweep"
    assert tune.main(["--config", str(tmp_path / "recipe.yaml"), "--run_folder", str(folder)]) == 0
    cell = folder / "cells" / "a" / "taught"
    trials = json.loads((cell / "cell.json").read_text())["trials"]
    assert len({trial["params"]["method.options.alpha_at"] for trial in trials}) == 2
    for run in [*(cell / "trials").iterdir(), *(cell / "seeds").iterdir()]:
        assert "loss/at" in read_metrics(str(run))[-1]
        assert json.loads((run / "teacher.json").read_text())["name"] == "run"
