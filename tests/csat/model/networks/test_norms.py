"""Batch norm for maps of a single cell, and group norm of channels-last maps."""

import copy
import pickle

import pytest
import torch
from torch import nn

from csat.model.networks.norms import LoneBatchNorm2d, guard_norms
from csat.model.student import Student, StudentConfig
from csat.responses import Kind, ResponseSpec


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


@pytest.mark.parametrize("mean", [0.0, 6.0, 20.0])
def test_group_norm_is_right_in_any_order_of_memory(mean):
    torch.manual_seed(0)
    norm, x = nn.GroupNorm(32, 64), torch.randn(2, 64, 16, 16) + mean
    expected = copy.deepcopy(norm).double()(x.double()).float()
    guard_norms(norm)
    guard_norms(norm)
    assert len(norm._forward_pre_hooks) == 1
    for guarded in (norm, copy.deepcopy(norm), pickle.loads(pickle.dumps(norm))):
        said = guarded(x.contiguous(memory_format=torch.channels_last))
        torch.testing.assert_close(said, expected, atol=5e-6, rtol=0)
        assert torch.equal(guarded(x), nn.GroupNorm(32, 64)(x)), "in plain memory nothing is to be mended"


def test_the_gradient_of_a_group_norm_is_that_of_plain_memory():
    torch.manual_seed(0)
    norm, x, weight = nn.GroupNorm(4, 8), torch.randn(2, 8, 5, 5) + 20, torch.randn(2, 8, 5, 5)
    guard_norms(norm)
    gradients = []
    for layout in (torch.contiguous_format, torch.channels_last):
        leaf = x.clone(memory_format=layout).requires_grad_()
        (norm(leaf) * weight).sum().backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients, atol=2e-5, rtol=0)


def test_students_with_group_norms_say_the_same_in_any_order_of_memory():
    """Their first norm sees maps whose mean is far from zero: a stem's bias has grown in training."""
    torch.manual_seed(0)
    response = ResponseSpec(name="np", kind=Kind.PROBABILITY, channels=1)
    said = []
    for channels_last in (False, True):
        torch.manual_seed(1)
        student = Student(StudentConfig(backbone="resnet10_gn", channels_last=channels_last), (response,)).eval()
        student.backbone.conv1.bias = nn.Parameter(torch.full((32,), 40.0))
        with torch.inference_mode():
            said.append(student(torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(2)))["np"])
    torch.testing.assert_close(*said, atol=2e-5, rtol=1e-5)
