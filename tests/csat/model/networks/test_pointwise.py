"""No model holds a layer that crashes oneDNN, and what stands in for such a layer computes the same."""

import copy
import pickle

import pytest
import timm
import torch
from timm.layers import Conv2dSame
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, ResNet
from torch import nn

from csat.methods.coco.paraphrasers import make_paraphrasers
from csat.model.files import load_model, save_model
from csat.model.networks.critic import PatchCritic
from csat.model.networks.hovernet import HoVerNet
from csat.model.networks.pointwise import StridedPointwise, guard_pointwise, overrunning_layers
from csat.model.student import Student, StudentConfig
from csat.model.tapped import TappedClassifier, TappedOptions
from csat.responses import Kind, ResponseSpec
from csat.tasks import Task
from tests.csat.model.test_registry import CASES, build

MASK = ResponseSpec(name="mask", kind=Kind.LOGITS, channels=2)
LABEL = ResponseSpec(name="label", kind=Kind.LOGITS, channels=2, stride_px=None)


default_cfgs = generate_default_cfgs(
    {"narrow_resnet": {"input_size": (3, 224, 224), "mean": (0.5,) * 3, "std": (0.5,) * 3, "first_conv": "conv1"}}
)


@register_model
def narrow_resnet(pretrained=False, **kwargs):
    """A timm net of somebody's own, with a shortcut of stride 2 over 12 channels."""
    sizes = {"block": BasicBlock, "layers": (1, 1, 1, 1), "channels": (12, 24, 24, 24)}
    return build_model_with_cfg(ResNet, "narrow_resnet", pretrained, **sizes, **kwargs)


def stand_ins(module: nn.Module) -> list[str]:
    return [name for name, layer in module.named_modules() if isinstance(layer, StridedPointwise)]


HOVERNETS = [("hovernet", Task.NUCLEI, {"options": {"width": width}}) for width in (0.01, 0.05, 0.1, 0.25)]


@pytest.mark.parametrize(("name", "task", "settings"), [*((*case, {}) for case in CASES), *HOVERNETS])
def test_no_model_holds_such_a_layer(name, task, settings):
    assert overrunning_layers(build(name, task, **settings)) == []


def test_hovernet_had_one():
    """The published network narrowed to a twentieth: what the test above would find without the guard."""
    net = HoVerNet(width=0.05)
    assert [name for name, _ in overrunning_layers(net)] == ["d1.shortcut"]
    model = build("hovernet", Task.NUCLEI, options={"width": 0.05})
    assert stand_ins(model) == ["net.d1.shortcut"] and model.net.d1.shortcut.stride == (2, 2)


def test_so_has_a_net_of_timm():
    """FastViT's stem, of 3 channels and of one per group."""
    net = timm.create_model("fastvit_t8", num_classes=0)
    assert [name for name, _ in overrunning_layers(net)] == ["stem.0.conv_scale.conv", "stem.1.conv_scale.conv"]
    guard_pointwise(net)
    assert overrunning_layers(net) == []


def test_nor_do_what_methods_train_besides():
    modules = [PatchCritic(1, width=4), make_paraphrasers((8, 8), (3, 3)), make_paraphrasers((256, 256), (24, 24))]
    assert [overrunning_layers(module) for module in modules] == [[], [], []]


def test_any_timm_net_is_guarded_before_its_first_backward_pass(tmp_path):
    """A student's constructor already runs one, and its weights stay those of timm's own model."""
    config = StudentConfig(backbone="narrow_resnet", decoder_channels=8)
    student = Student(config, (MASK, LABEL))
    assert stand_ins(student) == ["backbone.layer2.0.downsample.0"]
    assert stand_ins(TappedClassifier(TappedOptions(backbone="narrow_resnet", layer="layer2"), (LABEL,))) == [
        "backbone.layer2.0.downsample.0"
    ]
    model = timm.create_model("narrow_resnet", num_classes=0)
    model.load_state_dict(student.backbone.state_dict(), strict=True)
    images = torch.rand(2, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(student.eval().backbone(images), model.eval()(images))
    student(images)["mask"].square().mean().backward()
    save_model(student, str(tmp_path), {})
    assert stand_ins(load_model(str(tmp_path))) == stand_ins(student)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    ("kind", "in_channels", "options"),
    [
        (nn.Conv2d, 12, {"stride": 2}),
        (nn.Conv2d, 7, {"stride": 3, "bias": False}),
        (nn.Conv2d, 8, {"stride": (1, 2)}),
        (nn.Conv2d, 24, {"stride": 2, "groups": 4}),
        (nn.Conv2d, 12, {"stride": 2, "groups": 12}),
        (Conv2dSame, 13, {"stride": 2}),
    ],
)
def test_stand_in_computes_the_same(kind, in_channels, options, channels_last):
    """Against the layer itself in double precision, which oneDNN leaves alone."""
    torch.manual_seed(0)
    layer = kind(in_channels, 24, 1, **options)
    expected, images = copy.deepcopy(layer).double(), torch.randn(2, in_channels, 33, 34)
    guard_pointwise(layer)
    assert type(layer) is StridedPointwise
    if channels_last:
        layer, images = layer.to(memory_format=torch.channels_last), images.contiguous(memory_format=torch.channels_last)
    images.requires_grad_()
    images_64 = images.detach().double().requires_grad_()
    answer, answer_64 = layer(images), expected(images_64)
    answer.square().sum().backward(), answer_64.square().sum().backward()
    for ours, theirs in [(answer, answer_64), (images.grad, images_64.grad)] + [
        (a.grad, b.grad) for a, b in zip(layer.parameters(), expected.parameters(), strict=True)
    ]:
        torch.testing.assert_close(ours.double(), theirs, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize(
    "layer", [nn.Conv2d(16, 24, 1, 2), nn.Conv2d(12, 24, 1), nn.Conv2d(12, 24, 3, 2), nn.Conv2d(8, 8, 1, 2, 1)]
)
def test_others_are_left_alone(layer):
    guard_pointwise(layer)
    assert type(layer) is nn.Conv2d


def test_it_is_copied_pickled_scripted_exported_and_compiled_like_any_layer():
    net = nn.Sequential(nn.Conv2d(3, 12, 3), nn.Conv2d(12, 24, 1, 2)).eval()
    images = torch.rand(1, 3, 35, 34)
    expected = net(images)
    guard_pointwise(net)
    forms = (
        copy.deepcopy(net),
        pickle.loads(pickle.dumps(net)),
        torch.jit.script(net),
        torch.jit.trace(net, images),
        torch.export.export(net, (images,)).module(),
        torch.compile(net, backend="eager", fullgraph=True),
    )
    for form in forms:
        torch.testing.assert_close(form(images), expected)
        assert list(net.state_dict()) == ["0.weight", "0.bias", "1.weight", "1.bias"]
