import math

import pytest
import torch

from csat.losses.probability import soft_bce, soft_dice

LOSSES = (soft_bce, soft_dice)


def logit(probs: torch.Tensor) -> torch.Tensor:
    return torch.logit(probs)


def test_soft_bce_by_hand():
    # Student 1/2 everywhere: KL(q || 1/2) = log 2 - H(q). Targets 1 and 1/4.
    teacher = torch.tensor([1.0, 0.25]).view(1, 1, 1, 2)
    entropy = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    expected = (math.log(2) + (math.log(2) - entropy)) / 2
    torch.testing.assert_close(soft_bce(torch.zeros(1, 1, 1, 2), teacher), torch.tensor([expected]))


def test_soft_dice_by_hand():
    # p = 1/2, 1/2; q = 1, 0: 1 - (2 * 1/2 + 1) / (1/4 + 1/4 + 1 + 1) = 1 - 2 / 2.5
    teacher = torch.tensor([1.0, 0.0]).view(1, 1, 1, 2)
    torch.testing.assert_close(soft_dice(torch.zeros(1, 1, 1, 2), teacher), torch.tensor([0.2]))


@pytest.mark.parametrize("loss", LOSSES)
def test_zero_and_least_at_agreement_with_a_soft_target(loss):
    teacher = torch.rand(3, 1, 6, 6) * 0.98 + 0.01
    logits = logit(teacher).requires_grad_()
    value = loss(logits, teacher)
    torch.testing.assert_close(value, torch.zeros(3), atol=1e-6, rtol=0)
    value.sum().backward()
    torch.testing.assert_close(logits.grad, torch.zeros_like(logits), atol=1e-6, rtol=0)
    assert (loss(logits + 0.5, teacher) > 1e-3).all() and (loss(logits - 0.5, teacher) > 1e-3).all()


@pytest.mark.parametrize("loss", LOSSES)
def test_hard_targets_and_empty_tiles_are_finite(loss):
    teacher = torch.stack([torch.zeros(1, 4, 4), torch.ones(1, 4, 4)])
    logits = torch.full((2, 1, 4, 4), -60.0, requires_grad=True)
    value = loss(logits, teacher)
    assert value.isfinite().all() and value[0].abs() < 1e-6 and value[1] > 0.9
    value.sum().backward()
    assert logits.grad.isfinite().all()


def test_the_gradient_of_soft_bce_is_that_of_the_cross_entropy():
    teacher = torch.rand(2, 1, 3, 3)
    logits = torch.randn(2, 1, 3, 3, requires_grad=True)
    soft_bce(logits, teacher).sum().backward()
    torch.testing.assert_close(logits.grad, (logits.sigmoid() - teacher).detach() / 9)


@pytest.mark.parametrize("loss", LOSSES)
def test_gradient_reaches_the_student_and_not_the_teacher(loss):
    student = torch.zeros(2, 1, 4, 4, requires_grad=True)
    teacher = torch.rand(2, 1, 4, 4, requires_grad=True)
    loss(student, teacher).sum().backward()
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_left_at_the_door(loss, dtype):
    # 512 x 512 cells: sums beyond 65504 would overflow a float16.
    student = torch.randn(1, 1, 512, 512).to(dtype)
    teacher = torch.rand(1, 1, 512, 512).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(student, teacher)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(student.float(), teacher.float()))


@pytest.mark.parametrize("loss", LOSSES)
def test_one_value_per_tile_whatever_the_batch(loss):
    student, teacher = torch.randn(5, 1, 4, 4), torch.rand(5, 1, 4, 4)
    alone = torch.cat([loss(student[i : i + 1], teacher[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(loss(student, teacher), alone)


@pytest.mark.parametrize("loss", LOSSES)
def test_misfits_are_named(loss):
    with pytest.raises(ValueError, match=rf"{loss.__name__}.*\[1, 1, 4, 4\].*\[1, 1, 5, 5\]"):
        loss(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 5, 5))
    with pytest.raises(ValueError, match="not 2 channels"):
        loss(torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, 4))
