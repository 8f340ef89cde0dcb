"""Fine-tunings that must not start: each ends in one message, and leaves no checkpoint."""

import numpy as np
import pytest
import torch
from PIL import Image

from tests.stories.finetuning import write_recipe
from tests.support.labelled_folders import data_settings, make_folder
from workflows import finetune


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
