import pytest
import torch

from csat.losses.regression import squared_error


def test_by_hand():
    student = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    teacher = torch.tensor([[0.0, 4.0], [0.0, 3.0]])
    torch.testing.assert_close(squared_error(student, teacher), torch.tensor([2.5, 4.5]))


def test_zero_at_agreement():
    maps = torch.randn(2, 2, 3, 3)
    assert torch.equal(squared_error(maps, maps), torch.zeros(2))


def test_gradient_reaches_the_student_and_not_the_teacher():
    student, teacher = torch.zeros(1, 2, 2, 2, requires_grad=True), torch.ones(1, 2, 2, 2, requires_grad=True)
    squared_error(student, teacher).sum().backward()
    torch.testing.assert_close(student.grad, torch.full((1, 2, 2, 2), -0.25))
    assert teacher.grad is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_left_at_the_door(dtype):
    student, teacher = (300 * torch.randn(1, 2, 64, 64)).to(dtype), torch.zeros(1, 2, 64, 64, dtype=dtype)
    value = squared_error(student, teacher)  # a square of 300 alone overflows a float16
    assert value.dtype == torch.float32 and value.isfinite().all()
    torch.testing.assert_close(value, squared_error(student.float(), teacher.float()))


def test_misfits_are_named():
    with pytest.raises(ValueError, match=r"squared_error.*\[1, 2, 4, 4\].*\[1, 2, 5, 5\]"):
        squared_error(torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 5, 5))
