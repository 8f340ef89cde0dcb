import pytest
import torch

from csat.losses.rms import rms_distance


def test_by_hand():
    student = torch.tensor([[3.0, 0.0], [0.0, 1.0]]).view(2, 1, 1, 2)
    teacher = torch.tensor([[0.0, 4.0], [0.0, 1.0]]).view(2, 1, 1, 2)
    torch.testing.assert_close(rms_distance(student, teacher), torch.tensor([12.5**0.5, 0.0]))


def test_a_smaller_map_is_interpolated():
    # Two cells (0, 4) to four, cell centres: 0, 1, 3, 4.
    student = torch.tensor([0.0, 4.0]).view(1, 1, 1, 2)
    teacher = torch.tensor([0.0, 1.0, 3.0, 8.0]).view(1, 1, 1, 4)
    torch.testing.assert_close(rms_distance(student, teacher), torch.tensor([2.0]))


def test_zero_at_agreement_with_a_gradient_of_zero():
    maps = torch.randn(2, 3, 4, 4, requires_grad=True)
    value = rms_distance(maps, maps.detach().clone())
    assert torch.equal(value, torch.zeros(2))
    value.sum().backward()
    assert torch.equal(maps.grad, torch.zeros_like(maps))


def test_one_value_per_tile_whatever_the_batch():
    student, teacher = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 8, 8)
    alone = torch.cat([rms_distance(student[i : i + 1], teacher[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(rms_distance(student, teacher), alone)


def test_gradient_reaches_the_student_and_not_the_teacher():
    student, teacher = torch.randn(2, 3, 2, 2, requires_grad=True), torch.randn(2, 3, 4, 4, requires_grad=True)
    rms_distance(student, teacher).sum().backward()
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_left_at_the_door(dtype):
    student, teacher = ((300 * torch.randn(2, 3, *size)).to(dtype) for size in ((4, 4), (8, 8)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = rms_distance(student, teacher)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, rms_distance(student.float(), teacher.float()))


def test_misfits_are_named():
    with pytest.raises(ValueError, match=r"rms_distance.*\[1, 3, 4, 4\].*\[1, 2, 4, 4\]"):
        rms_distance(torch.zeros(1, 3, 4, 4), torch.zeros(1, 2, 4, 4))
