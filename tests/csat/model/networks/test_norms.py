"""Batch norm for maps of a single cell."""

import torch
from torch import nn

from csat.model.networks.norms import LoneBatchNorm2d


def test_it_is_batch_norm_but_for_a_single_value():
    torch.manual_seed(0)
    ours, theirs = LoneBatchNorm2d(3), nn.BatchNorm2d(3)
    for shape in ((2, 3, 1, 1), (1, 3, 2, 1)):
        x = torch.randn(shape)
        torch.testing.assert_close(ours(x), theirs(x))
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True))
    x = torch.randn(1, 3, 1, 1, requires_grad=True)
    torch.testing.assert_close(ours(x), theirs.eval()(x))
    assert int(ours.num_batches_tracked) == 2
    ours(x).sum().backward()
    assert x.grad.abs().min() > 0
    torch.testing.assert_close(ours.eval()(x), theirs(x))
