"""The recipes of docs/study.md: what they would run, read without any data."""

from collections import Counter
from dataclasses import replace

import pytest

from csat.sweeps.space import read_space
from workflows.finetuning.config import FinetuneConfig
from workflows.pretraining.config import NESTED as PRETRAIN_NESTED
from workflows.pretraining.config import PretrainConfig
from workflows.shell import command_line
from workflows.sweep.cells import make_cells
from workflows.sweep.config import NESTED, SweepConfig


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A folder with a teacher's run."""
    (tmp_path / "runs" / "teacher").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)


def cells_of(recipe, *more):
    argv = ["--config", recipe, "--data_root", "/data", "--run_folder", "runs/sweep", *more]
    config = command_line.parse(SweepConfig, "", argv, nested=NESTED)
    return config, make_cells(config, read_space(config.search))


@pytest.fixture(scope="module")
def first_tier():
    return cells_of("study_cpu", "--starts.imagenet.model.weights", "/lite0.safetensors")[1]


def test_the_first_tier(first_tier):
    cells = first_tier
    assert len(cells) == 9 * 4 and sum(cell.num_trials for cell in cells) == 3 * 5 * 4
    assert {cell.num_seeds for cell in cells} == {5}
    by_name = {cell.name: cell for cell in cells}
    assert by_name["nuclei_10 x both"].leader == "nuclei x both" and by_name["polyps x both"].leader is None
    assert by_name["lung x imagenet"].config.model.weights == "/lite0.safetensors"
    points = by_name["cells x rckd"].config.data.sets["crchisto"]
    assert points["options"]["image_root"] == points["path"] + "/images"
    for cell in cells:
        train, validation = cell.config.train, cell.config.validation
        assert validation.patience * validation.every_epochs < train.epochs, cell.name
        assert validation.patience * validation.every_epochs >= 20 or cell.data_set == "cells", cell.name
        whole = by_name[cell.leader or cell.name].config  # a tenth differs in its share and its length, and in nothing else
        assert replace(train, epochs=1) == replace(whole.train, epochs=1), cell.name
        assert replace(cell.config.data, split=whole.data.split) == whole.data, cell.name


def test_the_second_tier_has_the_data_of_the_first(first_tier):
    config, cells = cells_of("study_more_cpu")
    assert Counter(cell.num_seeds for cell in cells) == {0: 15, 3: 15}
    assert sum(cell.num_trials for cell in cells) == 3 * 3 * 5 and config.searcher == "grid"
    same = {cell.data_set: cell for cell in first_tier}
    for cell in cells:
        for part in ("data", "train", "validation"):
            assert cell.settings[part] == same[cell.data_set].settings[part], (cell.name, part)
    _, curve = cells_of("study_curve_cpu")
    for cell in curve:
        for part in ("data", "train", "validation"):
            assert cell.settings[part] == same[cell.data_set].settings[part], (cell.name, part)


def test_attention_from_imagenet():
    settings = ["--base.model.weights", "lite0.safetensors", "--base.teacher.name", "runs/teacher"]
    _, cells = cells_of("attention_imagenet_cpu", *settings)
    assert [cell.config.model.downsample for cell in cells] == [4, 4, 8, 8]
    assert [cell.config.method.name for cell in cells] == ["supervised", "attention"] * 2
    assert {cell.config.model.weights.rpartition("/")[2] for cell in cells} == {"lite0.safetensors"}


@pytest.mark.parametrize(
    ("more", "teachers", "students"),
    [
        (["--teachers.features", "null", "--students.lite0.weights", "a.pt"], ["nuclei"], ["csat", "lite0", "resnet18"]),
        (["--students.lite0", "null", "--students.resnet18", "null"], ["features", "nuclei"], ["csat"]),
        (["--students.lite0", "null", "--students.resnet18", "null", "--teachers.nuclei", "null"], ["features"], ["csat"]),
    ],
)
def test_the_pretrainings(more, teachers, students):
    argv = ["--config", "study_rckd_cpu", "--slides", "slides", "tiles.csv", "--run_folder", "runs/rckd", *more]
    config = command_line.parse(PretrainConfig, "", argv, nested=PRETRAIN_NESTED)
    assert list(config.asked) == teachers and list(config.each_student()) == students
    if "nuclei" in teachers:
        assert config.asked["nuclei"].weights == "hovernet-nuclei"


def test_the_students_that_may_be_passed_on():
    argv = ["--config", "nuclei_students_cpu", "--slides", "slides", "--run_folder", "runs/students"]
    config = command_line.parse(PretrainConfig, "", argv, nested=PRETRAIN_NESTED)
    assert [student.backbone for student in config.each_student().values()] == ["csat", "csat_nano"]
    assert (config.teacher.name, config.teacher.weights) == ("run", "hovernet-nuclei")
    for recipe in ("nuclei_teacher_cpu", "study_hovernet_cpu"):
        argv = ["--config", recipe, "--data.sets.nuinsseg", "nuinsseg", "--run_folder", "runs/teacher"]
        assert command_line.parse(FinetuneConfig, "", argv).model.name == "hovernet"
