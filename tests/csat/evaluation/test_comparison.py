import csv
import io
import json
from dataclasses import replace

import numpy as np
import pytest

from csat.errors import ConfigError, DatasetError
from csat.evaluation import comparison, scores
from csat.evaluation.judged_run import read_run
from csat.evaluation.predictions import LATER
from csat.evaluation.reports.comparison import write_comparison_report
from csat.runs.folder import RunFolder
from tests.support.made_up import classified, nuclei, pictures, segmented, write_run

FEW = {"num_bootstraps": 100}


def read(tmp_path, name, predictions, **more):
    write_run(tmp_path / name, {"test": predictions}, **more)
    return read_run(str(tmp_path / name), "test")


@pytest.fixture
def groups(tmp_path):
    return {
        "rckd": [read(tmp_path, f"rckd-{seed}", classified(seed, skill=2.5), seed=seed) for seed in range(2)],
        "scratch": [read(tmp_path, "scratch-0", classified(7), model="other", macs=400_000_000)],
    }


def compare(groups, metric="balanced_accuracy"):
    return comparison.compare_runs(groups, split="test", metric=metric, **FEW)


def test_all_there_is_to_say(groups):
    result = compare(groups)
    assert (result["task"], result["part"], result["samples"], result["units"]) == ("classification", "test", 60, 12)
    rckd, scratch = result["groups"]["rckd"], result["groups"]["scratch"]
    said = {name: [run.predictions for run in members] for name, members in groups.items()}
    assert rckd["figures"] == scores.evaluate(said["rckd"], **FEW)
    assert rckd["against_first"] is None
    assert scratch["against_first"] == scores.compare(said["scratch"], said["rckd"], **FEW)
    assert [run["seed"] for run in rckd["runs"]] == [0, 1]
    assert np.mean([run["balanced_accuracy"] for run in rckd["runs"]]) == pytest.approx(
        rckd["figures"]["balanced_accuracy"]["value"]
    )
    assert scratch["cost"] == {"params": 2_940_000, "macs": 400_000_000, "input_px": 224, "images_per_s": 25.7}
    assert np.sum(rckd["confusion"]) == 120
    assert rckd["fidelity"] is None
    json.dumps(result, allow_nan=False)


def test_the_rate_is_that_of_the_fastest_seed(groups):
    for run, rate in zip(groups["rckd"], (10.0, 30.0), strict=True):
        run.evaluation["cost"]["images_per_s"] = rate
    groups["scratch"][0].evaluation["cost"]["images_per_s"] = None
    found = compare(groups)["groups"]
    assert (found["rckd"]["cost"]["images_per_s"], found["scratch"]["cost"]["images_per_s"]) == (30.0, None)


def test_fidelity_comes_from_the_pretraining(tmp_path):
    run = read(tmp_path, "run", classified())
    pretraining = RunFolder(str(tmp_path / "pretraining"))
    figure = {"value": 0.93, "low": 0.9, "high": 0.95, "tiles": 9, "groups": 2}
    pretraining.write_json(
        "evaluation.json", {"student_vs_teacher.np.dice": figure, "student_vs_known.nuclei.dice": {**figure, "value": 0.5}}
    )
    pretraining.write_json("teacher.json", {"name": "stain"})
    run.evaluation["model"] = {"name": "csat", "init": "run", "from_run": pretraining.uri}
    assert compare({"a": [run]})["groups"]["a"]["fidelity"] == {"teacher": "stain", "figures": {"np.dice": figure}}
    run.evaluation["model"]["from_run"] = str(tmp_path / "gone")
    assert compare({"a": [run]})["groups"]["a"]["fidelity"] is None


# ---------------------------------------------------------------------------------------------------------- what is refused


def test_groups_that_cannot_be_one_table(tmp_path, groups):
    with pytest.raises(ConfigError, match="given twice: .*rckd-0"):
        compare({**groups, "again": groups["rckd"][:1]})
    with pytest.raises(ConfigError, match="learned something else.*segmentation of background, gland, not classification"):
        compare({**groups, "glands": [read(tmp_path, "glands", segmented())]})
    with pytest.raises(ConfigError, match="classification of a, b, c, not classification of benign"):
        compare({**groups, "abc": [read(tmp_path, "abc", classified(classes=("a", "b", "c")))]})
    with pytest.raises(ConfigError, match="'all' are different models.*csat of 2,940,000 parameters.*other of"):
        compare({"all": [*groups["rckd"], *groups["scratch"]]})


def test_other_samples_are_told_with_the_folders(tmp_path, groups):
    fewer = read(tmp_path, "fewer", classified().select(range(50)))
    with pytest.raises(DatasetError) as caught:
        compare({**groups, "fewer": [fewer]})
    for word in ("only run 1 has 10: images/050.png", f"1: {groups['rckd'][0].uri}", f"4: {fewer.uri}"):
        assert word in str(caught.value)


# ---------------------------------------------------------------------------------------------------------- worst samples


def test_worst_samples_weigh_every_group_alike(tmp_path):
    base = classified(num_samples=6)

    def run(name, losses):
        return read(tmp_path, name, replace(base, loss=np.array(losses, float)))

    groups = {"a": [run("a0", [1, 0, 0, 0, 3, 0]), run("a1", [1, 0, 0, 0, 1, 0])], "b": [run("b0", [4, 0, 0, 1, 0, 0])]}
    worst = comparison.worst_samples(groups, 2)
    assert [each["key"] for each in worst] == ["images/000.png", "images/004.png"]
    assert worst[0]["loss_by_group"] == {"a": 1.0, "b": 4.0}
    assert [each["loss"] for each in worst] == [2.5, 1.0]
    assert worst[0]["label"] == base.classes[base.arrays["label"][0]]
    assert comparison.worst_samples(groups, 0) == []


def test_what_the_runs_said(tmp_path):
    base = classified(num_samples=2)

    def run(name, said):
        return read(tmp_path, name, replace(base, arrays={**base.arrays, "probs": np.eye(3, dtype=np.float32)[said]}))

    groups = {"a": [run("a0", [2, 1]), run("a1", [0, 1]), run("a2", [2, 1])], "b": [run("b0", [0, 0])]}
    said = {each["key"]: each["said"] for each in comparison.worst_samples(groups, 2)}
    assert said["images/000.png"] == {"a": "squamous (2 of 3), benign (1 of 3)", "b": "benign"}
    assert said["images/001.png"] == {"a": "adenocarcinoma (3 of 3)", "b": "benign"}


def test_order_of_rows_does_not_matter(tmp_path):
    turned = {
        "a": [read(tmp_path, "turned", classified().select(range(59, -1, -1)))],
        "b": [read(tmp_path, "b", classified(1))],
    }
    straight = {"a": [read(tmp_path, "straight", classified())], "b": turned["b"]}
    assert comparison.worst_samples(turned, 5) == comparison.worst_samples(straight, 5)


@pytest.mark.parametrize(("make", "word"), [(segmented, "pixel_accuracy 0."), (nuclei, "dice 0.")])
def test_what_was_said_of_pixels_is_a_figure(tmp_path, make, word):
    worst = comparison.worst_samples({"a": [read(tmp_path, "a", make())]}, 1)
    assert worst[0]["said"]["a"].startswith(word)
    assert worst[0]["label"] is None


def test_runs_whose_types_are_spelt_in_two_ways_are_one_table(tmp_path):
    groups = {
        "ours": [read(tmp_path, "ours", nuclei(types=("other", "spindle")))],
        "theirs": [read(tmp_path, "theirs", nuclei(types=("miscellaneous", "spindle-shaped")))],
    }
    result = comparison.compare_runs(groups, split="test", metric="pq/spindle", num_bootstraps=10)
    ours, theirs = (result["groups"][name]["runs"][0]["pq/spindle"] for name in groups)
    assert ours == theirs == pytest.approx(result["groups"]["theirs"]["figures"]["pq/spindle"]["value"])


def test_a_metric_that_a_run_of_an_earlier_version_lacks(tmp_path):
    groups = {"new": [read(tmp_path, "new", nuclei())], "old": [read(tmp_path, "old", nuclei().without(LATER))]}
    with pytest.raises(ConfigError, match=r"'hovernet_fd': predictions.*data.sets, or choose one of: dice, aji"):
        comparison.compare_runs(groups, split="test", metric="hovernet_fd", num_bootstraps=10)


# ---------------------------------------------------------------------------------------------------------------- the table


def test_text_and_csv_say_the_same(groups):
    result = compare(groups)
    text = comparison.to_text(result)
    rows = list(csv.DictReader(io.StringIO(comparison.to_csv(result))))
    assert text.startswith("test: 60 images of 12 groups; with fewer than about 20 groups,")
    assert len(rows) == 2 * 6
    row = next(row for row in rows if row["name"] == "scratch" and row["metric"] == "balanced_accuracy")
    line = next(line for line in text.splitlines() if line.startswith("scratch"))
    expected = [f"{float(row['value']):.3f}", f"[{float(row['low']):.3f}, {float(row['high']):.3f}]", "-", row["seeds"]]
    expected += [f"{float(row['difference']):+.3f}", "2.940", "0.400", "25.7"]
    assert all(word in line for word in expected)
    assert next(row for row in rows if row["name"] == "rckd")["difference"] == ""


def test_a_report(tmp_path, groups):
    evil = "<script>alert(1)</script>"
    groups = {"rckd": groups["rckd"], evil: groups["scratch"]}
    groups[evil][0].evaluation["model"]["init"] = evil
    result = compare(groups)
    result["worst"] = comparison.worst_samples(groups, 3)
    shown = [{**each, "said": {"rckd": None}} for each in pictures(groups["rckd"][0].predictions, 60)]
    folder = RunFolder(str(tmp_path / "out"))
    write_comparison_report(folder, result, pictures=shown, why_no_pictures=None)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    for name in ("rckd", evil):
        figure = result["groups"][name]["figures"]["kappa"]
        assert f"{figure['low']:.3f} … {figure['high']:.3f}" in page
    assert page.count("data:image/png") == 1 + 1 + 2  # intervals, costs, a confusion matrix each
    assert page.count("data:image/jpeg") == 3
    assert all(each["key"] in page for each in result["worst"])
    write_comparison_report(folder, result, pictures=[], why_no_pictures=f"there is no {evil}")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "There are no pictures: there is no &lt;script&gt;" in page
    assert "data:image/jpeg" not in page
