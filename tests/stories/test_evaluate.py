"""The verb on run folders that were made up: nothing is trained, and Ray is started for other data only."""

import csv
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml

from csat.errors import DatasetError
from csat.evaluation.folds import join_folds
from csat.evaluation.judged_run import JudgedRun, read_run
from csat.evaluation.predictions import write_predictions
from csat.model.files import save_model
from csat.model.student import Student, StudentConfig
from csat.responses import Kind, ResponseSpec
from csat.runs.folder import RunFolder
from csat.settings import plain_settings
from tests.support.labelled_folders import data_settings, make_folder
from tests.support.made_up import classified, nuclei, segmented, write_run
from tests.support.nuclei_folders import NUCLEI, TYPES, make_nuclei, write_student
from workflows import evaluate
from workflows.comparison.config import name_runs
from workflows.comparison.data import judge, look, own_data
from workflows.finetuning.build import build_method
from workflows.finetuning.check import check
from workflows.finetuning.config import read_config

QUICK = ["--num_bootstraps=100"]


def run_verb(tmp_path, runs, *more) -> int:
    return evaluate.main([f"--runs={json.dumps(runs)}", f"--run_folder={tmp_path / 'out'}", *QUICK, *more])


def make(tmp_path, name, predictions, **more) -> str:
    folder = write_run(tmp_path / name, {"val": predictions, "test": predictions}, **more)
    config = {
        "data": {"sets": {"folder": str(tmp_path / "images")}},
        "test_time_views": 1,
        "train": {"precision": "float32"},
    }
    folder.write_text("config.yaml", yaml.safe_dump(config))
    return folder.uri


@pytest.fixture
def runs(tmp_path):
    return {
        "rckd": [make(tmp_path, f"rckd-{seed}", classified(seed, skill=2.5), seed=seed) for seed in range(2)],
        "scratch": [make(tmp_path, "scratch", classified(5))],
    }


def test_from_runs_to_a_table(tmp_path, runs, capsys):
    assert run_verb(tmp_path, runs) == 0
    printed = capsys.readouterr().out
    assert "test: 60 images of 12 groups" in printed
    assert f"report: {tmp_path / 'out' / 'report.html'}" in printed
    result = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    rckd, scratch = result["groups"]["rckd"], result["groups"]["scratch"]
    assert (result["metric"], rckd["figures"]["accuracy"]["seeds"], scratch["figures"]["accuracy"]["seeds"]) == (
        "balanced_accuracy",
        2,
        1,
    )
    assert scratch["against_first"]["accuracy"]["difference"] < 0
    assert [run["uri"] for run in rckd["runs"]] == runs["rckd"]
    assert len(result["worst"]) == 12
    rows = list(csv.DictReader((tmp_path / "out" / "evaluation.csv").open()))
    assert {row["name"] for row in rows} == {"rckd", "scratch"}
    page = (tmp_path / "out" / "report.html").read_text()
    assert "There are no pictures" in page  # the images of this run are not there
    assert json.loads((tmp_path / "out" / "status.json").read_text()) == {"state": "finished"}
    # The same again does the same; another configuration is refused, and with --overwrite it is not.
    assert run_verb(tmp_path, runs) == 0
    assert run_verb(tmp_path, runs, "--seed=1") == 2
    assert "seed: was 0, is 1" in capsys.readouterr().err
    assert run_verb(tmp_path, runs, "--seed=1", "--overwrite=true") == 0


def test_folders_without_names_and_another_part_and_metric(tmp_path, runs, capsys):
    argv = ["--runs", *runs["rckd"], *runs["scratch"], "--run_folder", str(tmp_path / "out"), *QUICK]
    assert evaluate.main([*argv, "--split", "val", "--metric", "kappa", "--report_samples", "0"]) == 0
    result = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert (list(result["groups"]), result["part"], result["metric"], result["worst"]) == (
        ["rckd-0", "rckd-1", "scratch"],
        "val",
        "kappa",
        [],
    )
    assert "The weights were chosen on these very images" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize("predictions", [segmented(), nuclei(types=("a", "b"))], ids=["segmentation", "nuclei"])
def test_other_tasks(tmp_path, predictions):
    uri = make(tmp_path, "one", predictions)
    assert run_verb(tmp_path, {"one": uri}, "--report_samples=2") == 0
    result = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert set(result["groups"]["one"]["figures"]) == set(
        json.loads((tmp_path / "one" / "evaluation.json").read_text())["test"]
    )


# ----------------------------------------------------------------------------------------------------------- names of runs


def test_names_and_patterns(tmp_path):
    for name in ("a-0", "a-1", "b-0"):
        (tmp_path / name).mkdir()
    (tmp_path / "a-2.txt").write_text("no folder")
    at = lambda *names: [str(tmp_path / name) for name in names]  # noqa: E731
    assert name_runs({"a": f"{tmp_path}/a-*", "b": at("b-0")}) == {"a": at("a-0", "a-1"), "b": at("b-0")}
    assert name_runs([f"{tmp_path}/*-0"]) == {"a-0": at("a-0"), "b-0": at("b-0")}


# -------------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("change", "more", "words"),
    [
        (lambda runs: {}, [], ["no runs were given"]),
        (lambda runs: {"a": []}, [], ["runs.a is a run folder or a list of them"]),
        (lambda runs: {"a": 3}, [], ["runs.a is a run folder"]),
        (lambda runs: {"a": "nowhere/*"}, [], ["nowhere/*"]),
        (lambda runs: {"a": "nowhere"}, [], ["nowhere is no run folder"]),
        (lambda runs: [*runs["rckd"], *runs["rckd"]], [], ["the same name"]),
        (lambda runs: {"a": runs["rckd"], "b": runs["rckd"][0]}, [], ["given twice", "rckd-0"]),
        (lambda runs: runs, ["--split=tets"], ["split is one of train, val, test", "tets"]),
        (lambda runs: runs, ["--split=all"], ["split is one of train, val, test"]),
        (lambda runs: runs, ["--split=train"], ["not judged on a train part", "it has: test, val"]),
        (lambda runs: runs, ["--metric=f1"], ["no metric of classification", "macro_f1"]),
        (lambda runs: runs, ["--num_bootstraps=0"], ["num_bootstraps must be at least 1"]),
        (lambda runs: runs, ["--device=tpu"], ["device is cpu or cuda"]),
        (lambda runs: runs, ["--metrics=f1"], ["no setting 'metrics'", "metric"]),
    ],
)
def test_settings_that_cannot_work(tmp_path, runs, capsys, change, more, words):
    assert run_verb(tmp_path, change(runs), *more) == 2
    message = capsys.readouterr().err
    for word in words:
        assert word in message
    assert not (tmp_path / "out").exists()


def test_runs_that_do_not_compare(tmp_path, runs, capsys):
    fewer = make(tmp_path, "fewer", classified().select(range(40)))
    assert run_verb(tmp_path, {**runs, "fewer": fewer}) == 2
    message = capsys.readouterr().err
    assert "different samples" in message and "images/040.png" in message and fewer in message
    # Nothing is lost: the same folder serves the corrected command.
    assert run_verb(tmp_path, runs, "--overwrite=true") == 0


def test_runs_of_other_classes_and_unfinished_ones(tmp_path, runs, capsys):
    other = make(tmp_path, "other", replace(classified(), classes=("a", "b", "c")))
    assert run_verb(tmp_path, {**runs, "other": other}) == 2
    assert "learned something else" in capsys.readouterr().err
    (tmp_path / "scratch" / "status.json").write_text('{"state": "running"}')
    assert run_verb(tmp_path, runs) == 2
    assert "not finished" in capsys.readouterr().err


# ----------------------------------------------------------------------------------------------------- with models at hand


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("labelled") / "set", num_groups=6, per_group=2)


@pytest.fixture(scope="module")
def exported(images, tmp_path_factory):
    """Two run folders with models that have learned nothing, and what they say of all images."""
    return [_untrained(tmp_path_factory.mktemp("exported") / f"run-{seed}", images, seed) for seed in range(2)]


def _untrained(path, images, seed) -> str:
    settings = {
        "run_folder": str(path),
        "model": {"name": "csat_nano", "decoder_channels": 8},
        "train": {"seed": seed},
        "data": {"tile_px": 32, **data_settings(str(images))["data"]},
    }
    config = read_config(settings)
    model = build_method(config, check(config)).part("student").eval()
    folder = RunFolder(str(path))
    save_model(model, folder.path("exported"), {"mpp": None})
    evaluation = {"task": "classification", "classes": ["pink", "violet"]}
    run = JudgedRun(uri=folder.uri, config=plain_settings(config), evaluation=evaluation)
    data = own_data(run)
    write_run(path, {"test": judge(run, data, device=torch.device("cpu"))[0]}, seed=seed)
    folder.write_config(config)
    rows = [f"{sample.image},train,{sample.key},{sample.group},pink,," for sample in data.samples]
    folder.write_text("samples.csv", "\n".join(["image,part,sample,group,label,mpp,reason", *rows]) + "\n")
    return folder.uri


def test_a_run_sees_its_own_images(images, exported):
    run = read_run(exported[0], "test")
    data = own_data(run)
    assert len(data.samples) == 2 * 6 * 2
    keys = ["violet/violet0_1.png", "pink/pink3_0.png"]
    pictures = look(run, data, keys, device=torch.device("cpu"))
    assert [picture["key"] for picture in pictures] == keys
    losses = dict(zip(run.predictions.keys, run.predictions.loss, strict=True))
    assert [picture["loss"] for picture in pictures] == pytest.approx([losses[key] for key in keys], rel=1e-4)
    with pytest.raises(DatasetError, match="there is no gone.png"):
        look(run, data, ["gone.png"], device=torch.device("cpu"))


def test_the_worst_images_are_shown(tmp_path, exported):
    assert run_verb(tmp_path, {"untrained": exported}, "--report_samples=3") == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("data:image/jpeg") == 3
    assert "There are no pictures" not in page


def test_the_folds_of_a_cross_validation_are_judged_as_one_run(tmp_path, exported, capsys):
    """Also its pictures: each is from the run that was judged on that image."""
    uris = []
    for fold, uri in enumerate(exported):
        uris.append(str(shutil.copytree(uri, tmp_path / f"fold-{fold}")))
        config = yaml.safe_load((tmp_path / f"fold-{fold}" / "config.yaml").read_text())
        config["data"]["split"] |= {"folds": 2, "fold": fold}
        config["train"]["seed"] = 0
        RunFolder(uris[-1]).write_text("config.yaml", yaml.safe_dump(config))
        evaluation = RunFolder(uris[-1]).read_json("evaluation.json")
        RunFolder(uris[-1]).write_json("evaluation.json", {**evaluation, "seed": 0})
        said = read_run(uri, "test").predictions
        write_predictions(
            str(tmp_path / f"fold-{fold}" / "predictions" / "test.parquet"), said.select(range(fold, len(said), 2))
        )
    assert run_verb(tmp_path, {"untrained": uris}, "--report_samples=4") == 0
    assert "test: 24 images of 12 groups" in capsys.readouterr().out
    result = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert result["groups"]["untrained"]["figures"]["accuracy"]["seeds"] == 1
    assert (tmp_path / "out" / "report.html").read_text().count("data:image/jpeg") == 4
    joined = join_folds([read_run(uri, "test") for uri in uris])
    keys = [sample["key"] for sample in result["worst"]]
    assert {key for run in joined[0].folds for key in keys if key in run.predictions.keys} == set(keys)
    assert run_verb(tmp_path, {"untrained": uris[:1], "b": [uris[1], exported[0]]}, "--overwrite=true") == 2
    assert "is no run of a cross-validation" in capsys.readouterr().err


@pytest.fixture(scope="module")
def distilled(tmp_path_factory):
    """A run folder of pretrain.py as method resolution leaves it: classes and the map of its teacher, nothing learned."""
    return _distilled(tmp_path_factory.mktemp("distilled") / "run", CLASSES)


CLASSES = ResponseSpec(name="label", kind=Kind.LOGITS, channels=2, stride_px=None, channel_names=("pink", "violet"))
AGREEMENT = {"value": 0.5, "low": 0.4, "high": 0.6, "tiles": 9, "groups": 2}


def _distilled(path, head, **more) -> str:
    torch.manual_seed(0)
    features = ResponseSpec(name="features", kind=Kind.FEATURES, channels=8, stride_px=8)
    config = StudentConfig(backbone="csat_nano", decoder_channels=8, downsample=2)
    folder = RunFolder(str(path))
    student = Student(config, (head, features))
    save_model(student.eval(), folder.path("exported"), {"mpp": None, "tile_px": 32, **more})
    run = {"slides": ["x"], "student": {"backbone": "csat_nano"}, "train": {"seed": 3, "precision": "float32"}}
    folder.write_text("config.yaml", yaml.safe_dump(run))
    folder.write_json("evaluation.json", {"student_vs_teacher.label.agreement": AGREEMENT})
    folder.set_status("finished")
    return folder.uri


@pytest.mark.ray
def test_a_distilled_classifier_is_judged_beside_fine_tuned_ones(ray_cluster, tmp_path, distilled, exported):
    other = make_folder(tmp_path / "another", num_groups=4, per_group=2, seed=3)
    argv = [_sets(other), "--split=all", "--data.memory_gb=0.05", "--report_samples=2", "--accept_leakage=true"]
    assert run_verb(tmp_path, {"tuned": exported[0], "distilled": distilled}, *argv) == 0
    groups = json.loads((tmp_path / "out" / "evaluation.json").read_text())["groups"]
    assert groups["distilled"]["figures"]["accuracy"]["samples"] == 16
    cost = groups["distilled"]["cost"]
    assert cost["input_px"] == 16 and min(cost["params"], cost["macs"], cost["images_per_s"]) > 0
    assert groups["distilled"]["fidelity"]["figures"] == {"label.agreement": AGREEMENT}
    assert [run["seed"] for run in groups["distilled"]["runs"]] == [3]


@pytest.mark.ray
def test_whatever_answers_is_judged_on_drawn_nuclei(ray_cluster, tmp_path):
    """A student straight from pretraining, a model's folder and a teacher, each at its own resolution."""
    runs = {
        "student": write_student(tmp_path / "student"),
        "coarse": f"{write_student(tmp_path / 'coarse', *NUCLEI, TYPES, mpp=1.0, seed=1)}/exported",
        "stain": {"teacher": "stain"},
    }
    sets = json.dumps({"own": make_nuclei(tmp_path / "set")})
    argv = [f"--data.sets={sets}", "--split=all", "--data.memory_gb=0.05", "--report_samples=2"]
    assert run_verb(tmp_path, runs, *argv) == 0
    result = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert (result["samples"], result["metric"], result["classes"]) == (3, "dice", [])
    student, coarse, stain = (result["groups"][name] for name in runs)
    for metric in ("dice", "pq", "aji"):
        assert all(group["figures"][metric]["low"] is not None for group in (student, coarse, stain))
    assert stain["figures"]["dice"]["value"] > 0.6 > student["figures"]["dice"]["value"]
    assert stain["against_first"]["dice"]["low"] > 0
    seen = {name: result["groups"][name]["runs"][0]["sees"] for name in runs}
    assert seen == {"student": "64 px at 0.5 um/px", "coarse": "64 px at 1 um/px", "stain": "256 px at 0.5 um/px"}
    assert stain["cost"]["params"] is None and stain["cost"]["images_per_s"] > 0
    assert (tmp_path / "out" / "report.html").read_text().count("data:image/jpeg") == 2


@pytest.mark.ray
def test_judged_on_other_images(ray_cluster, tmp_path, exported, images, capsys):
    other = make_folder(tmp_path / "another", num_groups=4, per_group=2, seed=3)
    argv = [_sets(other), "--split=all", "--data.memory_gb=0.05", "--report_samples=2"]
    assert run_verb(tmp_path, {"a": exported[0], "b": exported[1]}, *argv) == 0
    result = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert (result["samples"], result["units"], result["part"]) == (16, 8, "all")
    assert (tmp_path / "out" / "report.html").read_text().count("data:image/jpeg") == 2
    # The models were not trained for these images; for the ones that they have seen it would say so.
    capsys.readouterr()
    same_parts = ["--data.split.val_fraction=0.25", "--data.split.test_fraction=0.25"]
    seen = [_sets(images), *same_parts, "--split=test", "--overwrite=true"]
    assert run_verb(tmp_path, {"a": exported[0]}, *seen) == 2
    assert "has seen" in capsys.readouterr().err
    assert run_verb(tmp_path, {"a": exported[0]}, *seen, "--accept_leakage=true", "--data.memory_gb=0.05") == 0
    test = json.loads((tmp_path / "out" / "evaluation.json").read_text())["groups"]["a"]["figures"]["accuracy"]
    said = read_run(exported[0], "test").predictions
    hits = said.arrays["probs"].argmax(1) == said.arrays["label"]
    data = own_data(read_run(exported[0], None))
    keys = {sample.key for sample in check(_config(exported[0])).splits["test"]}
    assert test["samples"] == len(keys)
    assert test["value"] == pytest.approx(np.mean([hit for key, hit in zip(said.keys, hits, strict=True) if key in keys]))
    assert len(data.samples) > len(keys)


@pytest.mark.ray
def test_other_images_of_other_classes_are_refused(ray_cluster, tmp_path, exported, capsys):
    other = make_folder(tmp_path / "another", num_groups=4, per_group=1)
    (other / "violet").rename(other / "blue")
    argv = [_sets(other), "--split=all"]
    assert run_verb(tmp_path, {"a": exported[0]}, *argv) == 2
    message = capsys.readouterr().err
    assert "pink, violet" in message and "blue, pink" in message


def _sets(folder):
    return f"--data.sets={json.dumps(data_settings(str(folder))['data']['sets'])}"


def _config(uri):
    return read_config(read_run(uri, None).config)
