"""CoCo DistillNet's networks: their published cost, their taps, and the contract that they share."""

import pytest
import torch

from csat.errors import ConfigError
from csat.model.contract import DECODED, ENCODED
from csat.model.cost import count_cost
from csat.model.networks.fanet import FANet, SelectiveKernel, StripPooling
from csat.model.parts import BACKBONE, DECODER, HEADS
from csat.model.registry import find_model
from csat.model.segmentation_nets import TAP_STRIDE_PX, SegmentationNet
from csat.responses import Kind, ResponseSpec
from tests.csat.model.published_count import count_as_published

MASK = ResponseSpec(name="mask", kind=Kind.LOGITS, channels=3)
SMALL = ("mobile_unet", "enet", "erfnet")
NETWORKS = ("fanet", *SMALL)
# Of one channel of 256 x 256 and two classes: published parameters, published MACs, and MACs as they are multiplied.
PUBLISHED = {
    "mobile_unet": (4.640e6, 1.492e9, 0.963e9),
    "enet": (0.349e6, 0.516e9, 0.461e9),
    "erfnet": (2.063e6, 3.681e9, 3.304e9),
    "fanet": (38.25e6, 171.556e9, 166.96e9),
}
SHAPE = (1, 1, 256, 256)


def make_net(name: str, responses=(MASK,), **options) -> SegmentationNet:
    torch.manual_seed(0)
    model_class = find_model(name)
    return model_class(model_class.Options(**options), responses).eval()


def tap(net, images):
    """The encoder's map, the decoder's, and the logits."""
    maps, predictions = net.tap(images, [ENCODED, DECODED])
    return maps[ENCODED], maps[DECODED], predictions["mask"]


@pytest.mark.parametrize("name", SMALL)
def test_the_students_cost_what_is_published_to_the_last_digit(name):
    params, macs, multiplied = PUBLISHED[name]
    net = find_model(name).Network(2, in_channels=1)
    counted = count_as_published(net, SHAPE, with_batch_norm=name != "mobile_unet")
    assert counted[0] == pytest.approx(params, rel=1.5e-3)
    assert counted[1] == pytest.approx(macs, rel=1e-3)
    ours = count_cost(net, SHAPE)
    assert ours["params"] == pytest.approx(params, rel=0.01)
    assert ours["macs"] == pytest.approx(multiplied, rel=1e-3)


def test_the_teacher_costs_what_is_published_within_a_thousandth():
    params, macs, multiplied = PUBLISHED["fanet"]
    with torch.device("meta"):  # 170 GMAC need not be done to be counted
        net = FANet(2, in_channels=1)
    counted = count_as_published(net, SHAPE, with_batch_norm=False)
    assert counted == (pytest.approx(params, rel=1e-3), pytest.approx(macs, rel=1e-3))
    assert count_cost(net, SHAPE)["macs"] == pytest.approx(multiplied, rel=1e-3)


@pytest.mark.parametrize("name", NETWORKS)
def test_taps_and_logits(name):
    net = make_net(name)
    with torch.no_grad():
        encoded, decoded, logits = tap(net, torch.rand(2, 3, 64, 96))
    assert encoded.shape == decoded.shape == (2, net.layers[ENCODED].channels, 64 // TAP_STRIDE_PX, 96 // TAP_STRIDE_PX)
    assert net.layers[ENCODED] == net.layers[DECODED] and net.layers[ENCODED].stride_px == TAP_STRIDE_PX
    assert net.layers[ENCODED].channels == {"fanet": 256, "mobile_unet": 24, "enet": 64, "erfnet": 64}[name]
    assert logits.shape == (2, 3, 64, 96)
    with torch.no_grad():
        assert net(torch.rand(1, 3, 32, 32))["mask"].shape == (1, 3, 32, 32)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_parameter_gets_a_gradient_from_the_logits(name):
    """DDP waits for each of them."""
    net = make_net(name).train()
    net(torch.rand(2, 3, 32, 32))["mask"].square().mean().backward()
    assert [key for key, p in net.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name", NETWORKS)
def test_the_taps_carry_gradients_to_the_layers_before_them(name):
    net = make_net(name)
    encoded, decoded, _ = tap(net, torch.rand(1, 3, 32, 32))
    first = next(p for p in net.parameters() if p.ndim == 4)
    for tapped in (encoded, decoded):
        assert torch.autograd.grad(tapped.square().sum(), first, retain_graph=True)[0].abs().sum() > 0


@pytest.mark.parametrize("name", SMALL)
def test_logits_lie_where_the_image_says(name):
    """A spot changes the logits around its own place the most: no offset, no transposition."""
    net, image = make_net(name), torch.full((1, 3, 128, 128), 0.5)
    spot = image.clone()
    spot[:, :, 88:96, 24:32] = 1.0
    with torch.no_grad():
        difference = (net(spot)["mask"] - net(image)["mask"]).square().sum(1)[0]
    row, column = divmod(int(torch.nn.functional.avg_pool2d(difference[None, None], 9, 1, 4).argmax()), 128)
    assert abs(row - 92) <= 16 and abs(column - 28) <= 16


def test_a_selective_kernel_mixes_its_branches_by_the_softmax_of_two_choices():
    torch.manual_seed(0)
    block, x = SelectiveKernel(4).eval(), torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        branches = [branch(x) for branch in block.branches]
        summary = block.summary(sum(branches).mean((2, 3), keepdim=True))
        shares = torch.stack([to_share(summary) for to_share in block.to_shares]).softmax(0)
        torch.testing.assert_close(block(x), (torch.stack(branches) * shares).sum(0))
    assert summary.shape == (2, 2, 1, 1) and [branch[0].kernel_size for branch in block.branches] == [(3, 3), (5, 5)]


@pytest.mark.parametrize("is_last", [False, True])
def test_strip_pooling_sees_rows_columns_and_cells_and_adds_to_its_input(is_last):
    """Without its coarse cells it sees the rows and columns beside a change; with them, everything around it."""
    torch.manual_seed(0)
    block, x = StripPooling(16, (2, 4), is_last=is_last).eval(), torch.rand(1, 16, 16, 16)
    changed = x.clone()
    changed[:, :, 5, 11] += 10.0

    def moved() -> set[tuple[int, int]]:
        with torch.no_grad():
            return set(map(tuple, ((block(changed) - block(x)).abs().amax(1)[0] > 1e-6).nonzero().tolist()))

    assert {(5, 0), (5, 15), (0, 11), (15, 11), (0, 15)} <= moved()  # (0, 15) lies in the same half of the tile
    for convolution in block.around:
        torch.nn.init.zeros_(convolution[0].weight)
    assert all(abs(row - 5) <= 3 or abs(column - 11) <= 3 for row, column in moved())
    torch.nn.init.zeros_(block.join[0].weight)
    with torch.no_grad():
        torch.testing.assert_close(block(x), x)


def test_strip_poolings_cells_are_adaptive_pooling_and_linear_upsampling():
    torch.manual_seed(0)
    block, x = StripPooling(8, (3, 6)).eval(), torch.rand(1, 8, 20, 13)
    with torch.no_grad():
        maps = [block.near(x)]
        for cells, convolve in zip(block.cells, block.around, strict=True):
            coarse = convolve(torch.nn.functional.adaptive_avg_pool2d(x, cells))
            maps.append(torch.nn.functional.interpolate(coarse, size=(20, 13), mode="bilinear", align_corners=False))
        torch.testing.assert_close(block._look_around(x), block.from_cells(sum(maps).relu()))


def test_a_narrow_teacher_learns_from_a_single_tile():
    """The pooled vector has one value per channel then, whose norm has nothing to measure; maps are measured as always."""
    net = make_narrow().train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    net(torch.rand(1, 3, 32, 32))["mask"].square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters())
    after = net.state_dict()
    name = "net.encoder.0.0.kernel.0.{}.1.running_mean"
    assert torch.equal(before[name.format("summary")], after[name.format("summary")])
    assert not torch.equal(before[name.format("branches.0")], after[name.format("branches.0")])
    net(torch.rand(2, 3, 32, 32))
    assert not torch.equal(before[name.format("summary")], net.state_dict()[name.format("summary")])


def test_weights_of_the_earlier_fanet_are_refused_in_one_sentence():
    """Also inside of something else, as a checkpoint holds them."""
    earlier = {"model.net.encoder.0.0.branch.0.0.weight": torch.zeros(8, 3, 3, 3)}
    with pytest.raises(ConfigError, match=r"^these weights are of the earlier fanet, .*: that fanet must be trained again$"):
        torch.nn.ModuleDict({"model": make_narrow()}).load_state_dict(earlier)


def test_mistakes_are_named():
    with pytest.raises(ConfigError, match="no model of kind 'unet3'; known are: .*fanet, mobile_unet, enet, erfnet"):
        make_net("unet3")
    label = ResponseSpec(name="label", kind=Kind.LOGITS, channels=3, stride_px=None)
    with pytest.raises(ConfigError, match="'enet' segments: it has one dense head, and was asked for: label"):
        make_net("enet", (label,))
    make_net("mobile_unet").check_tile(96)
    with pytest.raises(ConfigError, match="mobile_unet takes tiles of multiples of 32 px: set data.tile_px 96, not 100"):
        make_net("mobile_unet").check_tile(100)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_parameter_is_in_one_part_and_the_encoder_has_layers(name):
    net = make_net(name)
    names = [set(net.tensors_of(part)) for part in (BACKBONE, DECODER, HEADS)]
    assert set.union(*names) == set(net.state_dict()) - {"mean", "std"} and sum(map(len, names)) == len(net.state_dict()) - 2
    layers = net.backbone_layers()
    assert layers.keys() == {key for key, _ in net.named_parameters()} & names[0]
    assert sorted(set(layers.values())) == list(range(max(layers.values()) + 1)) and max(layers.values()) >= 3
    scales = net.lr_scales(0.5, 3.0)
    first = next(key for key, layer in layers.items() if layer == 0)
    assert scales[first] == 0.5 ** (max(layers.values()) + 1)
    assert {scales[key] for key in net.tensors_of(HEADS)} == {3.0}


@pytest.mark.parametrize("width", [8, 24])
def test_a_narrow_teacher(width):
    net = make_narrow(width)
    assert (
        net.layers[ENCODED].channels == 4 * width
        and sum(p.numel() for p in net.parameters()) < 38.3e6 * (width / 64) ** 2 * 1.02
    )
    with torch.no_grad():
        assert tap(net.eval(), torch.rand(1, 3, 32, 32))[0].shape == (1, 4 * width, 8, 8)
    with pytest.raises(ConfigError, match="width is a multiple of 8"):
        make_narrow(12)


def make_narrow(width: int = 8) -> SegmentationNet:
    return make_net("fanet", width=width).train()
