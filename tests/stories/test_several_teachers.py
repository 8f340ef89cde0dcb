"""pretrain.py with two teachers: one that cannot answer every tile, at half the resolution; both are kept in a cache."""

import json
from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from csat.prediction.opening import open_answers
from csat.runs.checkpoints import Checkpoints
from csat.runs.folder import RunFolder
from csat.runs.recorder import read_metrics
from csat.tasks import Task
from tests.failures.scripted import Picky, save_teacher
from tests.support.verbs import HELD_OUT, arguments
from workflows import pretrain

pytestmark = pytest.mark.ray

POOLS = {f"teachers__{name}__pool__cpus_per_actor": 0.25 for name in ("nuclei", "picky")}


def read_json(folder, name):
    return json.loads((folder / name).read_text())


@pytest.fixture(scope="module")
def run(ray_cluster, slides, tmp_path_factory):
    folder = tmp_path_factory.mktemp("several")
    picky = save_teacher(Picky(), folder / "picky.pt", tile_px=32)
    settings = dict(teachers__nuclei="stain", teachers__picky="torchscript", teachers__picky__weights=picky, **POOLS)
    settings |= dict(teachers__picky__shrink=2, teachers__picky__weight=0.5, teachers__picky__pool__batch_size=8)
    settings |= dict(train__epochs=2, workers__num_workers=2, cache__uri=folder / "cache", cache__keep="true")
    argv = arguments(slides, folder / "run", **HELD_OUT, **settings)
    assert pretrain.main(argv) == 0
    return folder / "run", argv, picky


def test_every_tile_is_trained_and_what_is_lacking_is_told_by_teacher(run):
    folder, *_ = run
    accounts = read_json(folder, "accounting.json")
    for row in accounts["epochs"]:
        assert row["manifest"] == row["trained"] > 0
    total = sum(row["trained"] for row in accounts["epochs"])
    assert Checkpoints(str(folder / "checkpoints")).latest_cursor().done.pairs() == [[0, total]]
    rows = pq.read_table(folder / "quarantine.parquet").to_pylist()
    places = Counter((row["slide"], row["x_px"], row["y_px"]) for row in rows)
    assert set(places.values()) == {2}, "once an epoch: the second reads from the cache that there is no answer"
    told = accounts["teachers"]
    assert told["picky"]["unanswered"] == len(rows) == sum(told["picky"]["reasons"].values())
    assert told["nuclei"] == {"answered": total, "unanswered": 0, "reasons": {}}
    assert 0.2 < len(rows) / total < 0.8
    lines = read_metrics(str(folder))
    assert {"loss/nuclei.np_bce", "loss/nuclei.hv_gradient", "loss/picky.np_bce"} <= lines[0].keys()
    halves = [np.mean([line["loss"] for line in lines if (line["epoch"] > 1) == is_second]) for is_second in (False, True)]
    assert halves[1] < 0.8 * halves[0]


def test_each_has_a_cache_of_its_own_and_is_asked_once(run):
    folder, *_ = run
    keys = [json.loads(path.read_text()) for path in (folder.parent / "cache").glob("*/key.json")]
    by_teacher = {key["teacher"]: key for key in keys}
    assert sorted(by_teacher) == ["picky", "stain"]
    assert [spec["name"] for spec in by_teacher["picky"]["responses"]] == ["np"], "by its own name and pixels"
    assert by_teacher["picky"]["shrink"] == 2 and "shrink" not in by_teacher["stain"]
    assert len(list((folder.parent / "cache").glob("*/complete.json"))) == 2
    stage = read_json(folder, "throughput.json")["stages"]["teacher"]
    assert stage["answered_share"] == pytest.approx(0.5) and set(stage["by_name"]) == {"nuclei", "picky"}


def test_all_teachers_are_in_the_files_of_the_student(run):
    folder, *_ = run
    teacher = read_json(folder, "teacher.json")
    hashes = {each["name"]: each["spec"]["weights_sha256"] for each in teacher["members"]}
    exported = read_json(folder, "exported/config.json")["metadata"]["teacher"]["teachers"]
    assert {name: each["weights_sha256"] for name, each in exported.items()} == hashes and len(set(hashes.values())) == 2
    report = (folder / "report.html").read_text()
    assert (
        "teacher: picky.np" in report and "student: nuclei.hv h" in report and all(each in report for each in hashes.values())
    )
    evaluation = read_json(folder, "evaluation.json")
    dice = {name: evaluation[f"student_vs_teacher.{name}.np.dice"] for name in ("nuclei", "picky")}
    assert dice["picky"]["tiles"] < dice["nuclei"]["tiles"], "where a teacher has no answer nothing is compared"
    answers = open_answers(str(folder))
    assert answers.task == Task.NUCLEI, "the heads of nuclei are those of nuclei, whatever the teacher is called"
    assert [spec.name for spec in answers.specs] == ["np", "hv", "picky.np"]


def test_it_resumes_with_other_pools_and_with_no_other_teacher(run, capsys):
    folder, argv, picky = run
    run_folder = RunFolder(str(folder))
    run_folder.set_status("running")  # as if it had been killed before its end
    assert pretrain.main([*argv, "--teachers.third=stain"]) == 2
    assert "holds a run of another configuration" in (said := capsys.readouterr().err) and "teachers.third" in said
    weights = picky.read_bytes()
    try:
        save_teacher(Picky(bias=-1e-6), picky, tile_px=32)
        assert pretrain.main(argv) == 2
        assert "another teacher" in (said := capsys.readouterr().err) and "picky, weights_sha256: was" in said
    finally:
        picky.write_bytes(weights)
    assert pretrain.main([*argv, "--teachers.picky.pool.batch_size=4", "--teachers.nuclei.pool.max_actors=1"]) == 0
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["teachers"]["picky"]["pool"]["batch_size"] == 4 and config["teacher"] is None
    assert read_json(folder, "status.json")["state"] == "finished"


@pytest.mark.thorough
def test_nuclei_are_kept_and_features_asked_for_in_every_epoch(ray_cluster, slides, tmp_path):
    """The teacher of features stands behind the other, whatever the order of the settings, and both are learned."""
    options = {"model": "resnet10t", "num_classes": 0, "random_weights": True, "mpp": 0.5, "precision": "float32"}
    settings = dict(teachers__features="timm", teachers__features__options=json.dumps(options), teachers__nuclei="stain")
    settings |= {f"teachers__{name}__pool__cpus_per_actor": 0.25 for name in ("features", "nuclei")}
    settings |= dict(train__epochs=3, cache__uri=tmp_path / "cache", cache__keep="true")
    assert pretrain.main(arguments(slides, tmp_path / "run", **settings)) == 0
    accounts = read_json(tmp_path / "run", "accounting.json")
    assert all(row["manifest"] == row["trained"] > 0 for row in accounts["epochs"])
    (key,) = [json.loads(path.read_text()) for path in (tmp_path / "cache").glob("*/key.json")]
    assert key["teacher"] == "stain" and len(list((tmp_path / "cache").glob("*/complete.json"))) == 1
    lines = read_metrics(str(tmp_path / "run"))
    assert {"loss/nuclei.np_bce", "loss/features.features_cosine"} <= lines[0].keys()
    thirds = [np.mean([line["loss/nuclei.hv_mse"] for line in lines if line["epoch"] > first]) for first in (0, 2)]
    assert thirds[1] < thirds[0]
