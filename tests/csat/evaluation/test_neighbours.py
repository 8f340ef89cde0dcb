"""A layer is as good as its nearest neighbours: vectors whose answer is known, and networks that see what they should."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from csat.errors import ConfigError, SlideError
from csat.evaluation.neighbours import TEMPERATURE, judge_layers, layers_in_order, say_by_neighbours
from csat.evaluation.scores import figures_of
from csat.labels.datasets.contract import Decoded
from csat.model.contract import ModelConfig
from csat.model.registry import build_model
from csat.tasks import IGNORE, Task
from tests.support.labelled_toy import TinyModel, draw_nuclei, draw_shades, make_info, make_samples

TILE_PX = 64
GROUPS = {f"group {number}": [0, 1] * 3 for number in range(6)}


def test_each_neighbour_counts_by_its_cosine():
    vectors = F.normalize(torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [-1.0, 0.0]]), dim=1)
    asked = F.normalize(torch.tensor([[1.0, 0.02], [0.1, 1.0]]), dim=1)
    said = say_by_neighbours(vectors, torch.tensor([0, 1, 1, 2]), asked, num_classes=3, k=2)
    weights = ((asked[0] @ vectors.T)[:2] / TEMPERATURE).exp()
    torch.testing.assert_close(said[0], torch.tensor([*(weights / weights.sum()), 0.0]))
    torch.testing.assert_close(said[1], torch.tensor([0.0, 1.0, 0.0]))
    assert say_by_neighbours(vectors, torch.tensor([0, 1, 1, 2]), asked, num_classes=3).shape == (2, 3), "fewer than k"


def test_it_agrees_with_one_row_at_a_time(monkeypatch):
    rng = torch.Generator().manual_seed(0)
    vectors, asked = (F.normalize(torch.randn(n, 5, generator=rng), dim=1) for n in (70, 33))
    labels = torch.randint(4, (70,), generator=rng)
    whole = say_by_neighbours(vectors, labels, asked, num_classes=4)
    monkeypatch.setattr("csat.evaluation.neighbours.ROWS_AT_ONCE", 10)
    torch.testing.assert_close(say_by_neighbours(vectors, labels, asked, num_classes=4), whole)
    torch.testing.assert_close(whole.sum(1), torch.ones(33))


def model_of(info, name="csat_nano"):
    torch.manual_seed(0)
    return build_model(ModelConfig(name=name, decoder_channels=8), info, load=lambda place: pytest.fail(place))


def split_of(samples):
    is_test = {each.key: each.group >= "group 4" for each in samples}
    return {split: [each for each in samples if is_test[each.key] == (split == "test")] for split in ("train", "test")}


def test_a_classification_compares_tiles():
    """Shades differ, so that even random layers tell them apart; shuffled labels they cannot."""
    info, samples = make_info(), make_samples(GROUPS)
    images = dict(zip([each.key for each in samples], draw_shades([each.label for each in samples], TILE_PX), strict=True))
    splits = split_of(samples)
    found = judge_layers(model_of(info), splits, lambda each: images[each.key], info, tile_px=TILE_PX, fit="resize")
    assert list(found) == ["stride_4", "stride_8", "features"]
    for predictions in found.values():
        assert predictions.keys == tuple(each.key for each in splits["test"])
        assert predictions.groups == tuple(each.group for each in splits["test"])
    assert figures_of(found["stride_4"])["balanced_accuracy"] == 1
    wrong = {**splits, "train": [replace(each, label=number // 2 % 2) for number, each in enumerate(splits["train"])]}
    found = judge_layers(model_of(info), wrong, lambda each: images[each.key], info, tile_px=TILE_PX, fit="resize")
    assert figures_of(found["stride_4"])["balanced_accuracy"] < 0.8


@pytest.mark.parametrize(("task", "classes"), [(Task.SEGMENTATION, ("background", "gland")), (Task.NUCLEI, ())])
def test_maps_compare_cells(task, classes):
    info, samples = make_info(task, classes), make_samples({name: [None] * 3 for name in GROUPS})
    rng = np.random.default_rng(0)
    images = {each.key: draw_nuclei(rng, TILE_PX) for each in samples}
    splits = split_of(samples)
    found = judge_layers(model_of(info), splits, lambda each: images[each.key], info, tile_px=TILE_PX, fit="crop")
    assert list(found) == ["decoder", "stride_4", "stride_8", "features"]
    finest = found["stride_4"]
    assert len(finest) == 16 * len(splits["test"]) and len(set(finest.keys)) == len(finest)
    assert len(found["features"]) == 16 * len(splits["test"]), "a tile of 64 px has 16 cells of 16"
    assert finest.classes == (classes or ("background", "nucleus"))
    assert figures_of(finest)["balanced_accuracy"] > 0.8


def test_what_does_not_count_is_not_compared():
    info, samples = make_info(Task.SEGMENTATION), make_samples({name: [None] for name in GROUPS})
    mask = np.full((TILE_PX, TILE_PX), IGNORE, np.uint8)
    mask[: TILE_PX // 2] = 1
    image = Decoded(image=np.zeros((TILE_PX, TILE_PX, 3), np.uint8), mask=mask)
    found = judge_layers(model_of(info), split_of(samples), lambda _: image, info, tile_px=TILE_PX, fit="crop")
    assert len(found["features"]) == 2 * 8 and set(found["features"].arrays["label"]) == {1}


def test_an_image_that_cannot_be_read_is_left_out():
    info, samples = make_info(), make_samples(GROUPS)
    images = dict(zip([each.key for each in samples], draw_shades([each.label for each in samples], TILE_PX), strict=True))
    splits = split_of(samples)

    def decode(sample):
        if sample is splits["test"][0]:
            raise SlideError("unreadable", "broken on purpose")
        return images[sample.key]

    found = judge_layers(model_of(info), splits, decode, info, tile_px=TILE_PX, fit="resize")
    assert found["features"].keys == tuple(each.key for each in splits["test"][1:])
    with pytest.raises(ConfigError, match="the test part has no labelled image to compare"):
        judge_layers(model_of(info), {**splits, "test": []}, decode, info, tile_px=TILE_PX, fit="resize")


def test_a_model_without_layers_is_refused():
    class Layerless(TinyModel):
        layers, noun = {}, "a model"

    with pytest.raises(ConfigError, match="a model has no layers that can be looked at"):
        judge_layers(Layerless(make_info()), {}, lambda _: None, make_info(), tile_px=16, fit="resize")


def test_layers_go_from_fine_to_coarse_and_no_map_is_there_twice():
    names = layers_in_order(model_of(make_info(Task.NUCLEI), "resnet18"))
    assert names == ["decoder", "stride_4", "stride_8", "stride_16", "features"]
