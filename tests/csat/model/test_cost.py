"""Counts worked out by hand."""

import torch.nn.functional as F
from torch import nn

from csat.model.cost import count_cost


def test_convolution_and_linear():
    module = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Flatten())
    module.append(nn.Linear(8 * 16, 5))
    cost = count_cost(module, (1, 3, 4, 4))
    assert cost["params"] == 3 * 8 * 9 + 8 * 9 + 8 + 128 * 5 + 5
    assert cost["macs"] == 16 * 8 * 27 + 16 * 8 * 9 + 128 * 5
    assert count_cost(module, (2, 3, 4, 4))["macs"] == 2 * cost["macs"]


def test_attention_is_counted():
    class Attention(nn.Module):
        def forward(self, x):
            return F.scaled_dot_product_attention(x, x, x)

    assert count_cost(Attention(), (1, 2, 10, 16)) == {"params": 0, "macs": 2 * (2 * 10 * 10 * 16)}
