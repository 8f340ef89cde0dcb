"""ResNet-10 with GroupNorm: its published size, its exact saving at low resolution, and timm's habits."""

import pytest
import timm
import torch
from torch import nn

import csat.model  # noqa: F401  (registers the backbones)
from csat.model.cost import count_cost
from csat.model.student import Student, StudentConfig
from csat.responses import Kind, ResponseSpec

LOGITS = ResponseSpec(name="logits", kind=Kind.LOGITS, channels=4, stride_px=None)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("resnet10_gn", num_classes=4).eval()


def test_the_published_size(net):
    assert count_cost(net, (1, 3, 64, 64))["params"] == 1_231_268  # 1.231M


def test_the_layout_is_the_papers(net):
    convolutions = {name: (m.in_channels, m.out_channels) for name, m in net.named_modules() if isinstance(m, nn.Conv2d)}
    assert convolutions["conv1"] == (3, 32)
    assert [convolutions[f"layer{i}.0.conv2"][1] for i in (1, 2, 3, 4)] == [32, 64, 128, 256]
    norms = [m for m in net.modules() if isinstance(m, nn.GroupNorm)]
    assert len(norms) == 12 and all(norm.num_groups == 32 for norm in norms)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in net.modules())


def test_each_halving_of_the_resolution_saves_exactly_four_times():
    macs = [
        count_cost(timm.create_model("resnet10_gn", num_classes=0), (1, 3, size, size))["macs"] for size in (512, 256, 128, 64)
    ]
    assert [macs[0] / each for each in macs] == [1, 4, 16, 64]


def test_images_of_any_size_one_at_a_time(net):
    sizes = [(64, 64), (96, 160), (75, 201)]
    images = [torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(size[0])) for size in sizes]
    with torch.no_grad():
        assert [net(image).shape for image in images] == [(1, 4)] * 3
        # No image depends on its batch, in training mode either.
        pair = torch.rand(2, 3, 64, 64)
        net.train()
        torch.testing.assert_close(net(pair)[:1], net(pair[:1]), atol=1e-5, rtol=1e-5)
        net.eval()


def test_features_tell_the_truth(net):
    x, maps = net.forward_intermediates(torch.rand(1, 3, 96, 128))
    for info, each in zip(net.feature_info, maps, strict=True):
        assert each.shape == (1, info["num_chs"], 96 // info["reduction"], 128 // info["reduction"])
    with torch.no_grad():
        image = torch.rand(1, 3, 64, 64)
        torch.testing.assert_close(net(image), net.fc(net.forward_features(image).mean((2, 3))))


def test_it_is_a_students_backbone():
    student = Student(StudentConfig(backbone="resnet10_gn", downsample=4), (LOGITS,))
    assert student(torch.rand(2, 3, 64, 64))["logits"].shape == (2, 4)
    fresh = timm.create_model("resnet10_gn", num_classes=0)
    fresh.load_state_dict(student.backbone.state_dict(), strict=True)
