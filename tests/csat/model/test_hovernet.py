"""HoVer-Net behind the contract of the models: what it says, where, and that its parts are the published ones."""

import pytest
import torch

from csat.errors import ConfigError
from csat.model.hovernet import HoverNetModel, HoverNetModelOptions
from csat.model.networks.hovernet import MARGIN_PX, HoVerNet
from csat.tasks import Task, heads_of
from tests.csat.model.test_registry import info_of

WIDTH = 0.0625


def make(mode="fast", classes=("immune", "tumour")):
    torch.manual_seed(0)
    heads = heads_of(info_of(Task.NUCLEI, classes), crop_px=MARGIN_PX[mode])
    return HoverNetModel(HoverNetModelOptions(mode=mode, width=WIDTH), heads).eval()


@pytest.mark.parametrize(("mode", "tile_px"), [("fast", 128), ("original", 222)])
def test_it_covers_the_tile_less_the_margin(mode, tile_px):
    model, margin_px = make(mode), MARGIN_PX[mode]
    model.check_tile(tile_px)
    with torch.no_grad():
        predictions = model(torch.rand(1, 3, tile_px, tile_px))
    covered = torch.zeros(tile_px, tile_px, dtype=torch.bool)
    covered[margin_px:-margin_px, margin_px:-margin_px] = True
    for name, channels in (("np", 1), ("hv", 2), ("tp", 3)):
        assert predictions[name].shape == (1, channels, tile_px, tile_px)
        assert (predictions[name][..., covered] != 0).all() and (predictions[name][..., ~covered] == 0).all()


def test_the_nucleus_is_one_logit():
    """Its sigmoid is what the published network's two channels give; images are 0 to 1 here and 0 to 255 there."""
    model, images = make(), torch.rand(1, 3, 96, 96)
    with torch.no_grad():
        own, published = model(images), model.net(images * 255)
    inner = slice(46, -46)
    torch.testing.assert_close(own["np"][..., inner, inner].sigmoid(), published["np"].softmax(1)[:, 1:])
    torch.testing.assert_close(own["hv"][..., inner, inner], published["hv"])
    torch.testing.assert_close(own["tp"][..., inner, inner], published["tp"])


def test_only_the_heads_that_are_asked_for_are_computed():
    model, images = make(), torch.rand(1, 3, 96, 96)
    model.responses = tuple(spec for spec in model.responses if spec.name == "hv")
    computed = []
    for name, branch in model.net.decoder.items():
        branch["u3"].register_forward_hook(lambda *_, name=name: computed.append(name))
    with torch.no_grad():
        assert list(model(images)) == ["hv"]
    assert computed == ["hv"]


@pytest.mark.parametrize("classes", [(), ("immune", "tumour")])
def test_the_tensors_are_the_published_ones(classes):
    net = HoVerNet(mode="fast", num_types=len(classes) + 1 if classes else None, width=WIDTH)
    own = {name.removeprefix("net."): tensor.shape for name, tensor in make(classes=classes).state_dict().items()}
    assert own == {name: tensor.shape for name, tensor in net.state_dict().items()}


def test_tiles_that_it_cannot_take():
    for mode, wrong_px in (("fast", 100), ("original", 256)):
        with pytest.raises(ConfigError, match=rf"HoVer-Net \({mode}\).*not {wrong_px} px. Nearest"):
            make(mode).check_tile(wrong_px)
