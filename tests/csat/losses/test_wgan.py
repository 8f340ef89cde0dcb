import pytest
import torch
from torch import nn

from csat.losses.wgan import PENALTY_WEIGHT, adversarial_loss, critic_loss, gradient_penalty


def test_scores_by_hand():
    student, teacher = torch.tensor([[1.0, 3.0], [0.0, 0.0]]), torch.tensor([[4.0, 6.0], [0.0, -2.0]])
    torch.testing.assert_close(critic_loss(student, teacher), torch.tensor([-3.0, 1.0]))
    torch.testing.assert_close(adversarial_loss(student), torch.tensor([-2.0, 0.0]))


def test_a_map_of_scores_is_averaged():
    scores = torch.randn(3, 1, 4, 4)
    torch.testing.assert_close(adversarial_loss(scores), -scores.mean((1, 2, 3)))
    assert torch.equal(critic_loss(scores, scores), torch.zeros(3))


def test_penalty_by_hand():
    # D(x) = sum(a x) has the slope a everywhere: norms 5 and 1 cost 16 and 0.
    for weights, expected in (([3.0, 4.0], 16.0), ([0.6, 0.8], 0.0)):
        a = torch.tensor(weights).view(1, 2, 1, 1)
        value = gradient_penalty(
            lambda x, a=a: (a * x).sum((1, 2, 3)), *[torch.randn(2, 2, 1, 1) for _ in "ST"], torch.rand(2)
        )
        torch.testing.assert_close(value, torch.full((2,), expected), atol=1e-5, rtol=1e-5)


def test_penalty_is_taken_between_the_two():
    # D(x) = x^2 / 2 per tile has the slope x: at share 1 that of the teacher, at 0 of the student, at 1/4 in between.
    student, teacher = torch.full((3, 1, 1, 1), 2.0), torch.full((3, 1, 1, 1), 6.0)
    value = gradient_penalty(lambda x: x.square().sum((1, 2, 3)) / 2, student, teacher, torch.tensor([1.0, 0.0, 0.25]))
    torch.testing.assert_close(value, torch.tensor([25.0, 1.0, 4.0]))


def test_second_derivatives_reach_the_critic():
    # D(x) = a x: penalty (|a| - 1)^2, derivative 2 (a - 1).
    a = nn.Parameter(torch.tensor(3.0))
    gradient_penalty(
        lambda x: (a * x).sum((1, 2, 3)), *[torch.randn(1, 1, 1, 1) for _ in "ST"], torch.rand(1)
    ).sum().backward()
    torch.testing.assert_close(a.grad, torch.tensor(4.0))


def test_penalty_gives_no_gradient_to_student_or_teacher():
    student, teacher = torch.randn(2, 2, 4, 4, requires_grad=True), torch.randn(2, 2, 4, 4, requires_grad=True)
    critic = nn.Sequential(nn.Conv2d(2, 3, 3), nn.GELU(), nn.Conv2d(3, 1, 2))
    gradient_penalty(critic, student, teacher, torch.rand(2)).sum().backward()
    assert student.grad is None and teacher.grad is None
    assert critic[0].weight.grad.abs().sum() > 0


def test_the_penalty_can_be_measured_without_a_graph():
    critic = nn.Conv2d(2, 1, 3)
    args = [*[torch.randn(2, 2, 4, 4) for _ in "ST"], torch.rand(2)]
    with torch.no_grad():
        value = gradient_penalty(critic, *args)
    torch.testing.assert_close(value, gradient_penalty(critic, *args))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_left_at_the_door(dtype):
    critic = nn.Sequential(nn.Conv2d(2, 3, 3), nn.GELU(), nn.Conv2d(3, 1, 2))
    student, teacher, share = torch.randn(2, 2, 4, 4).to(dtype), torch.randn(2, 2, 4, 4).to(dtype), torch.rand(2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = gradient_penalty(critic, student, teacher, share)
        scores = critic_loss(student, teacher)
    assert value.dtype == scores.dtype == adversarial_loss(student).dtype == torch.float32
    torch.testing.assert_close(value, gradient_penalty(critic, student.float(), teacher.float(), share))
    torch.testing.assert_close(scores, critic_loss(student.float(), teacher.float()))


def test_a_critic_learns_the_distance_and_keeps_its_slope():
    """One pixel, the teacher 2 above the student: the best critic of slope 1 says 2 (its bias cancels)."""
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Flatten(), nn.Linear(1, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1))
    optimiser = torch.optim.Adam(critic.parameters(), lr=0.01)
    student = torch.randn(64, 1, 1, 1)
    teacher = student + 2
    for _ in range(300):
        optimiser.zero_grad()
        penalty = gradient_penalty(critic, student, teacher, torch.rand(64))
        (critic_loss(critic(student), critic(teacher)) + PENALTY_WEIGHT * penalty).mean().backward()
        optimiser.step()
    assert critic_loss(critic(student), critic(teacher)).mean().item() == pytest.approx(-2, abs=0.2)


def test_misfits_are_named():
    with pytest.raises(ValueError, match=r"critic_loss.*\[1, 4\].*\[1, 5\]"):
        critic_loss(torch.zeros(1, 4), torch.zeros(1, 5))
    with pytest.raises(ValueError, match=r"gradient_penalty.*one share per tile, not \[1\]"):
        gradient_penalty(lambda x: x, torch.zeros(2, 1), torch.zeros(2, 1), torch.zeros(1))
