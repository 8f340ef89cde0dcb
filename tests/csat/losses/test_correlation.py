import pytest
import torch

from csat.losses.correlation import CELLS, correlate_layers, correlation_error


def make_maps(*shapes: tuple[int, ...], seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def test_by_hand():
    # One row of two cells cannot be pooled to a square, so 2x2: with one channel the mixing weight is 1, and the similarities
    # of cells (1, 0, 0, 0) are 1 between the first cell and itself. Rows of zeros stay zeros.
    first = torch.tensor([[1.0, 0.0], [0.0, 0.0]])[None, None]
    ones = torch.ones(1, 1, 2, 2)  # every row (1, 1, 1, 1) / 2
    expected = torch.zeros(1, 4, 4)
    expected[0, 0] = 0.5  # (1, 0, 0, 0) . (1, 1, 1, 1) / 2, with each row of the decoder
    torch.testing.assert_close(correlate_layers(first, ones, cells=2), expected)
    # Against a teacher whose layers are both constant, R = 1 everywhere: 4 entries differ by 1/2, 12 by 1.
    value = correlation_error(first, ones, ones, ones, cells=2)
    torch.testing.assert_close(value, torch.tensor([(4 * 0.25 + 12) / 16]))


def test_channels_are_mixed_by_how_active_they_are():
    # Channel 0 has a mean of log 3 and channel 1 of 0: weights 3/4 and 1/4. Cells q = (3/4 a, 1/4 b).
    maps = torch.zeros(1, 2, 2, 2)
    maps[0, 0] = torch.tensor(3.0).log()
    maps[0, 1] = torch.tensor([[1.0, -1.0], [1.0, -1.0]])
    q = torch.stack([0.75 * maps[0, 0].flatten(), 0.25 * maps[0, 1].flatten()], 1)
    gram = q @ q.T
    gram = gram / gram.norm(dim=1, keepdim=True)
    torch.testing.assert_close(correlate_layers(maps, maps, cells=2)[0], gram @ gram.T)


def test_zero_at_agreement_whatever_the_scale():
    encoder, decoder = make_maps((2, 6, 32, 32), (2, 4, 32, 32))
    torch.testing.assert_close(correlation_error(encoder, decoder, encoder, decoder), torch.zeros(2), atol=1e-7, rtol=0)
    # Without mixing (one channel) the size of the numbers does not matter.
    encoder, decoder = encoder[:, :1], decoder[:, :1]
    value = correlation_error(5 * encoder, decoder, encoder, 0.1 * decoder)
    torch.testing.assert_close(value, torch.zeros(2), atol=1e-7, rtol=0)


def test_mixed_sizes_and_channels():
    maps = make_maps((2, 24, 64, 64), (2, 24, 32, 48), (2, 64, 16, 16), (2, 8, 64, 32))
    value = correlation_error(*maps)
    assert value.shape == (2,) and value.dtype == torch.float32 and ((value > 0) & (value <= 4)).all()
    alone = torch.cat([correlation_error(*[each[i : i + 1] for each in maps]) for i in range(2)])
    torch.testing.assert_close(value, alone)


def test_gradient_reaches_the_student_and_not_the_teacher():
    maps = [each.requires_grad_() for each in make_maps(*[(1, 4, 16, 16)] * 4)]
    correlation_error(*maps).sum().backward()
    assert all(each.grad.abs().sum() > 0 for each in maps[:2])
    assert all(each.grad is None for each in maps[2:])


def test_a_dead_layer_is_finite():
    dead = torch.zeros(1, 4, 16, 16, requires_grad=True)
    alive = make_maps((1, 4, 16, 16))[0]
    value = correlation_error(dead, alive, alive, alive)
    value.sum().backward()
    assert value.isfinite().all() and dead.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_left_at_the_door(dtype):
    maps = [(100 * each).to(dtype) for each in make_maps(*[(1, 4, 16, 16)] * 4)]  # sums of squares overflow a float16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = correlation_error(*maps)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, correlation_error(*[each.float() for each in maps]))


def test_misfits_are_named():
    coarse, fine = make_maps((1, 4, 8, 8), (1, 4, 16, 16))
    with pytest.raises(ValueError, match=rf"at least {CELLS} x {CELLS} cells, not \[1, 4, 8, 8\]: choose a finer layer"):
        correlation_error(coarse, fine, fine, fine)
    with pytest.raises(ValueError, match="1 encoder maps and 2 decoder maps"):
        correlate_layers(fine, fine.expand(2, -1, -1, -1))
    two = fine.expand(2, -1, -1, -1)
    with pytest.raises(ValueError, match="1 tiles of the student and 2 of the teacher"):
        correlation_error(fine, fine, two, two)
