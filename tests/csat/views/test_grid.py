"""Alignment and downsampling: exact at any offset, deterministic, and alike under symmetries."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from csat.errors import ConfigError
from csat.responses import Kind, ResponseSpec, Symmetry
from csat.views.grid import align, downsample
from csat.views.symmetries import (
    apply_d4,
)


def dense(**changes) -> ResponseSpec:
    return ResponseSpec(**{"name": "np", "kind": Kind.PROBABILITY, "channels": 1} | changes)


class TestAlign:
    @settings(max_examples=60, deadline=None)
    @given(
        num_cells=st.integers(2, 30),
        stride_px=st.integers(1, 9),
        crop_px=st.integers(0, 40),
        cell_px=st.sampled_from([1, 2, 4, 8]),
        slope=st.floats(-2, 2),
    )
    def test_a_ramp_over_the_tile_is_the_ramp_at_the_response(self, num_cells, stride_px, crop_px, cell_px, slope):
        covered_px = num_cells * stride_px
        tile_px = covered_px + 2 * crop_px
        assume(tile_px % cell_px == 0)
        spec = dense(stride_px=stride_px, crop_px=crop_px)
        at_prediction = (torch.arange(tile_px // cell_px) + 0.5) * cell_px  # centres of cells, in tile pixels
        at_response = crop_px + (torch.arange(num_cells) + 0.5) * stride_px
        ramp = (slope * at_prediction[:, None] + at_prediction[None]).view(1, 1, *[len(at_prediction)] * 2)
        aligned = align(ramp, spec, tile_px)[0, 0]
        expected = slope * at_response[:, None] + at_response[None]
        # Beyond the first and the last centre of the prediction its own border continues.
        inside = (at_response >= at_prediction[0]) & (at_response <= at_prediction[-1])
        torch.testing.assert_close(aligned[inside][:, inside], expected[inside][:, inside], atol=1e-3, rtol=1e-5)

    def test_fractional_offsets(self):
        # 256 px tile, HoVer-Net's fast crop of 46 px; prediction at stride 3.2 (80 cells): no cell starts where the crop does.
        ramp = ((torch.arange(80) + 0.5) * 3.2).expand(1, 1, 80, 80)
        aligned = align(ramp, dense(crop_px=46), 256)
        assert aligned.shape == (1, 1, 164, 164)
        torch.testing.assert_close(aligned[0, 0, 0], 46.5 + torch.arange(164.0))

    @pytest.mark.parametrize(("size", "n"), [(8, 16), (8, 8), (5, 15), (32, 16)])
    def test_agrees_with_torch_on_the_whole_tile(self, size, n):
        prediction = torch.randn(2, 3, size, size)
        expected = F.interpolate(prediction, size=(n, n), mode="bilinear", align_corners=False)
        torch.testing.assert_close(align(prediction, dense(stride_px=240 // n), 240), expected, atol=1e-5, rtol=1e-5)

    def test_a_coarser_response_takes_every_cell_into_account(self):
        one_hot = torch.eye(8).view(8, 1, 1, 8).expand(8, 1, 8, 8)
        weights = align(one_hot, dense(stride_px=4), 8)[:, 0, 0]
        torch.testing.assert_close(weights.T, torch.tensor([[1.0, 2, 2, 1, 0, 0, 0, 0], [0, 0, 0, 0, 1, 2, 2, 1]]) / 6)

    def test_the_same_grid_is_untouched_and_gradients_pass(self):
        prediction = torch.randn(1, 2, 6, 6, requires_grad=True)
        aligned = align(prediction, dense(stride_px=2, crop_px=4), 12 + 8)
        assert aligned.shape == (1, 2, 6, 6)
        same = align(prediction, dense(stride_px=2), 12)
        assert torch.equal(same, prediction)
        same.sum().backward()
        assert torch.equal(prediction.grad, torch.ones(1, 2, 6, 6))

    def test_an_evaluation_before_does_not_break_training(self):
        prediction = torch.randn(1, 1, 7, 7)
        with torch.inference_mode():
            align(prediction, dense(crop_px=3), 28)
        prediction.requires_grad_()
        align(prediction, dense(crop_px=3), 28).sum().backward()
        assert prediction.grad.abs().sum() > 0

    def test_commutes_with_the_symmetries(self):
        prediction, index, spec = torch.randn(8, 2, 10, 10), torch.arange(8), dense(stride_px=3, crop_px=4)
        after = apply_d4(align(prediction, spec, 20), index, Symmetry.HV)
        before = align(apply_d4(prediction, index, Symmetry.HV), spec, 20)
        torch.testing.assert_close(before, after)

    def test_half_precision_comes_back_whole(self):
        prediction = torch.randn(1, 1, 16, 16)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            aligned = align(prediction, dense(), 32)
        assert aligned.dtype == torch.float32
        torch.testing.assert_close(aligned, align(prediction, dense(), 32))
        assert align(prediction.half(), dense(), 32).dtype == torch.float32

    def test_global_predictions_pass_and_misfits_are_named(self):
        vector = torch.randn(2, 5)
        assert align(vector, dense(stride_px=None, channels=5), 32) is vector
        with pytest.raises(ConfigError, match="'np' covers 12 px"):
            align(torch.zeros(1, 1, 8, 8), dense(stride_px=5, crop_px=2), 16)


class TestDownsample:
    def test_is_the_mean_over_squares(self):
        images = torch.tensor([[0.0, 1, 2, 3], [4, 5, 6, 7]]).view(1, 1, 2, 4)
        assert torch.equal(downsample(images, 2), torch.tensor([[2.5, 4.5]]).view(1, 1, 1, 2))
        assert downsample(images, 1) is images

    def test_refuses_a_remainder(self):
        with pytest.raises(ValueError, match="10 x 10 px cannot be shrunk 4 times"):
            downsample(torch.zeros(1, 3, 10, 10), 4)
