"""Every teacher answers finished tiles, as a trained model does."""

import json

import numpy as np
import pytest
import torch

from csat.errors import ConfigError
from csat.prediction.windows import View, see
from csat.responses import Kind
from csat.tasks import Task
from teachers.answers import open_answers
from teachers.registry import load_teacher

SMALL = {"mode": "fast", "width": 0.0625, "random_weights": True}


def tiles(number=2, edge=64):
    return np.random.default_rng(0).integers(0, 256, (number, edge, edge, 3), np.uint8)


def test_the_stain_teacher_answers_nuclei_at_the_resolution_that_it_is_told():
    answers = open_answers("stain", tile_px=64, mpp=0.25)
    assert (answers.task, answers.classes, answers.mpp, answers.tile_px) == (Task.NUCLEI, (), 0.25, 64)
    teacher = load_teacher("stain", options={"mpp": 0.25})
    assert answers.about.sha256 == teacher.spec.weights_sha256 and answers.about.licence == "Apache-2.0"
    said, expected = answers.answer(tiles()), teacher.respond(tiles())
    for name, values in expected.items():
        assert said[name].dtype == np.float32
        np.testing.assert_array_equal(said[name], values.astype(np.float32))


def test_hovernet_answers_what_its_margin_leaves():
    answers = open_answers("hovernet", options=SMALL)
    assert answers.tile_px in (252, 256, 260) and answers.task == Task.NUCLEI
    assert answers.classes == tuple(f"type {number}" for number in range(1, 6))  # nobody has named them
    said = answers.answer(tiles(1, answers.tile_px))
    for spec in answers.specs:
        assert spec.crop_px == 46 and said[spec.name].shape == (1, *spec.shape(answers.tile_px))
    np.testing.assert_allclose(said["tp"].sum(1), 1, atol=1e-2)


def test_an_encoder_answers_embeddings():
    options = {"model": "resnet18", "random_weights": True, "outputs": ["features", "tokens"]}
    answers = open_answers("timm", options=options, tile_px=64)
    assert answers.task is None and [(spec.name, spec.kind) for spec in answers.specs] == [("features", Kind.FEATURES)]
    assert answers.answer(tiles())["features"].shape == (2, 512)


def test_a_torchscript_model_answers_at_every_pixel(tmp_path):
    """Its cells are four pixels wide, and it is seen over a whole image like any other."""
    pooled = torch.nn.Sequential(torch.nn.AvgPool2d(4), torch.nn.Conv2d(3, 2, 1))
    torch.jit.trace(pooled, torch.zeros(2, 3, 64, 64)).save(str(tmp_path / "m.pt"))
    mask = {"name": "mask", "kind": "logits", "channels": 2, "stride_px": 4, "symmetry": "scalar"}
    normalisation = {"scale": 255, "mean": [0, 0, 0], "std": [1, 1, 1]}
    spec = {"mpp": 0.5, "tile_px": 64, "normalisation": normalisation, "outputs": [mask]}
    (tmp_path / "m.json").write_text(json.dumps(spec))
    answers = open_answers("torchscript", weights=str(tmp_path / "m.pt"))
    said = answers.answer(tiles())["mask"]
    assert answers.task == Task.SEGMENTATION and answers.classes == ("class 0", "class 1") and said.shape == (2, 2, 64, 64)
    np.testing.assert_allclose(said.sum(1), 1, atol=1e-5)
    ((_, seen),) = see(answers, [("a", tiles(1, 100)[0])], View(fit="crop", views=8))
    assert seen.maps["mask"].shape == (2, 100, 100)


def test_what_does_not_answer_is_refused_with_what_does(tmp_path):
    with pytest.raises(ConfigError, match="expected a run folder.*stain, hovernet, timm, ara_cnn, torchscript"):
        open_answers(str(tmp_path / "nothing"))
    with pytest.raises(ConfigError, match="has its own: leave them out"):
        open_answers(str(tmp_path), weights="a.pt")
    with pytest.raises(ConfigError, match="does not take tiles of 65 px"):
        open_answers("hovernet", options=SMALL, tile_px=65)
