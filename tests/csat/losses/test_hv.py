import pytest
import torch

from csat.losses.hv import hv_gradient_error
from csat.responses import Symmetry
from csat.views.symmetries import apply_d4


def ramps(size: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    rows, columns = torch.meshgrid(torch.arange(float(size)), torch.arange(float(size)), indexing="ij")
    return rows, columns


def disc(size: int = 9, radius: float = 2) -> torch.Tensor:
    rows, columns = ramps(size)
    return ((rows - size // 2) ** 2 + (columns - size // 2) ** 2 <= radius**2).float()[None, None]


def test_by_hand_the_horizontal_map_is_differentiated_along_x_and_the_vertical_along_y():
    # sum of x^2 / (x^2 + y^2) over 5x5 less its centre: with the same of y it makes 24, so 12. A slope of 1/10 answers 1.2.
    rows, columns = ramps()
    teacher = torch.zeros(1, 2, 9, 9)
    h_along_x = torch.stack([columns / 10, torch.zeros(9, 9)])[None]
    v_along_y = torch.stack([torch.zeros(9, 9), rows / 10])[None]
    for student in (h_along_x, v_along_y):  # one of the two channels: half of 1.2 squared
        torch.testing.assert_close(hv_gradient_error(student, teacher, disc()), torch.tensor([1.44 / 2]))
    crossed = torch.stack([rows, columns])[None]  # h along y, v along x: not what the term looks at
    torch.testing.assert_close(hv_gradient_error(crossed, teacher, disc()), torch.zeros(1), atol=1e-6, rtol=0)


def test_zero_at_agreement_and_only_nuclei_count():
    maps = torch.randn(2, 2, 9, 9)
    assert torch.equal(hv_gradient_error(maps, maps, torch.ones(2, 1, 9, 9)), torch.zeros(2))
    far = maps.clone()
    far[:, :, 0, 0] += 5  # more than two cells from the disc: no derivative inside sees it
    torch.testing.assert_close(hv_gradient_error(far, maps, disc().expand(2, -1, -1, -1)), torch.zeros(2))
    assert (hv_gradient_error(far, maps, torch.ones(2, 1, 9, 9)) > 0.1).all()


def test_a_tile_without_nuclei_is_zero_and_so_is_its_gradient():
    student = torch.randn(1, 2, 6, 6, requires_grad=True)
    value = hv_gradient_error(student, torch.zeros(1, 2, 6, 6), torch.full((1, 1, 6, 6), 0.5))
    assert value.item() == 0
    value.sum().backward()
    assert torch.equal(student.grad, torch.zeros(1, 2, 6, 6))


def test_tiles_are_averaged_alike_whatever_their_nuclei():
    student = torch.randn(3, 2, 9, 9)
    masks = torch.cat([disc(radius=1), disc(radius=3), disc(radius=0)])
    together = hv_gradient_error(student, torch.zeros(3, 2, 9, 9), masks)
    alone = [hv_gradient_error(student[i : i + 1], torch.zeros(1, 2, 9, 9), masks[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone))


def test_the_same_under_all_eight_symmetries():
    student, teacher = torch.randn(1, 2, 11, 11).expand(8, -1, -1, -1), torch.randn(1, 2, 11, 11).expand(8, -1, -1, -1)
    nuclei, index = torch.rand(1, 1, 11, 11).expand(8, -1, -1, -1), torch.arange(8)
    seen = [apply_d4(x, index, Symmetry.HV) for x in (student, teacher)]
    values = hv_gradient_error(*seen, apply_d4(nuclei, index))
    torch.testing.assert_close(values, values[:1].expand(8))
    assert values[0] > 1


def test_gradient_reaches_the_student_and_not_the_teacher():
    student, teacher = torch.randn(1, 2, 6, 6, requires_grad=True), torch.randn(1, 2, 6, 6, requires_grad=True)
    probs = torch.rand(1, 1, 6, 6, requires_grad=True)
    hv_gradient_error(student, teacher, probs).sum().backward()
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None and probs.grad is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_left_at_the_door(dtype):
    student, teacher = (20 * torch.randn(1, 2, 64, 64)).to(dtype), torch.zeros(1, 2, 64, 64, dtype=dtype)
    probs = torch.rand(1, 1, 64, 64).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = hv_gradient_error(student, teacher, probs)
    assert value.dtype == torch.float32 and value.isfinite().all()
    torch.testing.assert_close(value, hv_gradient_error(student.float(), teacher.float(), probs.float()))


def test_an_evaluation_before_does_not_break_training():
    student, teacher, probs = torch.randn(1, 2, 6, 6), torch.randn(1, 2, 6, 6), torch.ones(1, 1, 6, 6)
    with torch.inference_mode():
        hv_gradient_error(student, teacher, probs)
    student.requires_grad_()
    hv_gradient_error(student, teacher, probs).sum().backward()
    assert student.grad.abs().sum() > 0


@pytest.mark.parametrize("shapes", [((1, 2, 4, 4), (1, 2, 4, 4), (1, 1, 5, 5)), ((1, 1, 4, 4), (1, 1, 4, 4), (1, 1, 4, 4))])
def test_misfits_are_named(shapes):
    with pytest.raises(ValueError, match="hv_gradient_error: expected maps"):
        hv_gradient_error(*(torch.zeros(shape) for shape in shapes))
