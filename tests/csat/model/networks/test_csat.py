"""The backbone: its published budget, and every habit that timm expects of it."""

import copy
import re

import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import csat.model  # noqa: F401  (registers the backbones)
from csat.model.cost import count_cost
from csat.model.networks import layers
from csat.model.networks.attention import ATTENTION_CELLS, resampling
from csat.model.networks.csat import VARIANTS, ConvBlock, make_csat
from csat.model.networks.layers import taken


def make(name="csat_nano", **options) -> torch.nn.Module:
    """A backbone whose GRN, gates and biases are not at their neutral start."""
    torch.manual_seed(0)
    model = timm.create_model(name, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


@pytest.fixture(scope="module")
def nano():
    return make(num_classes=10)


def test_csat_meets_the_published_budget():
    model = timm.create_model("csat")
    cost = count_cost(model, (1, 3, 224, 224))
    assert cost["params"] == sum(p.numel() for p in model.parameters())
    assert cost == {"params": 3_038_378, "macs": pytest.approx(1.0897e9, rel=1e-4)}, "as its docstring says"
    assert abs(cost["params"] / 3.0e6 - 1) < 0.015
    assert abs(cost["macs"] / 1.08e9 - 1) < 0.015
    assert model.num_features == 176
    assert model.training  # counting leaves the mode alone


def test_nano_is_a_small_csat():
    cost = count_cost(timm.create_model("csat_nano", num_classes=0), (1, 3, 224, 224))
    assert 0.2e6 < cost["params"] < 0.5e6
    assert cost["macs"] < 0.25e9


def test_pooled_width_is_176():
    model = timm.create_model("csat", num_classes=0).eval()
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 176)


def test_every_attention_of_the_network_sees_the_image():
    torch.manual_seed(0)
    model, gates = timm.create_model("csat").eval(), {}  # as it starts: no training is needed for it
    for name, module in model.named_modules():
        if name.endswith(".attention"):
            module.register_forward_hook(lambda _, __, gate, name=name: gates.__setitem__(name, gate))
    with torch.no_grad():
        model(torch.randn(2, 3, 64, 64) * torch.tensor([0.3, 2.0]).view(2, 1, 1, 1))
    assert len(gates) == 14
    assert all((gate[0] - gate[1]).abs().max() > 1e-4 for gate in gates.values())


@pytest.mark.parametrize("fold_grn", [False, True])
def test_conv_block_equals_its_formula(fold_grn):
    """Both forms of GRN against ConvNeXt V2's equations, written out."""
    torch.manual_seed(0)
    block = ConvBlock(6, attention_dim=4, drop_path=0.0, fold_grn=fold_grn).double()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x = torch.randn(2, 6, 9, 7, dtype=torch.float64)
    h = F.gelu(block.fc1(block.norm(block.conv_dw(x).permute(0, 2, 3, 1))))
    norm = h.flatten(1, 2).norm(dim=1)[:, None, None]
    h = block.grn_weight * (h * norm / norm.mean(-1, keepdim=True)) + block.grn_bias + h
    matrices = resampling(9, 7, ATTENTION_CELLS, x.device)
    branch = block.fc2(h)
    branch = branch * block.attention(branch, matrices)
    torch.testing.assert_close(block(x, matrices), x + branch.permute(0, 3, 1, 2), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["csat", "csat_nano"])
@pytest.mark.parametrize("out_indices", [(0, 1, 2), (0,), (1, 2)])
def test_features_only_tells_the_truth(name, out_indices):
    model = timm.create_model(name, features_only=True, out_indices=out_indices).eval()
    with torch.no_grad():
        features = model(torch.zeros(1, 3, 96, 64))
    channels, reductions = model.feature_info.channels(), model.feature_info.reduction()
    assert [tuple(f.shape[1:]) for f in features] == [(c, 96 // r, 64 // r) for c, r in zip(channels, reductions, strict=True)]
    assert reductions == [(4, 8, 16)[i] for i in out_indices]


def test_features_only_equals_forward_intermediates(nano):
    x = torch.randn(1, 3, 64, 64)
    extractor = timm.create_model("csat_nano", features_only=True).eval()
    state = {
        re.sub(r"^stages\.(\d)", r"stages_\1", re.sub(r"^stem\.(\d)", r"stem_\1", k)): v for k, v in nano.state_dict().items()
    }
    extractor.load_state_dict({k: v for k, v in state.items() if not k.startswith("head.")})
    with torch.no_grad():
        for a, b in zip(extractor(x), nano.forward_intermediates(x, intermediates_only=True), strict=True):
            assert torch.equal(a, b)


def test_forward_is_features_then_head(nano):
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        features = nano.forward_features(x)
        last, maps = nano.forward_intermediates(x)
        assert torch.equal(nano.forward_head(features), nano(x))
        assert torch.equal(last, features) and torch.equal(maps[-1], features)
        assert nano.forward_head(features, pre_logits=True).shape == (2, nano.num_features)
        last, maps = nano.forward_intermediates(x, indices=[0], stop_early=True)
        assert [m.shape[1] for m in maps] == [24] and last.shape[1] == 24
        assert len(nano.forward_intermediates(x, indices=2, intermediates_only=True)) == 2
    with pytest.raises(ValueError, match="NCHW"):
        nano.forward_intermediates(x, output_fmt="NLC")


def test_prune_intermediate_layers_keeps_what_is_asked_for():
    model, x = make(), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model.forward_intermediates(x, indices=[1], intermediates_only=True)[0]
        assert model.prune_intermediate_layers([1]) == [1]
        assert torch.equal(model(x), expected)
    assert len(model.stages) == 2 and model.num_features == 48


def test_reset_classifier():
    model, x = timm.create_model("csat_nano", num_classes=7).eval(), torch.zeros(2, 3, 64, 64)
    assert model(x).shape == (2, 7) and model.get_classifier().out_features == 7
    model.reset_classifier(3)
    assert model(x).shape == (2, 3) and model.num_classes == 3
    model.reset_classifier(0)
    assert model(x).shape == (2, 96) and isinstance(model.get_classifier(), torch.nn.Identity)
    model.reset_classifier(0, "")
    assert model(x).shape == (2, 96, 4, 4)


@pytest.mark.parametrize("in_chans", [1, 4])
def test_in_chans(in_chans):
    assert timm.create_model("csat_nano", in_chans=in_chans).eval()(torch.zeros(1, in_chans, 64, 64)).shape == (1, 1000)


def test_group_matcher_places_every_parameter():
    from timm.models import group_parameters

    model = timm.create_model("csat")
    names = {name for name, _ in model.named_parameters()}
    for coarse, num_groups in ((True, 5), (False, 20)):  # stem, stages or (blocks and downsamplings), head
        groups = group_parameters(model, model.group_matcher(coarse=coarse))
        assert {name for group in groups.values() for name in group} == names
        assert abs(len(groups) - num_groups) <= 1
    assert model.no_weight_decay() <= names and len(model.no_weight_decay()) == 28


def test_drop_path_rises_to_its_rate_and_acts_in_training_only():
    model = timm.create_model("csat_nano", drop_path_rate=0.5)
    rates = [m.drop_prob for m in model.modules() if type(m).__name__ == "DropPath"]
    assert rates == sorted(rates) and rates[-1] == pytest.approx(0.5)
    x = torch.randn(4, 3, 64, 64)
    torch.manual_seed(0)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


def test_checkpointing_changes_no_gradient(nano):
    x, gradients = torch.randn(2, 3, 64, 64), []
    for enable in (False, True):
        model = copy.deepcopy(nano).train()
        model.set_grad_checkpointing(enable)
        model(x).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed, atol=1e-6, rtol=1e-5)


@settings(max_examples=8, deadline=None)
@given(height=st.integers(4, 12), width=st.integers(4, 12))
def test_any_size_from_64_px_that_the_stride_divides(nano, height, width):
    with torch.no_grad():
        maps = nano.forward_intermediates(torch.randn(1, 3, 16 * height, 16 * width), intermediates_only=True)
    assert [m.shape[2:] for m in maps] == [(k * height, k * width) for k in (4, 2, 1)]
    assert all(m.isfinite().all() for m in maps)


def test_memory_format_changes_nothing(nano):
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        features = nano.forward_features(x)
        assert features.is_contiguous(memory_format=torch.channels_last)
        model = copy.deepcopy(nano).to(memory_format=torch.channels_last)
        torch.testing.assert_close(model(x.contiguous(memory_format=torch.channels_last)), nano(x), atol=1e-5, rtol=1e-5)


def test_bfloat16_autocast_is_close_to_float32(nano):
    x = torch.randn(4, 3, 64, 64)
    model = copy.deepcopy(nano).train()
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x)
    y.float().square().mean().backward()
    with torch.no_grad():
        expected = nano(x)
    assert F.cosine_similarity(y.float(), expected).min() > 0.995
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())


def test_bfloat16_weights_run(nano):
    with torch.no_grad():
        y = copy.deepcopy(nano).to(torch.bfloat16)(torch.randn(2, 3, 64, 64, dtype=torch.bfloat16))
    assert y.dtype == torch.bfloat16 and y.isfinite().all()


def test_every_parameter_gets_a_gradient(nano):
    model = copy.deepcopy(nano).train()
    model(torch.randn(2, 3, 64, 64)).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_backward_is_deterministic_by_name():
    """No operator without a deterministic backward pass: the error that CUDA would raise is not hidden in this graph."""
    model = make(num_classes=2).train()
    seen, todo = set(), [model(torch.randn(1, 3, 64, 64)).sum().grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo += [parent for parent, _ in node.next_functions]
    names = {type(node).__name__ for node in seen}
    assert any("Convolution" in name for name in names)
    assert not [name for name in names if "Upsample" in name or "AdaptiveAvgPool" in name]


def test_torchscript_script_and_trace_are_equal(nano):
    x = torch.randn(2, 3, 64, 96)
    scripted = torch.jit.script(copy.deepcopy(nano))
    with torch.no_grad():
        torch.testing.assert_close(scripted(x), nano(x))
        torch.testing.assert_close(scripted(x[:1, :, :, :64]), nano(x[:1, :, :, :64]))  # another size, without tracing again
        traced = torch.jit.trace(copy.deepcopy(nano), x)
        torch.testing.assert_close(traced(x.flip(0)), nano(x.flip(0)))


def test_compiles_as_one_graph(nano):
    torch._dynamo.reset()
    compiled, x = torch.compile(copy.deepcopy(nano), fullgraph=True, backend="aot_eager"), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), nano(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", VARIANTS)
def test_made_without_timm_it_is_the_same_model(name):
    """Weights from the same seed, how images are normalised, and what comes out of it."""
    models = []
    for make_one in (timm.create_model, make_csat):
        torch.manual_seed(3)
        models.append(make_one(name, num_classes=0, drop_path_rate=0.2).eval())
    theirs, ours = models
    assert theirs.state_dict().keys() == ours.state_dict().keys()
    assert all(torch.equal(tensor, ours.state_dict()[key]) for key, tensor in theirs.state_dict().items())
    assert ours.pretrained_cfg.items() <= theirs.pretrained_cfg.items()
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(theirs(x), ours(x))


@pytest.mark.parametrize(("indices", "meant"), [(None, [0, 1, 2]), (2, [1, 2]), ([-1, 0], [2, 0])])
def test_indices_mean_what_they_mean_in_timm(indices, meant):
    from timm.models._features import feature_take_indices

    assert taken(3, indices) == meant == feature_take_indices(3, indices)[0]


@pytest.mark.parametrize("indices", [0, 4, [3], [-4], []])
def test_indices_that_are_not_there_are_refused(indices):
    with pytest.raises(ValueError, match="3 feature maps"):
        taken(3, indices)


def test_layers_draw_and_compute_what_timms_do():
    theirs, ours = torch.empty(500), torch.empty(500)
    torch.manual_seed(0)
    timm.layers.trunc_normal_(theirs, std=0.7)
    torch.manual_seed(0)
    assert torch.equal(theirs, layers.trunc_normal_(ours, std=0.7)) and theirs.abs().max() < 2
    assert layers.drop_path_rates(0.3, 7) == timm.layers.calculate_drop_path_rates(0.3, 7)
    x, outputs = torch.randn(8, 4, 3, 3), []
    for drop in (timm.layers.DropPath(0.4), layers.DropPath(0.4)):
        torch.manual_seed(1)
        outputs.append(drop.train()(x))
    assert torch.equal(*outputs) and not torch.equal(outputs[0], x)
