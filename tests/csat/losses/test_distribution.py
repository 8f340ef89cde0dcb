import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from csat.losses.distribution import distribution_kl, logits_kl, softened_cross_entropy


def by_channels(*values: float) -> torch.Tensor:
    return torch.tensor(values).view(1, -1, 1, 1)


def test_by_hand():
    # Teacher (3/4, 1/4), student uniform: log 2 - H(teacher).
    expected = math.log(2) + 0.75 * math.log(0.75) + 0.25 * math.log(0.25)
    torch.testing.assert_close(distribution_kl(by_channels(0, 0), by_channels(0.75, 0.25)), torch.tensor([expected]))
    torch.testing.assert_close(logits_kl(by_channels(0, 0), by_channels(math.log(3), 0)), torch.tensor([expected]))


def test_temperature_by_hand():
    # T = 2: (0.9, 0.1)^(1/2) renormalised is (3/4, 1/4); the student's logits (2 log 3, 0) / 2 give (3/4, 1/4) too,
    # and uniform logits the value above, times 4.
    teacher = by_channels(0.9, 0.1)
    agreeing = by_channels(2 * math.log(3), 0)
    torch.testing.assert_close(distribution_kl(agreeing, teacher, 2), torch.zeros(1), atol=1e-6, rtol=0)
    expected = 4 * (math.log(2) + 0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    torch.testing.assert_close(distribution_kl(by_channels(0, 0), teacher, 2), torch.tensor([expected]))


@settings(max_examples=25, deadline=None)
@given(temperature=st.floats(0.5, 8), seed=st.integers(0, 99))
def test_probabilities_are_softened_as_their_logits_would_be(temperature, seed):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(2, 4, 3, 3, generator=generator) for _ in range(2))
    of_probs = distribution_kl(student, teacher.softmax(1), temperature)
    torch.testing.assert_close(of_probs, logits_kl(student, teacher, temperature), atol=1e-4, rtol=1e-4)
    at_agreement = distribution_kl(teacher + 3, teacher.softmax(1), temperature)
    torch.testing.assert_close(at_agreement, torch.zeros(2), atol=1e-4, rtol=0)


def test_agrees_with_torch():
    student, teacher = torch.randn(3, 5), torch.randn(3, 5).softmax(1)
    expected = F.kl_div(student.log_softmax(1), teacher, reduction="none").sum(1)
    torch.testing.assert_close(distribution_kl(student, teacher), expected)


def test_certain_and_silent_cells():
    certain = torch.zeros(1, 3, 2, 2)
    certain[:, 1] = 1
    logits = torch.zeros(1, 3, 2, 2, requires_grad=True)
    torch.testing.assert_close(distribution_kl(logits, certain, 3), torch.tensor([9 * math.log(3)]))
    silent = distribution_kl(logits, torch.zeros(1, 3, 2, 2))
    assert silent.item() == 0
    silent.sum().backward()
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("loss", [distribution_kl, logits_kl, softened_cross_entropy])
def test_gradient_reaches_the_student_and_not_the_teacher(loss):
    student = torch.zeros(2, 3, requires_grad=True)
    teacher = torch.randn(2, 3).softmax(1).requires_grad_()
    loss(student, teacher).sum().backward()
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None


@pytest.mark.parametrize("loss", [distribution_kl, logits_kl, softened_cross_entropy])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_left_at_the_door(loss, dtype):
    student = (10 * torch.randn(2, 6, 32, 32)).to(dtype)
    teacher = torch.randn(2, 6, 32, 32).softmax(1).to(dtype)  # rounded: the channels no longer sum to 1
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(student, teacher, 2)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(student.float(), teacher.float(), 2))
    at_agreement = distribution_kl(teacher.float().log(), teacher)
    torch.testing.assert_close(at_agreement, torch.zeros(2), atol=1e-6, rtol=0)


@pytest.mark.parametrize("loss", [distribution_kl, logits_kl, softened_cross_entropy])
def test_misfits_are_named(loss):
    with pytest.raises(ValueError, match=rf"{loss.__name__}.*\[1, 2\].*\[1, 3\]"):
        loss(torch.zeros(1, 2), torch.zeros(1, 3))
    with pytest.raises(ValueError, match="2 or more channels"):
        loss(torch.zeros(1, 1), torch.zeros(1, 1))
    with pytest.raises(ValueError, match="temperature must be positive, not 0"):
        loss(torch.zeros(1, 2), torch.ones(1, 2) / 2, 0)


class TestSoftenedCrossEntropy:
    def test_by_hand(self):
        # The teacher's logits (2 log 3, 0) softened by 2 give (3/4, 1/4); the student says (1/2, 1/2) at T = 1.
        teacher = by_channels(2 * math.log(3), 0)
        value = softened_cross_entropy(by_channels(0, 0), teacher, 2)
        torch.testing.assert_close(value, torch.tensor([math.log(2)]))
        value = softened_cross_entropy(
            by_channels(math.log(3), 0), teacher, 2
        )  # the student is as soft as the softened teacher
        torch.testing.assert_close(value, torch.tensor([-0.75 * math.log(0.75) - 0.25 * math.log(0.25)]))

    def test_least_at_agreement_where_it_is_the_teachers_entropy(self):
        logits = torch.randn(3, 4, 2, 2, requires_grad=True)
        value = softened_cross_entropy(logits, logits)
        entropy = torch.special.entr(logits.softmax(1)).sum(1).mean((1, 2))
        torch.testing.assert_close(value, entropy)
        value.sum().backward()
        torch.testing.assert_close(logits.grad, torch.zeros_like(logits), atol=1e-6, rtol=0)

    def test_differs_from_the_divergence_by_a_constant(self):
        student, teacher = torch.randn(5, 4), torch.randn(5, 4)
        difference = softened_cross_entropy(student, teacher) - logits_kl(student, teacher)
        torch.testing.assert_close(difference, torch.special.entr(teacher.softmax(1)).sum(1))
