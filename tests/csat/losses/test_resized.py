import pytest
import torch

from csat.losses.resized import RESIZES, resized_error


def test_by_hand():
    # 2x2 to 1x1: the maximum is 4; bicubic at the centre weighs (9, 9) / 16 and (-1, -1) / 16, which on two cells and repeated
    # borders is a half each, so the mean of the four: 2.5.
    teacher = torch.tensor([[1.0, 2.0], [3.0, 4.0]])[None, None]
    student = torch.full((1, 1, 1, 1), 2.0)
    expected = {"max_pool": 4.0, "bicubic": 0.25, "both": 2.125}
    for resize, value in expected.items():
        torch.testing.assert_close(resized_error(student, teacher, resize), torch.tensor([value]))


def test_both_is_the_mean_of_the_two():
    student, teacher = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 16, 20)
    halves = [resized_error(student, teacher, resize) for resize in ("max_pool", "bicubic")]
    torch.testing.assert_close(resized_error(student, teacher), sum(halves) / 2)


@pytest.mark.parametrize("resize", RESIZES)
def test_zero_at_agreement(resize):
    maps = torch.randn(2, 3, 5, 7)
    torch.testing.assert_close(resized_error(maps, maps, resize), torch.zeros(2), atol=1e-6, rtol=0)
    flat = torch.randn(2, 3, 1, 1)
    torch.testing.assert_close(
        resized_error(flat.expand(2, 3, 2, 3), flat.expand(2, 3, 8, 8), resize), torch.zeros(2), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("sizes", [((1, 1), (8, 8)), ((3, 5), (7, 11)), ((4, 4), (2, 2)), ((2, 9), (16, 9))])
def test_any_two_sizes(resize, sizes):
    student, teacher = torch.randn(2, 3, *sizes[0]), torch.randn(2, 3, *sizes[1])
    value = resized_error(student, teacher, resize)
    assert value.shape == (2,) and (value > 0).all()
    alone = torch.cat([resized_error(student[i : i + 1], teacher[i : i + 1], resize) for i in range(2)])
    torch.testing.assert_close(value, alone)


def test_gradient_reaches_the_student_and_not_the_teacher():
    student, teacher = torch.randn(2, 3, 2, 2, requires_grad=True), torch.randn(2, 3, 8, 8, requires_grad=True)
    resized_error(student, teacher).sum().backward()
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_left_at_the_door(dtype):
    student, teacher = ((300 * torch.randn(2, 3, *size)).to(dtype) for size in ((2, 2), (8, 8)))  # a square overflows float16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = resized_error(student, teacher)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, resized_error(student.float(), teacher.float()))


def test_misfits_are_named():
    with pytest.raises(ValueError, match=r"resized_error.*\[1, 3, 2, 2\].*\[1, 4, 8, 8\].*same B and C"):
        resized_error(torch.zeros(1, 3, 2, 2), torch.zeros(1, 4, 8, 8))
    with pytest.raises(ValueError, match="maps"):
        resized_error(torch.zeros(1, 3), torch.zeros(1, 3))
    with pytest.raises(ValueError, match="one of max_pool, bicubic, both, not 'nearest'"):
        resized_error(torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 2), "nearest")
