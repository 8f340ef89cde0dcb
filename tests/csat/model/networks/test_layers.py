"""Layers that compute otherwise where that is faster: the same numbers and gradients, within the format's rounding."""

import pytest
import torch
import torch.nn.functional as F

from csat.model.networks.csat import _sum_of_squares, make_csat
from csat.model.networks.layers import MOST_TOKENS, DepthwiseConv2d, LayerNorm, LayerNorm2d, attend


def bfloat16():
    return torch.autocast("cpu", torch.bfloat16)


@pytest.mark.parametrize("layer", [DepthwiseConv2d(8, 5), LayerNorm2d(8), LayerNorm(8)])
def test_under_autocast_it_is_float32_and_the_same(layer):
    x = torch.randn(2, 8, 8, 8, requires_grad=True)
    expected = layer(x)
    with bfloat16():
        rounded = layer(x.bfloat16())
        got = layer(x)
    assert got.dtype == rounded.dtype == torch.float32
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
    torch.testing.assert_close(rounded, expected, rtol=0.03, atol=0.03)
    got.sum().backward()
    assert x.grad.dtype == torch.float32


def test_a_network_in_bfloat16_keeps_it_as_it_is():
    x = torch.randn(2, 8, 8, 8, dtype=torch.bfloat16)
    for layer in (DepthwiseConv2d(8, 5, dtype=torch.bfloat16), LayerNorm2d(8, dtype=torch.bfloat16)):
        assert layer(x).dtype == torch.bfloat16


@pytest.mark.parametrize("tokens", [49, MOST_TOKENS + 1])
def test_attention_is_that_of_torch(tokens):
    given = [torch.randn(2, 3, tokens, 8) for _ in range(3)]
    expected = [each.clone().requires_grad_() for each in given]
    F.scaled_dot_product_attention(*expected).square().sum().backward()
    with bfloat16():
        got = [each.bfloat16().requires_grad_() for each in given]
        out = attend(*got)
        assert out.dtype == torch.bfloat16
        out.float().square().sum().backward()
    for mine, its in zip(got, expected, strict=True):
        torch.testing.assert_close(mine.grad.float(), its.grad, rtol=0.05, atol=0.05)


def test_the_sum_of_squares_has_the_gradient_of_the_sum_of_squares():
    x = torch.randn(2, 30, 4, requires_grad=True)
    weights = torch.randn(2, 1, 4)
    (gradient,) = torch.autograd.grad((_sum_of_squares(x) * weights).sum(), x)
    (expected,) = torch.autograd.grad(((x * x).sum(1, keepdim=True) * weights).sum(), x)
    torch.testing.assert_close(gradient, expected)
    with torch.no_grad():
        torch.testing.assert_close(_sum_of_squares(x), (x * x).sum(1, keepdim=True))


def test_csat_learns_in_bfloat16_what_it_learns_in_float32():
    torch.manual_seed(0)
    model, images = make_csat("csat_nano", num_classes=5), torch.rand(4, 3, 64, 64)
    grads = []
    for enabled in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            out = model(images)
        F.cross_entropy(out.float(), torch.arange(4)).backward()
        grads.append(torch.cat([each.grad.flatten() for each in model.parameters()]))
    assert F.cosine_similarity(*grads, dim=0) > 0.99
