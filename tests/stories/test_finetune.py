"""Fine-tuning on a real local Ray cluster: labelled images in, a judged model out; and what must be refused first."""

import contextlib
import json
import re
import shutil
import signal

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image

from csat.evaluation.predictions import Predictions
from csat.export.folder import load_exported
from csat.labels.decoded import ARRAYS
from csat.runs.checkpoints import Checkpoints
from csat.runs.recorder import read_metrics
from tests.support.labelled_folders import data_settings, fit_alone, make_folder, prepare
from tests.support.verbs import interrupt, runs_alone, wait_for
from workflows import finetune
from workflows.finetuning.config import read_config
from workflows.shell.decode_samples import Prepared

SMALL = {
    "model": {"name": "csat_nano", "decoder_channels": 8},
    "train": {"epochs": 3, "batch_size": 8, "log_every_steps": 1, "checkpoint_every_steps": 2, "optim": {"lr": 0.005}},
    "workers": {"cpus_per_worker": 0.25},
    "readers": {"max_actors": 1},
    "num_bootstraps": 200,
    "report_samples": 2,
}
TILE_PX = 32


def merged(*settings):
    """Nested settings, later ones first."""
    together = {}
    for each in settings:
        for key, value in each.items():
            is_nested = isinstance(value, dict) and isinstance(together.get(key), dict)
            together[key] = merged(together[key], value) if is_nested else value
    return together


def write_recipe(folder, *settings):
    """Command line of a run: a recipe with these settings."""
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(merged(SMALL, {"data": {"tile_px": TILE_PX, "memory_gb": 0.05}}, *settings)))
    return ["--config", str(path)]


def read_json(folder, name):
    return json.loads((folder / name).read_text())


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Two classes of images in groups; one image is broken."""
    folder = make_folder(tmp_path_factory.mktemp("labelled") / "set", num_groups=8, per_group=3)
    (folder / "pink" / "pink1_0.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def nuclei(tmp_path_factory):
    """Images with masks that number their nuclei: dark discs on light ground."""
    folder = tmp_path_factory.mktemp("nuclei")
    for name in ("images", "masks"):
        (folder / name).mkdir()
    y, x = np.mgrid[:64, :64]
    for number in range(10):
        rng = np.random.default_rng(number)
        instances = np.zeros((64, 64), np.uint16)
        for nucleus, (row, column) in enumerate(rng.integers(6, 58, (6, 2)), 1):
            instances[(y - row) ** 2 + (x - column) ** 2 <= 20] = nucleus
        pixels = np.where(instances[..., None] > 0, (90, 60, 140), (230, 200, 220)) + rng.normal(0, 8, (64, 64, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / "images" / f"{number}.png")
        Image.fromarray(instances).save(folder / "masks" / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def binary(nuclei, tmp_path_factory):
    """The same images with masks of what is nucleus."""
    folder = tmp_path_factory.mktemp("binary")
    shutil.copytree(nuclei / "images", folder / "images")
    (folder / "masks").mkdir()
    for path in (nuclei / "masks").iterdir():
        Image.fromarray((np.array(Image.open(path)) > 0).astype(np.uint8)).save(folder / "masks" / path.name)
    return folder


# ------------------------------------------------------------------------------------------------------------ it works


@pytest.fixture(scope="module")
def finished(ray_cluster, images, tmp_path_factory):
    """A run on two DDP workers, decoded images in memory; its folder is named as a user does, from where the user is."""
    folder = tmp_path_factory.mktemp("finetune")
    more = {"run_folder": "runs/first", "workers": {"num_workers": 2}, "data": {"max_unreadable": 0.1}}
    argv = write_recipe(folder, data_settings(str(images)), more)
    with contextlib.chdir(folder):
        assert finetune.main(argv) == 0
    return folder / "runs" / "first", argv


@pytest.mark.ray
class TestClassification:
    def test_the_run_folder_is_complete(self, finished):
        folder, _ = finished
        for name in (
            "config.yaml",
            "data.json",
            "samples.csv",
            "pretrain.csv",
            "metrics.jsonl",
            "validation.jsonl",
            "report.html",
        ):
            assert (folder / name).stat().st_size > 0, name
        assert read_json(folder, "status.json")["state"] == "finished"
        assert [line["epoch"] for line in read_metrics(str(folder), "validation")] == [1, 2, 3]
        load_exported(str(folder / "exported"))
        assert read_json(folder, "exported/config.json")["metadata"]["started_from"] == "scratch"

    def test_it_learned_and_the_test_part_is_judged_by_group(self, finished):
        folder, _ = finished
        evaluation = read_json(folder, "evaluation.json")
        accuracy = evaluation["test"]["accuracy"]
        assert accuracy["low"] <= accuracy["value"] <= accuracy["high"] and accuracy["value"] > 0.6
        assert accuracy["groups"] * 3 == accuracy["samples"]
        said = Predictions.from_table(pq.read_table(folder / "predictions" / "test.parquet"))
        assert len(said) == accuracy["samples"] and set(said.classes) == {"pink", "violet"}

    def test_every_sample_is_accounted_for(self, finished):
        folder, _ = finished
        parts = read_json(folder, "data.json")["parts"]
        assert sum(part["samples"] for part in parts.values()) == 2 * 8 * 3
        assert [entry["sample"] for entry in read_json(folder, "data.json")["unreadable"]] == ["pink/pink1_0.png"]
        for row in read_json(folder, "accounting.json")["epochs"]:
            assert row["manifest"] == row["trained"] + row["quarantined"] + row["filtered"] == parts["train"]["samples"]

    def test_the_best_weights_are_the_exported_ones(self, finished):
        folder, _ = finished
        best = max(read_metrics(str(folder), "validation"), key=lambda line: line["metric"])
        assert read_json(folder, "evaluation.json")["val"]["balanced_accuracy"]["value"] == pytest.approx(best["metric"])

    def test_again_says_that_it_is_done(self, finished, capsys, monkeypatch):
        folder, argv = finished
        monkeypatch.chdir(folder.parents[1])
        assert finetune.main(argv) == 0
        assert "this run is finished" in capsys.readouterr().out

    def test_it_starts_another_run(self, finished, images, tmp_path):
        folder, _ = finished
        start = {"model": {"init": "run", "from_run": str(folder)}, "train": {"epochs": 1}}
        data = data_settings(str(images), tile_px=TILE_PX)
        # The set is small: one broken image of 48 is within max_unreadable.
        evaluation = fit_alone(merged(SMALL, data, start, {"run_folder": str(tmp_path / "run")}))
        assert evaluation["model"]["from_run"] == str(folder)
        started = read_json(tmp_path / "run", "exported/config.json")["metadata"]["started_from"]
        assert started["run"] == str(folder) and started["task"] == "classification"


class TestOtherWays:
    """In one process, as a trial of a sweep trains; what Ray decodes for it is looked at below."""

    def fit(self, tmp_path, *settings):
        return fit_alone(merged(SMALL, {"run_folder": str(tmp_path / "run"), "data": {"tile_px": TILE_PX}}, *settings))

    def test_segmentation_with_a_timm_backbone(self, binary, tmp_path):
        sets = {"sets": {"mine": {"path": str(binary), "layout": "pairs"}}, "task": "segmentation", "fit": "crop"}
        evaluation = self.fit(tmp_path, {"data": sets, "train": {"epochs": 12, "optim": {"ema_decay": None}}})
        seen = read_metrics(str(tmp_path / "run"), "validation")
        assert len(seen) == 12 and seen[-1]["loss"] < seen[0]["loss"]
        assert evaluation["metric"] == "miou" and 0 < evaluation["test"]["miou"]["value"] <= 1
        assert "Where it is most wrong" in (tmp_path / "run" / "report.html").read_text()

    @pytest.mark.parametrize("model", ["unet", "hovernet"])
    def test_nuclei_with_the_models_that_teach(self, nuclei, tmp_path, model):
        sets = {"sets": {"mine": {"path": str(nuclei), "layout": "pairs"}}, "task": "nuclei", "fit": "crop"}
        models = {
            "unet": {"name": "unet", "options": {"width": 4, "depth": 2}},
            "hovernet": {"name": "hovernet", "options": {"width": 0.05}},
        }
        tile = {"data": {"tile_px": 96}} if model == "hovernet" else {}
        short = {"train": {"epochs": 1 if model == "hovernet" else 3}}
        evaluation = self.fit(tmp_path, {"data": sets, "model": {"decoder_channels": 64, **models[model]}}, tile, short)
        assert evaluation["metric"] == "dice"
        assert {"aji", "pq", "dq", "sq", "detection_f1"} <= set(evaluation["test"])
        assert type(load_exported(str(tmp_path / "run" / "exported"))).__name__.lower().startswith(model)

    def test_patience_ends_a_run_early_and_the_accounts_say_so(self, images, tmp_path):
        stop = {"validation": {"patience": 1, "every_epochs": 0.5}, "train": {"epochs": 20, "optim": {"lr": 1e-7}}}
        evaluation = self.fit(tmp_path, data_settings(str(images)), stop)
        rows = read_json(tmp_path / "run", "accounting.json")["epochs"]
        assert len(rows) < 20 and rows[-1]["not_reached"] >= 0
        assert sum(row["trained"] + row["quarantined"] + row["not_reached"] for row in rows) == sum(
            row["manifest"] for row in rows
        )
        assert evaluation["best_metric"] is not None


@pytest.mark.ray
@pytest.mark.parametrize("task", ["segmentation", "nuclei"])
def test_masks_that_ray_decodes_are_those_of_the_files(ray_cluster, nuclei, binary, tmp_path, task):
    """(Images with labels alone: above.)"""
    sets = {"sets": {"mine": {"path": str(nuclei if task == "nuclei" else binary), "layout": "pairs"}}, "task": task}
    config = read_config(merged(SMALL, {"run_folder": str(tmp_path), "data": {"fit": "crop", "memory_gb": 0.05, **sets}}))
    prepared = prepare(config)
    decoded, read = prepared.source(), Prepared(prepared.data, config.data).source()
    assert prepared.tables and not prepared.unreadable
    for index in range(len(prepared.data.samples)):
        for name in ARRAYS:
            np.testing.assert_array_equal(getattr(decoded.get(index), name), getattr(read.get(index), name))
        assert getattr(decoded.get(index), "mask" if task == "segmentation" else "instances").any()


@pytest.mark.ray
@pytest.mark.thorough
def test_a_set_that_does_not_fit_into_memory_is_streamed(ray_cluster, images, tmp_path):
    more = {
        "run_folder": str(tmp_path / "run"),
        "train": {"epochs": 2},
        "data": {"memory_gb": 0.0, "sampling": "balanced"},
    }
    assert finetune.main(write_recipe(tmp_path, data_settings(str(images)), more)) == 0
    rows = read_json(tmp_path / "run", "accounting.json")["epochs"]
    assert len(rows) == 2
    assert all(row["trained"] + row["quarantined"] == row["manifest"] for row in rows)


@pytest.mark.ray
@pytest.mark.thorough
def test_a_loss_that_is_not_finite_stops_the_run(ray_cluster, images, tmp_path, capsys):
    more = {"run_folder": str(tmp_path / "run"), "train": {"optim": {"lr": 1e30, "clip_grad_norm": None, "warmup": 0.0}}}
    assert finetune.main(write_recipe(tmp_path, data_settings(str(images)), more)) == 1
    assert "not finite" in capsys.readouterr().err
    assert read_json(tmp_path / "run", "status.json")["state"] == "failed"


@pytest.fixture(scope="module")
def killed(images, tmp_path_factory):
    """A run of 40 epochs that was killed once it had committed something."""
    folder = tmp_path_factory.mktemp("killed")
    argv = write_recipe(folder, data_settings(str(images)), {"run_folder": str(folder / "run"), "train": {"epochs": 40}})
    with runs_alone() as start:
        first = start(argv, folder / "first", verb="finetune")
        wait_for(lambda: len(cursor(folder / "run").done), first, folder / "first")
    return folder, argv


@pytest.fixture(scope="module")
def interrupted(killed):
    """The same, given again and interrupted; what it said it keeps."""
    folder, argv = killed
    log = folder / "second"
    with runs_alone() as start:
        second = start(argv, log, verb="finetune")
        # Workers that outlive their driver may commit once more: what the second command commits is told by its own log.
        wait_for(lambda: " committed: " in log.read_text(errors="replace"), second, log)
        kept = interrupt(second, log, signal.SIGTERM, to_group=False)
    return folder, argv, kept


@pytest.mark.ray
@pytest.mark.thorough
class TestKilledAndInterrupted:
    def test_it_resumes_and_keeps_what_it_has_trained(self, interrupted):
        folder, _, kept = interrupted
        resumed = re.search(r"resumed at step \d+ with (\d+) of", (folder / "second").read_text(errors="replace"))
        done, trained = len(cursor(folder / "run").done), read_metrics(str(folder / "run"))[-1]
        assert 0 < int(resumed[1]) < done == trained["tiles"] < trained["tiles_total"]
        assert kept.startswith(f"{done:,} of {trained['tiles_total']:,} tiles")

    def test_it_ends_with_everything_trained_once(self, interrupted, run_alone):
        folder, argv, _ = interrupted
        done = len(cursor(folder / "run").done)
        third = run_alone(argv, folder / "third", verb="finetune")
        assert third.wait(timeout=280) == 0, (folder / "third").read_text()[-2000:]
        rows = read_json(folder / "run", "accounting.json")["epochs"]
        assert len(rows) == 40 and done < sum(row["manifest"] for row in rows)
        assert all(row["manifest"] == row["trained"] + row["quarantined"] for row in rows)
        steps = [line["step"] for line in read_metrics(str(folder / "run"))]
        assert steps == sorted(set(steps))


def cursor(run):
    return Checkpoints(str(run / "checkpoints")).latest_cursor()


# ------------------------------------------------------------------------------------------------------ it refuses


def refuse(tmp_path, capsys, *settings) -> str:
    """The message of a run that must not start."""
    more = {"run_folder": str(tmp_path / "run")}
    assert finetune.main(write_recipe(tmp_path, more, *settings)) == 2
    assert not (tmp_path / "run" / "checkpoints").exists()
    return capsys.readouterr().err


def table(tmp_path, *rows) -> dict:
    """Settings of a csv with path, label, group and split."""
    for row in rows:
        path = tmp_path / row[0]
        if not path.exists():
            Image.fromarray(np.full((40, 40, 3), 200, np.uint8)).save(path)
    lines = ["path,label,group,split", *(",".join(row) for row in rows)]
    (tmp_path / "set.csv").write_text("\n".join(lines) + "\n")
    return {"data": {"sets": {"mine": {"path": str(tmp_path / "set.csv"), "layout": "manifest"}}}}


GOOD = [(f"{label}{i}.png", label, f"{label}{i}", split) for label in "ab" for i, split in enumerate(("train", "val", "test"))]


def test_a_class_that_is_not_known(tmp_path, capsys):
    settings = table(tmp_path, *GOOD, ("c.png", "c", "c", "train"))
    settings["data"]["sets"]["mine"]["options"] = {"classes": ["a", "b"]}
    message = refuse(tmp_path, capsys, settings)
    assert "'c'" in message and "a, b" in message


def test_a_class_without_samples_in_a_part(tmp_path, capsys):
    message = refuse(tmp_path, capsys, table(tmp_path, *GOOD[:4], GOOD[5]))
    assert "no sample of class b in val" in message


def test_a_group_in_two_parts(tmp_path, capsys):
    message = refuse(tmp_path, capsys, table(tmp_path, *GOOD, ("d.png", "a", "a0", "test")))
    assert "in both train and test" in message and "a0" in message


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model": {"name": "cast"}}, ["cast", "csat"]),
        ({"model": {"name": "hovernet", "options": {}}}, ["hovernet finds nuclei"]),
        ({"model": {"init": "run"}}, ["from_run"]),
        ({"model": {"init": "run", "from_run": "/nowhere/at/all"}}, ["/nowhere/at/all"]),
        ({"metric": "acuracy"}, ["acuracy", "balanced_accuracy"]),
        ({"method": {"name": "rckd"}}, ["rckd is a method of pretrain.py"]),
        ({"method": {"options": {"class_weights": "heavy"}}}, ["none or balanced", "heavy"]),
        ({"data": {"sampling": "balanced"}, "method": {"options": {"class_weights": "balanced"}}}, ["choose one of the two"]),
        ({"train": {"batch_size": 7}, "workers": {"num_workers": 2}}, ["7 does not divide"]),
        ({"data": {"sets": {"glass": "somewhere"}}}, ["glass", "glas"]),
        ({"data": {"mpp": 0.5}}, ["0.5", "resolution"]),
        ({"data": {"tile_px": 8}}, ["at least 16"]),
        ({"test_time_views": 4}, ["1 or 8"]),
        ({"trian": {}}, ["trian", "train"]),
    ],
    ids=lambda value: str(value)[:40],
)
def test_settings_that_cannot_work(tmp_path, capsys, settings, words):
    message = refuse(tmp_path, capsys, table(tmp_path, *GOOD), settings)
    for word in words:
        assert word in message


def test_an_initial_run_of_another_backbone(tmp_path, capsys, toy_student):
    message = refuse(
        tmp_path, capsys, table(tmp_path, *GOOD), {"model": {"name": "resnet18", "init": "run", "from_run": str(toy_student)}}
    )
    assert "csat_nano" in message and "resnet18" in message


@pytest.fixture
def toy_student(tmp_path):
    """An exported student."""
    from csat.model.files import save_model
    from csat.model.student import Student, StudentConfig
    from csat.responses import Kind, ResponseSpec

    with torch.random.fork_rng():
        spec = ResponseSpec(name="np", kind=Kind.PROBABILITY, channels=1)
        save_model(Student(StudentConfig(backbone="csat_nano", decoder_channels=8), [spec]), str(tmp_path / "student"), {})
    return tmp_path / "student"


@pytest.mark.ray
class TestRefusedWhenDecoded:
    def test_a_mask_of_another_size(self, ray_cluster, tmp_path, capsys):
        for name in ("images", "masks"):
            (tmp_path / "set" / name).mkdir(parents=True)
        for number in range(6):
            Image.fromarray(np.full((40, 40, 3), 200, np.uint8)).save(tmp_path / "set" / "images" / f"{number}.png")
            edge = 30 if number == 3 else 40
            Image.fromarray(np.zeros((edge, edge), np.uint8)).save(tmp_path / "set" / "masks" / f"{number}.png")
        settings = {"data": {"sets": {"mine": {"path": str(tmp_path / "set"), "layout": "pairs"}}}}
        message = refuse(tmp_path, capsys, settings)
        assert "3.png" in message and "40 x 40" in message and "30 x 30" in message

    def test_too_many_broken_images(self, ray_cluster, tmp_path, capsys):
        folder = make_folder(tmp_path / "set", num_groups=4, per_group=1)
        for name in ("pink0_0", "pink1_0"):
            (folder / "pink" / f"{name}.png").write_bytes(b"no image")
        message = refuse(tmp_path, capsys, data_settings(str(folder)))
        assert "2 of 8 samples cannot be read" in message and "pink0_0" in message and "max_unreadable" in message

    def test_prepare_only_writes_who_is_where(self, ray_cluster, images, tmp_path, capsys):
        more = {"run_folder": str(tmp_path / "run"), "prepare_only": True}
        assert finetune.main(write_recipe(tmp_path, data_settings(str(images)), more)) == 0
        lines = (tmp_path / "run" / "samples.csv").read_text().splitlines()
        assert lines[0].startswith("image,part,sample,group") and len(lines) == 1 + 2 * 8 * 3
        assert not (tmp_path / "run" / "checkpoints").exists()
