"""Classifiers on a named layer: VGG16 to conv5_3 exactly, other backbones, maps for AT+, and layers that cannot be."""

import pytest
import timm
import torch
from torch import nn

from csat.errors import ConfigError
from csat.losses.attention import attention_maps
from csat.model.contract import FEATURES, Layer
from csat.model.tapped import TappedClassifier, TappedOptions
from csat.responses import Kind, ResponseSpec

LABEL = ResponseSpec(name="label", kind=Kind.LOGITS, channels=4, stride_px=None)
MASK = ResponseSpec(name="mask", kind=Kind.LOGITS, channels=4)


def make(backbone: str = "resnet18", layer: str = "layer4", **options) -> TappedClassifier:
    torch.manual_seed(0)
    return TappedClassifier(TappedOptions(backbone=backbone, layer=layer, **options), (LABEL,)).eval()


def tap(model, images):
    """The layer's map, and the logits."""
    maps, predictions = model.tap(images, [FEATURES])
    return maps[FEATURES], predictions["label"]


@pytest.mark.slow
def test_vgg16_to_conv5_3_before_its_relu():
    model = TappedClassifier(TappedOptions(), (LABEL,)).eval()
    assert sum(p.numel() for p in model.parameters()) == 14_714_688 + 512 * 4 + 4  # VGG16's 13 convolutions, and the linear
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        features, logits = tap(model, images)
        x = (images - model.mean) / model.std
        convolutions = [m for m in model.backbone.features if isinstance(m, nn.Conv2d)]
        assert len(convolutions) == 13
        # Simonyan & Zisserman's configuration D, written out.
        for index, convolution in enumerate(convolutions):
            x = convolution(x)
            if index < 12:
                x = x.relu()
            if index in (1, 3, 6, 9):
                x = nn.functional.max_pool2d(x, 2)
        torch.testing.assert_close(features, x)
        assert features.shape == (1, 512, 4, 6) and features.min() < 0
        torch.testing.assert_close(logits, model.head(features.mean((2, 3))))
    names = {name for name in model.state_dict() if name.startswith("backbone.")}
    assert names == {
        f"backbone.features.{i}.{kind}" for i, m in enumerate(model.backbone.features) for kind, _ in m.named_parameters()
    }


@pytest.mark.parametrize(
    ("backbone", "layer", "channels", "stride_px"),
    [
        ("resnet18", "layer4", 512, 32),
        ("resnet18", "layer3", 256, 16),
        ("csat_nano", "stages.2", 96, 16),
        ("csat_nano", "stages.1", 48, 8),
        ("resnet10_gn", "layer4", 256, 32),
        ("efficientnet_b0", "blocks.4", 112, 16),
    ],
)
def test_any_backbone_by_the_name_of_its_layer(backbone, layer, channels, stride_px):
    model = make(backbone, layer)
    assert model.layers == {FEATURES: Layer(channels=channels, stride_px=stride_px, has_verdict=True)}
    assert (model.stride_px, model.step_px) == (stride_px, stride_px)
    seen = []
    whole = timm.create_model(backbone, num_classes=0).eval()
    whole.load_state_dict(model.backbone.state_dict(), strict=False)
    whole.get_submodule(layer).register_forward_hook(lambda _, __, output: seen.append(output))
    images = torch.rand(2, 3, 64, 128)
    with torch.no_grad():
        features, logits = tap(model, images)
        whole((images - model.mean) / model.std)
        torch.testing.assert_close(features, seen[0])
        torch.testing.assert_close(model(images)["label"], logits)
    assert features.shape == (2, channels, 64 // stride_px, 128 // stride_px) and logits.shape == (2, 4)


def test_every_parameter_gets_a_gradient():
    """DDP waits for each of them: what comes after the layer is gone."""
    model = make("resnet18", "layer3").train()
    model(torch.rand(2, 3, 64, 64))["label"].sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert not any(name.startswith("backbone.layer4") for name in model.state_dict())


def test_its_attention_maps_carry_second_derivatives():
    model = make("resnet10_gn", "layer4").train()
    features, logits = tap(model, torch.rand(2, 3, 64, 64))
    maps = attention_maps(features, logits, keep_graph=True)
    assert maps.shape == (2, 4, 2, 2)
    maps.sum().backward()
    assert model.head.weight.grad.abs().sum() > 0 and model.backbone.conv1.weight.grad.abs().sum() > 0


def test_probing_leaves_no_trace():
    """Neither in the batch statistics nor in the modes."""
    model = TappedClassifier(TappedOptions(backbone="resnet18", layer="layer3"), (LABEL,))
    statistics = [value for name, value in model.backbone.state_dict().items() if "running_mean" in name]
    assert statistics and not any(value.any() for value in statistics)
    assert all(module.training for module in model.modules())


def test_tiles_that_do_not_divide():
    model = make(downsample=4)
    model.check_tile(256)
    with pytest.raises(
        ConfigError, match="a cell per 32 px, and with downsample 4 one per 128 px.*set data.tile_px 256, not 224"
    ):
        model.check_tile(224)


@pytest.mark.parametrize(
    ("backbone", "layer", "words"),
    [
        ("resnet18", "layer9", ["no layer 'layer9'", "layer4", "stages end at act1, layer1, layer2, layer3, layer4"]),
        ("resnet18", "layer4.7", ["no layer 'layer4.7'", "layer4 holds 0, 1"]),
        ("resnet18", "layer4.1.conv2", ["cannot end at layer 'layer4.1.conv2'"]),  # a shortcut leads around it
        ("resnet18", "fc", ["cannot end at layer 'fc'"]),
        ("csat_nano", "stages.2.blocks.1", ["cannot end at layer 'stages.2.blocks.1'", "stages.0, stages.1, stages.2"]),
        ("vit_tiny_patch16_224", "blocks.11", ["[1, 25, 192]", "map [B, C, H, W]"]),
        ("resnet_18", "layer4", ["no model 'resnet_18'", "resnet18"]),
    ],
)
def test_layers_that_cannot_be_are_named(backbone, layer, words):
    with pytest.raises(ConfigError) as error:
        make(backbone, layer)
    for word in words:
        assert word in str(error.value)


def test_other_heads_are_refused():
    with pytest.raises(ConfigError, match="one head, for the tile as a whole, and was asked for: mask"):
        TappedClassifier(TappedOptions(backbone="resnet18", layer="layer4"), (MASK,))
    with pytest.raises(ConfigError, match="at least 1, not 0"):
        make(downsample=0)
