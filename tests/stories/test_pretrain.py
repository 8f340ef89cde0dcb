"""The main job on a real local Ray cluster: slides in, student and evidence out."""

import json
import logging
import shutil
import signal

import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
import yaml
from safetensors.torch import load_file

from csat.model.files import load_exported, save_model
from csat.model.registry import ModelConfig, build_model
from csat.runs.checkpoints import Checkpoints
from csat.runs.recorder import read_metrics
from csat.tasks import DatasetInfo, Task
from csat.tiles.grid import TilingConfig
from csat.tiles.manifest import read_manifest
from csat.tiles.sources import list_slides
from csat.tiles.tiling import tile_slide
from teachers.contract import sha256_of
from tests.csat.tiles.manifests import read
from tests.support.odd_inputs import MISFIT, MPP, TILE_PX, TILES, make_odd_inputs
from tests.support.processes import ProcessWatch
from tests.support.verbs import HELD_OUT, arguments, interrupt, wait_for
from workflows import pretrain

pytestmark = pytest.mark.ray

LIGHT_ROLES = ("PlannedReader", "SplitCoordinator")  # by the titles that Ray gives their processes
ROLES = (*LIGHT_ROLES, "RayTrainWorker")
LIGHT_BYTES = 265e6  # 248 MB seen, 200 of them Ray's own actors, whose Ray Data loads pandas; torch alone would add 500


def read_json(folder, name):
    return json.loads((folder / name).read_text())


def check_accounts(folder, num_epochs):
    """manifest = trained + quarantined + filtered in every epoch, and every position done exactly once."""
    accounts = read_json(folder, "accounting.json")
    assert [row["epoch"] for row in accounts["epochs"]] == list(range(num_epochs))
    for row in accounts["epochs"]:
        assert row["manifest"] == row["trained"] + row["quarantined"] + row["filtered"] > 0
    cursor = Checkpoints(str(folder / "checkpoints")).latest_cursor()
    assert cursor.done.pairs() == [[0, num_epochs * accounts["epochs"][0]["manifest"]]]
    return accounts


@pytest.fixture(scope="module")
def mixed_slides(slides, tmp_path_factory):
    """A folder with two good slides among odd ones and bad ones: truncated, empty, not a slide at all."""
    folder = make_odd_inputs(tmp_path_factory.mktemp("mixed"))
    for slide in slides:
        shutil.copy(slide, folder)
        shutil.copy(slide.with_name(slide.stem + ".nuclei.png"), folder)
    data = slides[0].read_bytes()
    (folder / "cut.svs").write_bytes(data[: len(data) // 3])
    (folder / "text.svs").write_text("this is no slide")
    return folder


@pytest.fixture(scope="module")
def watch():
    """What is seen of the processes of the run `finished`."""
    return ProcessWatch(*ROLES)


@pytest.fixture(scope="module")
def finished(ray_cluster, mixed_slides, tmp_path_factory, watch):
    """One run on two DDP workers over two epochs, bad slides among the good."""
    folder = tmp_path_factory.mktemp("run") / "run"
    argv = arguments([mixed_slides], folder, train__epochs=2, workers__num_workers=2, data__source_mpp=MPP, **HELD_OUT)
    with watch:
        assert pretrain.main(argv) == 0
    return folder, argv


@pytest.mark.parametrize("role", LIGHT_ROLES)
def test_who_computes_nothing_loads_no_torch_and_stays_small(finished, watch, role):
    assert watch.resident[role], f"no process was a {role}"
    assert not [name for name in watch.libraries[role] if name.startswith("libtorch")]
    assert watch.resident[role] < LIGHT_BYTES


def test_the_watch_sees_who_does_load_torch(finished, watch):
    assert any(name.startswith("libtorch") for name in watch.libraries["RayTrainWorker"])


def test_the_run_folder_is_complete(finished):
    folder, _ = finished
    check_accounts(folder, num_epochs=2)
    for name in ("config.yaml", "teacher.json", "metrics.jsonl", "report.html", "manifest/index.json", "exported/config.json"):
        assert (folder / name).stat().st_size > 0, name
    assert list((folder / "tensorboard").glob("events.*"))
    assert read_json(folder, "status.json")["state"] == "finished"
    teacher = read_json(folder, "teacher.json")
    assert teacher["name"] == "stain"
    assert len(teacher["weights_sha256"]) == 64


def test_every_file_and_tile_is_in_the_manifest_or_in_the_quarantine(finished, mixed_slides, slides):
    """What a folder holds besides is counted when it is listed: see tests/csat/tiles/test_odd_inputs.py."""
    folder, _ = finished
    rows = {row["slide"].rsplit("/", 1)[-1]: row for row in pq.read_table(folder / "quarantine.parquet").to_pylist()}
    bad = {"cut.svs", "text.svs", *(name for name, count in TILES.items() if not count)}
    assert MISFIT in rows.pop("two.parquet")["message"]
    assert set(rows) == bad and {row["reason"] for row in rows.values()} == {"unreadable"}
    given = len(TILES) + len(slides) + 2
    index = read_json(folder, "manifest/index.json")
    assert index["slides"] == {"given": given, "tiled": given - len(bad), "quarantined": len(bad)}
    tiling = TilingConfig(mpp=MPP, tile_px=TILE_PX, source_mpp=MPP)
    painted = sum(tile_slide(row, tiling).num_rows for row in list_slides(list(map(str, slides))))
    assert index["rows_quarantined"] == 1 and set(index["resolutions"]["sources"]) == {"stated", "source_mpp"}
    held_out = index["holdout"]
    not_trained = held_out["num_tiles"] + held_out["not_kept"] + held_out["on_the_border"]
    assert index["num_tiles"] + not_trained == sum(TILES.values()) + painted
    manifest = read_manifest(str(folder / "manifest"))
    tiled = {row["slide"].rsplit("/", 1)[-1] for row in read(manifest) + read(manifest.holdout())}
    assert tiled == {name for name, count in TILES.items() if count} | {slide.name for slide in slides}


def test_the_student_learned_something(finished):
    folder, _ = finished
    lines = read_metrics(str(folder))
    second_epoch = [line["loss"] for line in lines if line["epoch"] > 1]  # the last line alone may be of two tiles
    assert sum(second_epoch) / len(second_epoch) < 0.8 * lines[0]["loss"]
    evaluation = read_json(folder, "evaluation.json")
    faithful = evaluation["student_vs_teacher.np.dice"]
    assert faithful["low"] <= faithful["value"] <= faithful["high"]
    assert 0.6 < evaluation["teacher_vs_known.nuclei.dice"]["value"] < 1


def test_the_throughput_is_measured(finished):
    folder, _ = finished
    throughput = read_json(folder, "throughput.json")
    total = sum(row["manifest"] for row in read_json(folder, "accounting.json")["epochs"])
    assert throughput["tiles"] == total
    assert 0 < throughput["trainer_waiting_share"] < 1
    assert throughput["spilled_bytes"] == 0
    assert 0 < throughput["object_store_peak_bytes"] < 300 * 2**20
    assert all(rate > 0 for stage in throughput["stages"].values() for name, rate in stage.items() if "tiles_per_s" in name)


def test_the_exported_student_loads(finished):
    folder, _ = finished
    student = load_exported(str(folder / "exported"))
    assert {spec.name for spec in student.responses} == {"np", "hv"}
    backbone = timm.create_model("csat_nano", num_classes=0)
    backbone.load_state_dict(load_file(folder / "exported" / "model.safetensors"), strict=True)
    assert read_json(folder, "exported/config.json")["metadata"]["teacher"]["name"] == "stain"


def test_a_finished_run_says_so(finished, capsys):
    _, argv = finished
    assert pretrain.main(argv) == 0
    assert "this run is finished: nothing to do" in capsys.readouterr().out


def test_another_configuration_is_refused(finished, capsys):
    _, argv = finished
    assert pretrain.main([*argv, "--train.seed=7"]) == 2
    assert "train.seed: was 0, is 7" in capsys.readouterr().err


def test_the_report_has_its_pictures(finished):
    folder, _ = finished
    page = (folder / "report.html").read_text()
    assert "teacher_vs_known.nuclei.dice" in page.replace("<wbr>", "")
    assert page.count("data:image/png;base64,") == 1, "the curves"
    assert page.count("data:image/jpeg;base64,") == 3 * 8, "tiles, what is known, and twice np and both parts of hv"


@pytest.mark.thorough
def test_a_fine_tuned_run_is_a_teacher(ray_cluster, slides, tmp_path, monkeypatch, caplog):
    """`--teacher FOLDER`, relative: the record says which model that was, and by another name it is the same run.

    Of one slide, with nothing said of what to hold out: blocks of it are.
    """
    info = DatasetInfo(
        name="x", task=Task.NUCLEI, classes=("a",), mpp=0.5, licence="CC BY 4.0", source="our ward", group="image"
    )
    model = build_model(ModelConfig(name="unet", options={"width": 4, "depth": 2}), info, load_exported)
    save_model(model, str(tmp_path / "teacher" / "exported"), {"task": "nuclei", "mpp": 0.5, "licence": "CC BY 4.0"})
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.INFO)
    one = dict(HELD_OUT, slides=slides[:1], manifest__holdout_by=None)
    assert pretrain.main(arguments(run_folder="run", teacher__name="teacher", **one)) == 0
    held_out = read_json(tmp_path / "run", "manifest/index.json")["holdout"]
    assert f"{held_out['num_tiles']} tiles, in blocks of the slides, are held out" in caplog.text
    assert held_out["num_tiles"] > 0 and read_json(tmp_path / "run", "evaluation.json")
    teacher = read_json(tmp_path / "run", "teacher.json")
    assert teacher["weights_sha256"] == sha256_of(tmp_path / "teacher" / "exported" / "model.safetensors")
    assert teacher["licence"] == "CC BY 4.0" and [each["name"] for each in teacher["responses"]] == ["np", "hv", "tp"]
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["teacher"]["name"] == "run" and config["teacher"]["weights"] == str(tmp_path / "teacher")
    student = load_exported(str(tmp_path / "run" / "exported"))
    assert {spec.name for spec in student.responses} == {"np", "hv", "tp"}
    metadata = read_json(tmp_path / "run", "exported/config.json")["metadata"]
    assert metadata["teacher"]["weights_sha256"] == teacher["weights_sha256"]
    assert (config["manifest"]["holdout_by"], config["manifest"]["holdout_fraction"]) == ("tile", 0.15)
    again = arguments(run_folder=tmp_path / "run", teacher__name="run", teacher__weights=tmp_path / "teacher" / ".", **one)
    assert pretrain.main(again) == 0


@pytest.mark.thorough
def test_an_interrupted_run_resumes_where_it_was(slides, tmp_path, run_alone, ray_cluster):
    """Ctrl-C in mid-epoch; the same command with other workers ends exactly. (Kills are in tests/failures.)"""
    folder, log = tmp_path / "run", tmp_path / "log"
    settings = dict(train__epochs=6, train__checkpoint_every_s=None, train__log_every_steps=1)
    first = run_alone(arguments(slides, folder, **settings), log)
    wait_for(lambda: read_metrics(str(folder)), first, log)
    kept = interrupt(first, log, signal.SIGINT, to_group=True)
    interrupted = Checkpoints(str(folder / "checkpoints")).latest_cursor()
    total = 6 * read_json(folder, "manifest/index.json")["num_tiles"]
    assert 0 < len(interrupted.done) < total and len(interrupted.done) == read_metrics(str(folder))[-1]["tiles"]
    assert kept == f"{len(interrupted.done):,} of {total:,} tiles, in the checkpoint of step {interrupted.step}"
    assert read_json(folder, "status.json")["state"] == "interrupted"

    assert pretrain.main(arguments(slides, folder, workers__num_workers=2, **settings)) == 0
    check_accounts(folder, num_epochs=6)
    steps = [line["step"] for line in read_metrics(str(folder))]
    assert steps == list(range(1, len(steps) + 1)), "no step was lost, and none is doubled"
    assert np.all(np.diff([line["tiles"] for line in read_metrics(str(folder))]) > 0)
