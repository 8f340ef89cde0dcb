"""Bad input: a clear message and exit code 2, before anything costly starts and with nothing lost."""

import os

import numpy as np
import pytest
import tifffile
import torch

from csat.model.files import load_exported, save_model
from csat.model.networks.hovernet import HoVerNet
from csat.model.registry import ModelConfig, build_model
from csat.model.student import Student, StudentConfig
from csat.responses import Kind, ResponseSpec
from csat.tasks import DatasetInfo, Task
from tests.support.verbs import arguments
from workflows import pretrain


def refuse(capsys, slides, run_folder, **settings) -> str:
    """The message of a run that must not start."""
    assert pretrain.main(arguments(slides, run_folder, **settings)) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("slides", "words"),
    [
        (["{tmp}/nothing/*.svs"], ["nothing/*.svs"]),
        (["{tmp}"], ["no slides", "{tmp}"]),
        (["s4://bucket/a.svs"], ["s4", "s3://"]),
        (["{tmp}/absent.svs"], ["absent.svs"]),
    ],
    ids=["empty glob", "empty folder", "unknown scheme", "no such file"],
)
def test_slides_that_are_not_there(tmp_path, capsys, slides, words):
    (tmp_path / "slides").mkdir()
    message = refuse(capsys, [slide.format(tmp=tmp_path / "slides") for slide in slides], tmp_path / "run")
    for word in words:
        assert word.format(tmp=tmp_path / "slides").lower() in message.lower()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"teacher__name": "hovrnet"}, ["no teacher 'hovrnet'", "hovernet"]),
        ({"teacher__name": "hovernet"}, ["needs weights", "--teacher.weights"]),
        ({"teacher__options": '{"sharpness": 1}'}, ["no setting 'sharpness'"]),
        ({"method__name": "rkcd"}, ["no method 'rkcd'"]),
        ({"method__options": '{"weights": {"tp_kl": 1}}'}, ["tp_kl", "np_bce"]),
        ({"method__options": '{"responses": ["tp"]}'}, ["rckd", "tp", "stain"]),
        ({"student__backbone": "cast"}, ["cast", "csat"]),
        ({"data__tile_px": 63}, ["63 px", "--data.tile_px"]),
        ({"train__batch_size": 15, "workers__num_workers": 2}, ["15 does not divide", "16"]),
        ({"pool__min_actors": 4}, ["pool.min_actors 4", "pool.max_actors 2"]),
        ({"train__precision": "float16"}, ["float32 or bfloat16"]),
        ({"data__mpp": -1}, ["mpp"]),
        ({"ray__adress": "auto"}, ["no setting 'ray.adress'", "ray.address"]),
    ],
    ids=lambda value: str(value)[:40],
)
def test_settings_that_cannot_work(tmp_path, slides, capsys, settings, words):
    message = refuse(capsys, slides, tmp_path / "run", **settings)
    for word in words:
        assert word in message
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_checkpoint_for_another_teacher(tmp_path, slides, capsys):
    weights = tmp_path / "original.pth"
    torch.save({"desc": HoVerNet(mode="original", num_types=5, width=0.125).state_dict()}, weights)
    settings = dict(teacher__name="hovernet", teacher__weights=weights, data__mpp=0.25, data__tile_px=256)
    message = refuse(capsys, slides, tmp_path / "run", teacher__options='{"mode": "fast", "width": 0.125}', **settings)
    assert "original" in message
    assert "mode" in message


def test_a_teacher_of_another_resolution(tmp_path, slides, capsys):
    options = '{"mode": "fast", "random_weights": true, "width": 0.125}'
    settings = dict(teacher__name="hovernet", teacher__options=options, data__tile_px=256)
    assert "--data.mpp 0.25" in refuse(capsys, slides, tmp_path / "run", **settings)


class TestATrainedTeacher:
    """`--teacher FOLDER`: a run of finetune.py, or something that looks like one."""

    @pytest.fixture
    def run(self, tmp_path):
        info = DatasetInfo(name="x", task=Task.NUCLEI, classes=(), mpp=0.25, licence="CC0", source="us", group="image")
        model = build_model(ModelConfig(name="unet", options={"width": 4, "depth": 2}), info, load_exported)
        save_model(model, str(tmp_path / "teacher" / "exported"), {"task": "nuclei", "mpp": 0.25, "tile_px": 64})
        return tmp_path / "teacher"

    def test_of_another_resolution(self, tmp_path, slides, capsys, run):
        assert "--data.mpp 0.25" in refuse(capsys, slides, tmp_path / "run", teacher__name=run)

    def test_of_another_tile_size(self, tmp_path, slides, capsys, run):
        message = refuse(capsys, slides, tmp_path / "run", teacher__name=run, data__mpp=0.25, data__tile_px=62)
        assert "does not take tiles of 62 px" in message and "60, 64" in message

    def test_with_an_option_that_it_does_not_have(self, tmp_path, slides, capsys, run):
        settings = {"teacher__name": run, "data__mpp": 0.25, "teacher__options": '{"mode": "fast"}'}
        assert "no setting 'mode'" in refuse(capsys, slides, tmp_path / "run", **settings)

    def test_that_has_not_finished(self, tmp_path, slides, capsys, run):
        (run / "exported" / "config.json").unlink()
        (run / "config.yaml").write_text("")
        assert "let it finish" in refuse(capsys, slides, tmp_path / "run", teacher__name=run)

    def test_that_is_a_folder_of_something_else(self, tmp_path, slides, capsys):
        message = refuse(capsys, slides, tmp_path / "run", teacher__name=slides[0].parent)
        assert "neither a run folder nor an exported model" in message and slides[0].name in message

    def test_that_is_a_student(self, tmp_path, slides, capsys):
        head = ResponseSpec(name="np", kind=Kind.PROBABILITY, channels=1)
        student = Student(StudentConfig(backbone="csat_nano", decoder_channels=8), [head])
        save_model(student, str(tmp_path / "rckd" / "exported"), {"teacher": {"name": "stain"}})
        message = refuse(capsys, slides, tmp_path / "run", teacher__name=tmp_path / "rckd")
        assert "imitates the teacher 'stain'" in message


def test_an_unwritable_run_folder(tmp_path, slides, capsys):
    (tmp_path / "file").write_text("in the way")
    assert "file" in refuse(capsys, slides, tmp_path / "file" / "run")


def test_a_recipe_with_an_unknown_key(tmp_path, slides, capsys):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("train: {epoch: 3}")
    assert pretrain.main(["--config", str(recipe), *arguments(slides, tmp_path / "run")]) == 2
    assert "no setting 'train.epoch'. Did you mean train.epochs" in capsys.readouterr().err


@pytest.mark.ray
class TestWithACluster:
    """What can only be judged once the cluster is known."""

    pytestmark = pytest.mark.usefixtures("ray_cluster")

    def test_more_cpus_than_the_cluster_has(self, tmp_path, slides, capsys):
        message = refuse(capsys, slides, tmp_path / "run", workers__num_workers=4, workers__cpus_per_worker=2)
        assert "needs 8.5 CPUs" in message
        assert "the cluster has 4" in message
        assert "--workers.num_workers" in message

    def test_gpus_that_are_not_there(self, tmp_path, slides, capsys):
        message = refuse(capsys, slides, tmp_path / "run", pool__gpus_per_actor=1)
        assert "needs 1 GPUs" in message
        assert "--pool.gpus_per_actor" in message

    def test_a_stream_without_room(self, tmp_path, slides, capsys):
        message = refuse(capsys, slides, tmp_path / "run", ray__stream_gb=0.001)
        assert "too little to keep the stream moving" in message
        assert "--ray.stream_gb 0.1" in message

    def test_a_response_cache_over_its_budget(self, tmp_path, slides, capsys):
        message = refuse(capsys, slides, tmp_path / "run", cache__uri=tmp_path / "cache", cache__budget_gb=1e-6)
        assert "tiles may take" in message and "--cache.budget_gb 1e-06" in message
        assert not (tmp_path / "cache").exists()

    def test_slides_without_resolution(self, tmp_path, capsys):
        slide = tmp_path / "no_mpp.tif"
        pixels = np.random.default_rng(0).integers(0, 255, (512, 512, 3), dtype=np.uint8)
        tifffile.imwrite(slide, pixels, tile=(256, 256), photometric="rgb")
        message = refuse(capsys, [slide], tmp_path / "run")
        assert "no slide gave a tile" in message
        assert "no_mpp.tif" in message
        assert "--data.source_mpp" in message
        # Doing what the message says is enough: the run never began, so its folder is not in the way.
        message = refuse(
            capsys, [slide], tmp_path / "run", data__source_mpp=0.5, workers__num_workers=99, train__batch_size=99
        )
        assert "the cluster has 4" in message

    def test_slides_without_tissue(self, tmp_path, capsys):
        slide = tmp_path / "glass.tif"
        tifffile.imwrite(slide, np.full((512, 512, 3), 245, np.uint8), tile=(256, 256), photometric="rgb")
        message = refuse(capsys, [slide], tmp_path / "run", data__source_mpp=0.5)
        assert "glass.tif" in message
        assert "no_tissue" in message

    def test_all_slides_broken(self, tmp_path, slides, capsys):
        for number in range(3):
            (tmp_path / f"{number}.svs").write_bytes(slides[0].read_bytes()[: 1000 * number])
        message = refuse(capsys, [tmp_path / f"{number}.svs" for number in range(3)], tmp_path / "run")
        assert "no slide gave a tile: 3 given, 3 quarantined" in message
        assert os.path.exists(tmp_path / "run" / "manifest" / "quarantine.parquet")
