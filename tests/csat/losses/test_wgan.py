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


class OfBoth(nn.Module):
    """A conditional critic: on the image and the predictions, one beside the other."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(5, 3, 3), nn.GELU(), nn.Conv2d(3, 1, 2))

    def forward(self, images, predictions):
        return self.layers(torch.cat([images, predictions.float()], 1))


def predictions(num: int) -> list[torch.Tensor]:
    return [torch.randn(num, 2, 4, 4) for _ in "ST"]


def test_penalty_by_hand():
    # D(i, x) = b i + sum(a x) has the slope (b, a) everywhere, of both inputs together: norms 13, 5 and 1 cost 144, 16 and 0.
    for b, weights, expected in ((12.0, [3.0, 4.0], 144.0), (0.0, [3.0, 4.0], 16.0), (0.6, [0.0, 0.8], 0.0)):
        a = torch.tensor(weights).view(1, 2, 1, 1)
        value = gradient_penalty(
            lambda image, x, a=a, b=b: b * image.sum((1, 2, 3)) + (a * x).sum((1, 2, 3)),
            *[torch.randn(2, channels, 1, 1) for channels in (1, 2, 2)],
            torch.rand(2),
        )
        torch.testing.assert_close(value, torch.full((2,), expected), atol=1e-4, rtol=1e-5)


def test_penalty_is_taken_between_the_two():
    # D(i, x) = x^2 / 2 + 0 i per tile has the slope x: at share 1 that of the teacher, at 0 of the student, at 1/4 in between.
    student, teacher = torch.full((3, 1, 1, 1), 2.0), torch.full((3, 1, 1, 1), 6.0)
    share = torch.tensor([1.0, 0.0, 0.25])
    value = gradient_penalty(
        lambda image, x: (x.square() / 2 + 0 * image).sum((1, 2, 3)), torch.ones(3, 1, 1, 1), student, teacher, share
    )
    torch.testing.assert_close(value, torch.tensor([25.0, 1.0, 4.0]))


def test_second_derivatives_reach_the_critic():
    # D(i, x) = a (4 i + 3 x): penalty (5 |a| - 1)^2, derivative 10 (5 a - 1).
    a = nn.Parameter(torch.tensor(3.0))
    gradient_penalty(
        lambda image, x: (a * (4 * image + 3 * x)).sum((1, 2, 3)), *[torch.randn(1, 1, 1, 1) for _ in "IST"], torch.rand(1)
    ).sum().backward()
    torch.testing.assert_close(a.grad, torch.tensor(140.0))


def test_penalty_gives_no_gradient_to_student_or_teacher():
    student, teacher = (each.requires_grad_() for each in predictions(2))
    critic, images = OfBoth(), torch.rand(2, 3, 4, 4, requires_grad=True)
    gradient_penalty(critic, images, student, teacher, torch.rand(2)).sum().backward()
    assert student.grad is None and teacher.grad is None and images.grad is None
    assert critic.layers[0].weight.grad.abs().sum() > 0


def test_the_penalty_can_be_measured_without_a_graph():
    critic = OfBoth()
    args = [torch.rand(2, 3, 4, 4), *predictions(2), torch.rand(2)]
    with torch.no_grad():
        value = gradient_penalty(critic, *args)
    torch.testing.assert_close(value, gradient_penalty(critic, *args))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_left_at_the_door(dtype):
    critic, images, share = OfBoth(), torch.rand(2, 3, 4, 4), torch.rand(2)
    student, teacher = (each.to(dtype) for each in predictions(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = gradient_penalty(critic, images, student, teacher, share)
        scores = critic_loss(student, teacher)
    assert value.dtype == scores.dtype == adversarial_loss(student).dtype == torch.float32
    torch.testing.assert_close(value, gradient_penalty(critic, images, student.float(), teacher.float(), share))
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
        penalty = gradient_penalty(lambda image, x: critic(x) + 0 * image[:, 0, 0], student, student, teacher, torch.rand(64))
        (critic_loss(critic(student), critic(teacher)) + PENALTY_WEIGHT * penalty).mean().backward()
        optimiser.step()
    assert critic_loss(critic(student), critic(teacher)).mean().item() == pytest.approx(-2, abs=0.2)


def test_misfits_are_named():
    with pytest.raises(ValueError, match=r"critic_loss.*\[1, 4\].*\[1, 5\]"):
        critic_loss(torch.zeros(1, 4), torch.zeros(1, 5))
    with pytest.raises(ValueError, match=r"gradient_penalty.*one share per tile, not \[1\]"):
        gradient_penalty(lambda image, x: x, torch.zeros(2, 3), torch.zeros(2, 1), torch.zeros(2, 1), torch.zeros(1))
