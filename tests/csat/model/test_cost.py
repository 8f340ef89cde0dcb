"""Counts worked out by hand."""

import time

import torch.nn.functional as F
from torch import nn

from csat.model.cost import count_cost, measure_speed


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


def test_the_speed_is_that_of_a_batch_and_leaves_the_modes_alone():
    class Slow(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(3).eval()
            self.fc = nn.Linear(1, 1)

        def forward(self, images):
            assert not self.training
            time.sleep(0.02)
            return images

    module = Slow().train()
    module.norm.eval()
    assert 20 < measure_speed(module, (4, 3, 8, 8), most_s=0.1) <= 200
    assert module.training and not module.norm.training
