"""Fine-tuning on a real local Ray cluster: labelled images in, a judged model out."""

import contextlib
import json
import re
import shutil
import signal

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from csat.errors import NonFiniteLossError
from csat.evaluation.predictions import Predictions
from csat.labels.decoded import ARRAYS
from csat.model.files import load_exported
from csat.runs.checkpoints import Checkpoints
from csat.runs.recorder import read_metrics
from csat.settings import merge
from tests.stories.finetuning import SMALL, TILE_PX, write_recipe
from tests.support.labelled_folders import data_settings, fit_alone, make_folder, prepare
from tests.support.verbs import interrupt, wait_for
from workflows import finetune
from workflows.finetuning.config import read_config
from workflows.shell.decode_samples import Prepared

NUM_EPOCHS = 20  # of a run that is interrupted early


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
        evaluation = fit_alone(merge(SMALL, data, start, {"run_folder": str(tmp_path / "run")}))
        assert evaluation["model"]["from_run"] == str(folder)
        started = read_json(tmp_path / "run", "exported/config.json")["metadata"]["started_from"]
        assert started["run"] == str(folder) and started["task"] == "classification"


class TestOtherWays:
    """In one process, as a trial of a sweep trains; what Ray decodes for it is looked at below."""

    def fit(self, tmp_path, *settings):
        return fit_alone(merge(SMALL, {"run_folder": str(tmp_path / "run"), "data": {"tile_px": TILE_PX}}, *settings))

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

    def test_a_loss_that_is_not_finite_stops_the_run(self, images, tmp_path):
        """(A group's: tests/workflows/shell/test_group.py. A page's end: tests/workflows/shell/test_command_line.py.)"""
        frail = {"train": {"optim": {"lr": 1e30, "clip_grad_norm": None, "warmup": 0.0}}}
        with pytest.raises(NonFiniteLossError, match="not finite"):
            self.fit(tmp_path, data_settings(str(images)), frail)
        status = read_json(tmp_path / "run", "status.json")
        assert (status["state"], status["kind"]) == ("failed", "NonFiniteLossError") and "not finite" in status["error"]


@pytest.mark.ray
@pytest.mark.parametrize("task", ["segmentation", "nuclei"])
def test_masks_that_ray_decodes_are_those_of_the_files(ray_cluster, nuclei, binary, tmp_path, task):
    """(Images with labels alone: above.)"""
    sets = {"sets": {"mine": {"path": str(nuclei if task == "nuclei" else binary), "layout": "pairs"}}, "task": task}
    config = read_config(merge(SMALL, {"run_folder": str(tmp_path), "data": {"fit": "crop", "memory_gb": 0.05, **sets}}))
    prepared = prepare(config)
    decoded, read = prepared.source(), Prepared(prepared.data, config.data).source()
    assert prepared.tables and not prepared.unreadable
    for index in range(len(prepared.data.samples)):
        for name in ARRAYS:
            np.testing.assert_array_equal(getattr(decoded.get(index), name), getattr(read.get(index), name))
        assert getattr(decoded.get(index), "mask" if task == "segmentation" else "instances").any()


@pytest.mark.ray
def test_prepare_only_writes_who_is_where(ray_cluster, images, tmp_path, capsys):
    more = {"run_folder": str(tmp_path / "run"), "prepare_only": True}
    assert finetune.main(write_recipe(tmp_path, data_settings(str(images)), more)) == 0
    lines = (tmp_path / "run" / "samples.csv").read_text().splitlines()
    assert lines[0].startswith("image,part,sample,group") and len(lines) == 1 + 2 * 8 * 3
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.ray
def test_neighbours_only_says_what_the_layers_know(ray_cluster, images, tmp_path, capsys):
    more = {"run_folder": str(tmp_path / "run"), "neighbours_only": True}
    assert finetune.main(write_recipe(tmp_path, data_settings(str(images)), more)) == 0
    found = read_json(tmp_path / "run", "neighbours.json")
    assert list(found["layers"])[-1] == "features" and found["classes"] == ["pink", "violet"]
    printed = capsys.readouterr().out
    for layer in found["layers"].values():
        figure = layer["figures"]["balanced_accuracy"]
        assert 0 <= figure["low"] <= figure["value"] <= figure["high"] <= 1 and figure["groups"] == 4
        assert f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]" in printed
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.ray
@pytest.mark.thorough
def test_an_interrupted_run_resumes_and_ends_with_everything_trained_once(images, tmp_path, run_alone):
    """SIGTERM to the verb alone, of a set that does not fit into memory and is streamed.

    (Of one in memory: the interrupted sweep. SIGKILL to whatever trains under the same launcher: tests/failures/test_kill.py.)
    """
    data = {"memory_gb": 0.0, "sampling": "balanced"}
    more = {"run_folder": str(tmp_path / "run"), "train": {"epochs": NUM_EPOCHS}, "data": data}
    argv = write_recipe(tmp_path, data_settings(str(images)), more)
    first = run_alone(argv, tmp_path / "first", verb="finetune")
    wait_for(lambda: len(cursor(tmp_path / "run").done), first, tmp_path / "first")
    kept = interrupt(first, tmp_path / "first", signal.SIGTERM, to_group=False)
    done, trained = len(cursor(tmp_path / "run").done), read_metrics(str(tmp_path / "run"))[-1]
    assert 0 < done == trained["tiles"] < trained["tiles_total"]
    assert kept.startswith(f"{done:,} of {trained['tiles_total']:,} tiles")

    second = run_alone(argv, tmp_path / "second", verb="finetune")
    assert second.wait(timeout=280) == 0, (tmp_path / "second").read_text()[-2000:]
    resumed = re.search(r"resumed at step \d+ with (\d+) of", (tmp_path / "second").read_text(errors="replace"))
    assert int(resumed[1]) == done
    rows = read_json(tmp_path / "run", "accounting.json")["epochs"]
    assert len(rows) == NUM_EPOCHS and done < sum(row["manifest"] for row in rows)
    assert all(row["manifest"] == row["trained"] + row["quarantined"] for row in rows)
    steps = [line["step"] for line in read_metrics(str(tmp_path / "run"))]
    assert steps == sorted(set(steps))


def cursor(run):
    return Checkpoints(str(run / "checkpoints")).latest_cursor()
