"""The resampling matrices against torch's own operators, and a gate that looks at its image."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from csat.model.networks.attention import ATTENTION_CELLS, SpatialAttention, pooling_matrix, resampling, upsampling_matrix

CPU = torch.device("cpu")


@settings(max_examples=40, deadline=None)
@given(size=st.integers(1, 80), cells=st.integers(1, 12))
def test_pooling_matrix_is_adaptive_average_pooling(size, cells):
    x = torch.randn(3, size)
    torch.testing.assert_close(x @ pooling_matrix(size, cells, CPU).T, F.adaptive_avg_pool1d(x[None], cells)[0])


@settings(max_examples=40, deadline=None)
@given(size=st.integers(1, 80), cells=st.integers(1, 12))
def test_upsampling_matrix_is_linear_interpolation(size, cells):
    x = torch.randn(3, cells)
    expected = F.interpolate(x[None], size=size, mode="linear", align_corners=False)[0]
    torch.testing.assert_close(x @ upsampling_matrix(cells, size, CPU).T, expected, atol=1e-5, rtol=1e-5)


def make_attention() -> SpatialAttention:
    """With weights of a size that training reaches, so that differences are not lost in rounding."""
    torch.manual_seed(0)
    attention = SpatialAttention(8)
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return attention


def test_gate_depends_on_the_image():
    attention, matrices = make_attention(), resampling(14, 20, ATTENTION_CELLS, CPU)
    x = torch.randn(2, 14, 20, 16)
    gate = attention(x, matrices)
    assert gate.shape == (2, 14, 20, 1)
    assert gate.min() > 0 and gate.max() < 1
    assert (gate[0] - gate[1]).abs().max() > 0.02  # another image, another gate
    assert gate[0].std() > 0.01  # and it differs from place to place
    torch.testing.assert_close(attention(x.flip(0), matrices), gate.flip(0))


def test_gate_reacts_everywhere_to_a_change_at_one_place():
    """It is attention, not a local filter: the 7x7 convolution alone cannot carry a corner to the opposite one."""
    attention, matrices = make_attention(), resampling(28, 28, ATTENTION_CELLS, CPU)
    x = torch.randn(1, 28, 28, 16)
    changed = x.clone()
    changed[:, :4, :4] += 3.0
    difference = (attention(changed, matrices) - attention(x, matrices)).abs()
    assert difference[0, -4:, -4:].min() > 1e-6


def test_gradient_reaches_the_input_and_every_weight():
    attention = make_attention()
    x = torch.randn(2, 9, 9, 4, requires_grad=True)
    attention(x, resampling(9, 9, ATTENTION_CELLS, CPU)).sum().backward()
    assert x.grad.abs().max() > 0
    assert all(parameter.grad.abs().max() > 0 for parameter in attention.parameters())


def test_one_channel_is_refused():
    with pytest.raises(ValueError, match="at least 2 channels"):
        SpatialAttention(1)
