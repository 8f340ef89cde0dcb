"""Resolution-based distillation with a real student: its last map, its gradients, its files, the saving, its sizes."""

from dataclasses import replace

import pytest
import timm
import torch
from torch import Tensor, nn

from csat.errors import ConfigError
from csat.methods.contract import Setting
from csat.methods.registry import build_method, build_student
from csat.methods.resolution import Resolution
from csat.model.cost import count_cost
from csat.model.files import load_model, save_model
from csat.model.parts import BACKBONE, DECODER, HEADS
from csat.model.student import Student, StudentConfig
from csat.model.transfer import transfer
from csat.responses import Batch, Kind, ResponseSpec
from tests.csat.methods.resolution import FEATURES, LOGITS, make_batch, make_teacher


class TestTheRealStudent:
    TEACHER = make_teacher(LOGITS, replace(FEATURES, channels=256, stride_px=32))

    def build(self, backbone: str = "resnet10_gn", downsample: int = 2, tile_px: int = 128, **options) -> Resolution:
        torch.manual_seed(0)
        config = StudentConfig(backbone=backbone, downsample=downsample)
        student = build_student("resolution", options, config, self.TEACHER)
        return build_method("resolution", options, student, Setting(tile_px=tile_px, teacher=self.TEACHER))

    def batch(self, num_tiles: int = 2, tile_px: int = 128) -> Batch:
        return make_batch(num_tiles, self.TEACHER.responses, (tile_px, tile_px))

    def test_its_features_are_the_last_map_of_its_backbone_as_in_the_paper(self):
        student = self.build().student.eval()
        backbone = timm.create_model("resnet10_gn", num_classes=0).eval()
        backbone.load_state_dict(student.backbone.state_dict())
        images = torch.rand(1, 3, 64, 96)
        with torch.no_grad():
            predictions = student(images)
            torch.testing.assert_close(
                predictions["features"], backbone.forward_features((images - student.mean) / student.std), atol=1e-5, rtol=1e-4
            )
        assert list(student.heads["features"].parameters()) == []
        head = student.heads["label"].fc
        torch.testing.assert_close(predictions["label"], head(predictions["features"].mean((2, 3))), atol=1e-5, rtol=1e-4)

    def test_another_backbone_has_a_convolution_to_the_teachers_channels(self):
        student = self.build("csat_nano").student
        assert isinstance(student.heads["features"], nn.Conv2d)
        assert student(torch.rand(1, 3, 64, 64))["features"].shape == (1, 256, 4, 4)

    @pytest.mark.parametrize("backbone", ["resnet10_gn", "csat_nano"])
    def test_every_parameter_gets_a_gradient(self, backbone):
        method = self.build(backbone)
        method.total(method(self.batch())).sum().backward()
        assert [name for name, p in method.named_parameters() if p.requires_grad and p.grad is None] == []
        assert not any(p.requires_grad for p in method.student.decoder.parameters())

    def test_it_learns_a_fixed_batch(self):
        method, batch = self.build("csat_nano"), self.batch()
        before = method(batch)
        optimiser = torch.optim.Adam(method.part("student").parameters(), lr=1e-3)
        for _ in range(10):
            optimiser.zero_grad()
            method.total(method(batch)).mean().backward()
            optimiser.step()
        after = method(batch)
        assert all(after[name].mean() < before[name].mean() for name in before)

    def test_it_is_stored_and_loaded(self, tmp_path):
        student = self.build("csat_nano").student.eval()
        save_model(student, str(tmp_path), {})
        loaded, images = load_model(str(tmp_path)), torch.rand(1, 3, 64, 64)
        assert loaded.last_map == ("features",)
        with torch.no_grad():
            for name, prediction in student(images).items():
                assert torch.equal(loaded(images)[name], prediction)

    def test_the_next_task_takes_the_backbone_and_a_fresh_decoder(self):
        student, nuclei = self.build("csat_nano").student, (ResponseSpec(name="np", kind=Kind.PROBABILITY, channels=1),)
        following = Student(StudentConfig(backbone="csat_nano"), nuclei)
        moved = transfer(student, following, parts=(BACKBONE, DECODER, HEADS), source_name="a run")
        assert set(moved) == {"mean", "std", *following.tensors_of(BACKBONE)}, "the decoder never learned anything"
        assert following.last_map == () and following.step_px == 2
        assert all(p.requires_grad for p in following.decoder.parameters())

    @pytest.mark.parametrize("backbone", ["resnet10_gn", "resnet18"])
    def test_halving_the_resolution_saves_four_times(self, backbone):
        """At 1/2, 1/4 and 1/8 the student multiplies 4, 16 and 64 times less, heads included."""
        macs = []
        for factor in (1, 2, 4, 8):
            student = Student(StudentConfig(backbone=backbone, downsample=factor), (LOGITS,)).eval()
            macs.append(count_cost(_Only(student), (1, 3, 512 // factor, 512 // factor))["macs"])
        assert [macs[0] / each for each in macs[1:]] == pytest.approx([4, 16, 64], rel=2e-3)

    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            ({"downsample": 3}, "multiple of 96 px .*downsample 3.*not 128 px: set data.tile_px to 96 or 192"),
            ({"downsample": 8}, "multiple of 256 px .*stride 32 x downsample 8.*not 128 px: set data.tile_px to 256"),
            ({"tile_px": 96, "downsample": 1, "backbone": "resnet_10"}, "no model 'resnet_10'"),
        ],
    )
    def test_a_tile_that_the_factor_does_not_divide(self, settings, words):
        with pytest.raises(ConfigError, match=words):
            self.build(**settings)


class _Only(nn.Module):
    def __init__(self, student: Student):
        super().__init__()
        self.student = student

    def forward(self, images: Tensor) -> Tensor:
        return self.student(images)["label"]
