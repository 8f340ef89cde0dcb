"""Freezing, and learning rates by layer: every weight of every model has its place."""

import pytest
import torch
from torch import nn

from csat.errors import ConfigError
from csat.model.parts import BACKBONE, DECODER, HEADS
from csat.model.student import Student, StudentConfig
from csat.responses import Kind, ResponseSpec
from csat.tasks import Task
from tests.csat.model.test_registry import CASES, DENSE, build

LABEL = ResponseSpec(name="label", kind=Kind.LOGITS, channels=2, stride_px=None)
MASK = ResponseSpec(name="mask", kind=Kind.LOGITS, channels=2)


def student(backbone, responses=(MASK, LABEL), **options):
    return Student(StudentConfig(backbone=backbone, decoder_channels=8, **options), responses)


class TestFreeze:
    @pytest.mark.parametrize(("name", "task"), DENSE.items())
    def test_frozen_parts_stay_in_evaluation_mode(self, name, task):
        model = build(name, task)
        model.freeze((BACKBONE,))
        for mode in (True, False, True):
            model.train(mode)
            for part, expected in ((BACKBONE, False), (DECODER, mode), (HEADS, mode)):
                assert {m.training for module in model.parts()[part] for m in module.modules()} == {expected}
            assert model.training == mode

    def test_so_do_those_inside_another_module(self):
        """The loop trains a method, and sets the mode of the whole of it."""
        model = build("unet", Task.NUCLEI)
        model.freeze((BACKBONE,))
        nn.ModuleList([model]).eval().train()
        assert model.training and not model.encoder.training and model.decoder.training

    @pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0"])
    def test_frozen_norms_keep_their_statistics(self, name):
        model = student(name)
        model.freeze((BACKBONE,))
        before = {key: tensor.clone() for key, tensor in model.backbone.state_dict().items()}
        model.train()(torch.rand(2, 3, 64, 64))
        assert all(torch.equal(tensor, before[key]) for key, tensor in model.backbone.state_dict().items())

    def test_a_frozen_backbone_drops_no_block(self):
        model = student("csat_nano", drop_path=0.9)
        model.freeze((BACKBONE,))
        x = torch.rand(2, 3, 64, 64)
        with torch.no_grad():
            torch.testing.assert_close(model.train().backbone(x), model.eval().backbone(x))

    def test_what_no_head_reaches_stays_frozen(self):
        model = student("csat_nano", (MASK,))
        unused = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
        model.freeze((DECODER,))
        frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
        assert unused and frozen == unused | {name for name, _ in model.named_parameters() if name.startswith("decoder.")}

    def test_no_gradient_is_computed_in_a_frozen_backbone(self):
        model = student("csat_nano", grad_checkpointing=True)
        model.freeze((BACKBONE,))
        predictions = model.train()(torch.rand(2, 3, 64, 64))
        sum(prediction.square().mean() for prediction in predictions.values()).backward()
        assert all(parameter.grad is None for parameter in model.backbone.parameters())
        assert all(
            parameter.grad is not None
            for part in (DECODER, HEADS)
            for m in model.parts()[part]
            for parameter in m.parameters()
        )


class TestLearningRates:
    @pytest.mark.parametrize(("name", "task"), CASES)
    def test_every_trainable_weight_has_one(self, name, task):
        model = build(name, task)
        scales = model.lr_scales(0.5, 3.0)
        assert scales.keys() == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        trainable = {part: scales.keys() & model.tensors_of(part).keys() for part in (BACKBONE, DECODER, HEADS)}
        assert {scales[name] for name in trainable[HEADS]} == {3.0}
        assert {scales[name] for name in trainable[DECODER]} <= {1.0}
        depths = sorted({scales[name] for name in trainable[BACKBONE]}, reverse=True)
        assert depths == [0.5**depth for depth in range(1, len(depths) + 1)] and len(depths) >= 3

    @pytest.mark.parametrize(
        "backbone", ["csat", "csatv2", "resnet18", "efficientnet_b0", "convnextv2_atto", "vit_tiny_patch16_224"]
    )
    def test_deeper_layers_learn_faster_in_any_backbone(self, backbone):
        model = student(backbone, (LABEL,))
        scales = {name: scale for name, scale in model.lr_scales(0.5, 1.0).items() if name.startswith("backbone.")}
        names = [name for name, _ in model.named_parameters() if name in scales]  # in the order of their making
        first, last = scales[names[0]], scales[names[-1]]
        assert first == min(scales.values()) and last == max(scales.values()) == 0.5
        assert len(set(scales.values())) >= 4

    def test_the_layers_of_csat(self):
        model = student("csat_nano", (LABEL,))
        layers = model.backbone_layers()
        assert layers.keys() == {name for name, _ in model.named_parameters() if name.startswith("backbone.")}
        by_layer = {}
        for name, layer in layers.items():
            by_layer.setdefault(layer, set()).add(".".join(name.split(".")[1:5]))
        assert {name.split(".")[0] for name in by_layer[0]} == {"stem"}
        assert all(name.startswith("stages.0.blocks.0") for name in by_layer[1])
        assert {name.split(".")[0] for name in by_layer[max(by_layer)]} == {"head"}
        assert len(by_layer) == 1 + 2 + 2 + 3 + 1  # stem, blocks of three stages, the head's norm

    def test_the_layers_of_unet_and_hovernet_are_their_stages(self):
        unet, hovernet = (build(name, Task.NUCLEI).lr_scales(0.5, 1.0) for name in ("unet", "hovernet"))
        assert [unet[f"encoder.{level}.0.weight"] for level in range(3)] == [0.125, 0.25, 0.5]
        stages = ["conv0./", "d0.shortcut", "d1.shortcut", "d2.shortcut", "d3.shortcut", "conv_bot"]
        assert [hovernet[f"net.{stage}.weight"] for stage in stages] == [0.5**depth for depth in (6, 5, 4, 3, 2, 1)]

    def test_no_decay_leaves_all_alike(self):
        assert set(build("csat_nano", Task.NUCLEI).lr_scales(1.0, 1.0).values()) == {1.0}

    def test_frozen_layers_do_not_count(self):
        model = build("unet", Task.NUCLEI)
        model.freeze((BACKBONE,))
        assert set(model.lr_scales(0.5, 1.0).values()) == {1.0}

    def test_a_backbone_of_one_layer(self, monkeypatch):
        model = student("csat_nano")
        monkeypatch.setattr(type(model.backbone), "group_matcher", lambda self, coarse=False: {"all": "^"})
        with pytest.raises(
            ConfigError, match="cannot tell the layers of 'csat_nano' apart: leave out train.optim.layer_decay"
        ):
            model.lr_scales(0.5, 1.0)
