"""Any timm backbone: maps of odd sizes meet in the decoder, what cannot be used is refused by name before anything starts."""

import pytest
import torch

from csat.errors import ConfigError
from csat.model.networks.backbones import create_backbone
from csat.model.networks.feature_maps import find_size_px, levels_of, pooled_channels, probe, to_stride
from csat.model.student import Student, StudentConfig
from csat.responses import Kind, ResponseSpec
from tests.csat.model.survey_backbones import COLUMNS, LABEL, NP, SIZES_PX, TABLE, read_table, survey


@pytest.mark.parametrize(("backbone", "size_px"), [("mobilevitv2_050", 224), ("mobilevitv2_050", 270), ("inception_v3", 224)])
def test_maps_that_do_not_fit_each_other_are_resized(backbone, size_px):
    """MobileViT v2 gives 16 cells where its stride promises 14; Inception loses its borders, for it pads nothing."""
    student = Student(StudentConfig(backbone=backbone, decoder_channels=8), (NP, LABEL))
    padded_px = size_px + -size_px % student.stride_px
    maps = probe(student.backbone, levels_of(student.backbone), padded_px)[1]
    promised = [padded_px // stride_px for stride_px in levels_of(student.backbone)]
    assert [each.shape[-1] for each in maps] != promised
    student.check_tile(size_px)
    predictions = student.train()(torch.rand(2, 3, size_px, size_px))
    assert predictions["np"].shape == (2, 1, size_px // 2, size_px // 2)
    sum(prediction.square().mean() for prediction in predictions.values()).backward()
    assert all(p.grad.isfinite().all() for p in student.parameters() if p.requires_grad)


def test_resizing_keeps_the_place():
    """A ramp over the image stays that ramp, whatever the number of its cells; a map of the right size is left alone."""
    ramp = lambda n: ((torch.arange(n) + 0.5) / n).expand(1, 1, n, n).clone()  # noqa: E731
    inside = (..., slice(1, -1), slice(1, -1))
    for cells in (13, 15, 16):
        across, down = to_stride(ramp(cells), (224, 224), 16), to_stride(ramp(cells).mT, (224, 224), 16)
        torch.testing.assert_close(across[inside], ramp(14)[inside], atol=1e-5, rtol=0)
        torch.testing.assert_close(down[inside], ramp(14).mT[inside], atol=1e-5, rtol=0)
    same = ramp(14)
    assert to_stride(same, (224, 224), 16) is same
    assert to_stride(torch.ones(2, 3, 9, 5), (128, 64), 16).shape == (2, 3, 8, 4)


@pytest.mark.parametrize("shape", [(1, 8, 3, 3), (1, 8, 30, 14), (1, 196, 8)])
def test_maps_that_are_none_of_that_stride_are_refused(shape):
    with pytest.raises(ValueError, match="stride of 16 px.*14 x 14 cells were promised"):
        to_stride(torch.zeros(shape), (224, 224), 16)


def test_a_stride_that_the_finer_one_does_not_divide_is_left_out():
    backbone = create_backbone("csat_nano")
    backbone.feature_info = [{"reduction": stride_px} for stride_px in (2, 4, 6, 8, 8, 20, 32)]
    assert levels_of(backbone) == {4: 1, 8: 4, 32: 6}


def test_a_size_that_the_backbone_refuses():
    student = Student(StudentConfig(backbone="pit_ti_224", decoder_channels=8), (NP,))
    student.check_tile(224)
    with pytest.raises(ConfigError, match="backbone 'pit_ti_224' refuses images of 256 px .*set data.tile_px 224"):
        student.check_tile(256)


def test_a_backbone_that_runs_at_no_size(monkeypatch):
    with pytest.raises(ConfigError, match="'levit_128s' gives no feature maps.*at 224 px: its coarsest stride of 64 px"):
        Student(StudentConfig(backbone="levit_128s"), (NP,))
    backbone = create_backbone("csat_nano")
    monkeypatch.setattr(backbone, "forward_intermediates", lambda images, **_: (images, [images[..., ::2, ::2]] * 3))
    with pytest.raises(ConfigError, match=r"'csat_nano' gives no feature maps.*at 64 px: .*at 224 px: "):
        find_size_px(backbone, levels_of(backbone), name="csat_nano")


def test_a_backbone_that_does_not_pool(monkeypatch):
    backbone = create_backbone("csat_nano")
    last = probe(backbone, levels_of(backbone), 64)[0]
    assert pooled_channels(backbone, last) == backbone.head_hidden_size
    monkeypatch.setattr(backbone, "forward_head", lambda x, pre_logits: x)
    assert pooled_channels(backbone, last) is None
    embedding = ResponseSpec(name="embedding", kind=Kind.FEATURES, channels=4, stride_px=None)
    monkeypatch.setattr("csat.model.networks.feature_maps.pooled_channels", lambda backbone, last: None)
    with pytest.raises(ConfigError, match="'csat_nano' does not pool.*'embedding'"):
        Student(StudentConfig(backbone="csat_nano", decoder_channels=8), (embedding,))


class TestTable:
    """tests/csat/model/backbones.tsv, which survey_backbones.py makes."""

    def test_every_family_works_or_is_refused_with_a_reason(self):
        rows = read_table()
        assert len(rows) >= 80 and len({row["family"] for row in rows}) >= 60, TABLE
        for row in rows:
            cells = [row[column] for column in COLUMNS[3:-1]]
            assert set(cells) <= {"ok", "refused"}, row
            assert len(cells) == len(SIZES_PX) and ("refused" not in cells or row["reason"]), row

    @pytest.mark.parametrize("name", ["lcnet_035", "pit_ti_224"])
    def test_rows_are_what_comes_out_today(self, name):
        row = next(row for row in read_table() if row["architecture"] == name)
        assert survey(name) == row
