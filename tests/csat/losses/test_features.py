import pytest
import torch

from csat.losses.features import cosine_distance


def test_by_hand():
    teacher = torch.tensor([[1.0, 0.0]])
    for student, expected in (([3.0, 4.0], 0.4), ([0.0, 2.0], 1.0), ([-5.0, 0.0], 2.0)):
        torch.testing.assert_close(cosine_distance(torch.tensor([student]), teacher), torch.tensor([expected]))


def test_a_map_is_averaged_over_its_cells():
    student = torch.tensor([[3.0, 0.0], [4.0, 2.0]]).view(1, 2, 1, 2)  # cells (3, 4) and (0, 2)
    teacher = torch.tensor([[1.0, 1.0], [0.0, 0.0]]).view(1, 2, 1, 2)
    torch.testing.assert_close(cosine_distance(student, teacher), torch.tensor([0.7]))


def test_zero_at_agreement_whatever_the_scale():
    features = torch.randn(3, 8, 2, 2)
    torch.testing.assert_close(cosine_distance(7 * features, features), torch.zeros(3), atol=1e-6, rtol=0)


def test_gradient_reaches_the_student_and_not_the_teacher():
    student, teacher = torch.randn(2, 8, requires_grad=True), torch.randn(2, 8, requires_grad=True)
    cosine_distance(student, teacher).sum().backward()
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None


def test_a_vector_of_zeros_has_a_finite_loss_and_gradient():
    student = torch.zeros(1, 4, requires_grad=True)
    value = cosine_distance(student, torch.ones(1, 4))
    value.sum().backward()
    assert value.item() == 1 and student.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_left_at_the_door(dtype):
    student, teacher = ((100 * torch.randn(2, 1536)).to(dtype) for _ in range(2))  # a squared norm overflows a float16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = cosine_distance(student, teacher)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, cosine_distance(student.float(), teacher.float()))


def test_misfits_are_named():
    with pytest.raises(ValueError, match=r"cosine_distance.*\[1, 8\].*\[1, 9\]"):
        cosine_distance(torch.zeros(1, 8), torch.zeros(1, 9))
