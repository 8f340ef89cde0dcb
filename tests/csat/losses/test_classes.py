"""Cross-entropy and Dice of labelled classes: values by hand, agreement, gradients, ignored pixels, half precision."""

import math

import pytest
import torch
import torch.nn.functional as F

from csat.losses.classes import classes_dice, cross_entropy

LOGITS = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]])  # probabilities (3/4, 1/4) and (1/2, 1/2)
IGNORED = 255


def test_cross_entropy_by_hand():
    values = cross_entropy(LOGITS, torch.tensor([0, 1]))
    torch.testing.assert_close(values, torch.tensor([math.log(4 / 3), math.log(2.0)]))


def test_weights_multiply_and_do_not_depend_on_the_batch():
    weights, target = torch.tensor([0.5, 2.0]), torch.tensor([0, 1])
    values = cross_entropy(LOGITS, target, weights=weights)
    torch.testing.assert_close(values, torch.tensor([0.5 * math.log(4 / 3), 2 * math.log(2.0)]))
    alone = torch.cat([cross_entropy(LOGITS[row : row + 1], target[row : row + 1], weights=weights) for row in range(2)])
    torch.testing.assert_close(values, alone)


def test_smoothing_by_hand():
    # 0.2 of the label over two classes: 0.9 for the true one, 0.1 for the other.
    expected = 0.9 * math.log(4 / 3) + 0.1 * math.log(4)
    torch.testing.assert_close(cross_entropy(LOGITS[:1], torch.tensor([0]), smoothing=0.2), torch.tensor([expected]))
    weighted = cross_entropy(LOGITS[:1], torch.tensor([0]), smoothing=0.2, weights=torch.tensor([3.0, 100.0]))
    torch.testing.assert_close(weighted, torch.tensor([3 * expected]))


def test_smoothing_is_torchs_where_nothing_is_weighted():
    logits, target = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3, 0])
    expected = F.cross_entropy(logits, target, label_smoothing=0.3, reduction="none")
    torch.testing.assert_close(cross_entropy(logits, target, smoothing=0.3), expected)


def test_pixels_are_averaged_and_some_do_not_count():
    logits = LOGITS.T.reshape(1, 2, 1, 2).repeat(2, 1, 2, 1)  # rows of the two pixels above
    target = torch.tensor([[[0, 1], [IGNORED, 1]], [[IGNORED, IGNORED], [IGNORED, IGNORED]]], dtype=torch.uint8)
    values = cross_entropy(logits, target, ignore=IGNORED)
    torch.testing.assert_close(values, torch.tensor([(math.log(4 / 3) + 2 * math.log(2)) / 3, 0.0]))
    weighted = cross_entropy(logits, target, ignore=IGNORED, weights=torch.tensor([1.0, 3.0]))
    torch.testing.assert_close(weighted, torch.tensor([(math.log(4 / 3) + 6 * math.log(2)) / 3, 0.0]))


def test_ignored_pixels_get_no_gradient():
    logits = torch.zeros(1, 2, 2, 2, requires_grad=True)
    target = torch.tensor([[[0, IGNORED], [1, IGNORED]]])
    (cross_entropy(logits, target, ignore=IGNORED) + classes_dice(logits, target, ignore=IGNORED)).sum().backward()
    assert logits.grad[..., 0].abs().min() > 0
    assert logits.grad[..., 1].abs().max() == 0


def test_dice_by_hand():
    # Half of each pixel's probability for either class; 3 pixels of class 0 and 1 of class 1, smoothing 1.
    target = torch.tensor([[[0, 0], [0, 1]]])
    first, second = 1 - (2 * 1.5 + 1) / (2 + 3 + 1), 1 - (2 * 0.5 + 1) / (2 + 1 + 1)
    torch.testing.assert_close(classes_dice(torch.zeros(1, 2, 2, 2), target), torch.tensor([(first + second) / 2]))
    # The last pixel does not count, so class 1 is not there: (2 * 1.5 + 1) / (1.5 + 3 + 1).
    target[0, 1, 1] = IGNORED
    expected = torch.tensor([1 - 4 / 5.5])
    torch.testing.assert_close(classes_dice(torch.zeros(1, 2, 2, 2), target, ignore=IGNORED), expected)


def test_a_tile_without_a_class_is_not_rewarded_for_it():
    target = torch.zeros(1, 4, 4, dtype=torch.int64)
    said = F.one_hot(target, 3).permute(0, 3, 1, 2) * 40.0
    assert classes_dice(said, target) == pytest.approx(0, abs=1e-6)
    half_wrong = said.clone()
    half_wrong[:, :, :2] = half_wrong[:, [1, 0, 2], :2]
    assert classes_dice(half_wrong, target) == pytest.approx(1 - (2 * 8 + 1) / (8 + 16 + 1), abs=1e-5)


def test_both_are_zero_at_agreement_and_fall_towards_it():
    target = torch.randint(0, 3, (2, 6, 6), generator=torch.Generator().manual_seed(0))
    agreement = F.one_hot(target, 3).permute(0, 3, 1, 2).float()
    for loss in (cross_entropy, classes_dice):
        values = [loss(agreement * scale, target).max().item() for scale in (0, 2, 10, 60)]
        assert values == sorted(values, reverse=True)
        assert values[-1] == pytest.approx(0, abs=1e-5)


def test_a_tile_in_which_nothing_counts_is_zero_with_a_gradient_of_zero():
    logits = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    target = torch.full((1, 4, 4), IGNORED, dtype=torch.uint8)
    values = cross_entropy(logits, target, ignore=IGNORED) + classes_dice(logits, target, ignore=IGNORED)
    values.sum().backward()
    assert values.item() == 0
    assert logits.grad.abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    logits = (torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 5).to(dtype)
    target = torch.randint(0, 3, (2, 64, 64), generator=torch.Generator().manual_seed(1))
    for loss in (cross_entropy, classes_dice):
        values = loss(logits, target)
        assert values.dtype == torch.float32
        torch.testing.assert_close(values, loss(logits.float(), target))
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(loss(logits, target), values)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"cross_entropy: logits \[2, 3, 4, 4\] and target \[2, 4, 5\] do not fit"):
        cross_entropy(torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 5, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"cross_entropy: logits \[2, 3\] and target \[3\]"):
        cross_entropy(torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"classes_dice: logits are \[B, C, H, W\], not \[2, 3\]"):
        classes_dice(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"classes_dice: logits \[2, 3, 4, 4\] and target \[1, 4, 4\]"):
        classes_dice(torch.zeros(2, 3, 4, 4), torch.zeros(1, 4, 4, dtype=torch.int64))
