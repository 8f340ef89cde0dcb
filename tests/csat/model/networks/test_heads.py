"""The decoder and the heads: shapes, and where in the image a cell of a prediction lies."""

import pytest
import torch

from csat.model.networks.heads import DenseDecoder, DenseHead, GlobalHead


@pytest.mark.parametrize("strides_px", [(4, 8, 16), (4, 8, 16, 32), (8, 16, 32, 64), (16,), (4, 16)])
def test_decoder_gives_one_map_at_the_finest_stride(strides_px):
    channels = [3 + 2 * i for i in range(len(strides_px))]
    decoder = DenseDecoder(channels, strides_px, 8)
    features = [torch.randn(2, c, 128 // s, 64 // s) for c, s in zip(channels, strides_px, strict=True)]
    y = decoder(features)
    assert y.shape == (2, 8, 128 // strides_px[0], 64 // strides_px[0])
    y.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in decoder.parameters())


def test_decoder_uses_every_level_at_its_own_place():
    """A change in one cell of any level shows around the same place of the output, and not at the far side."""
    torch.manual_seed(0)
    decoder = DenseDecoder((4, 4, 4), (4, 8, 16), 8).eval()
    features = [torch.randn(1, 4, 512 // s, 512 // s) for s in (4, 8, 16)]
    with torch.no_grad():
        before = decoder(features)
        for level, stride_px in enumerate((4, 8, 16)):
            changed = [f.clone() for f in features]
            row, column = 96 // stride_px, 400 // stride_px
            changed[level][:, :, row, column] += torch.tensor([5.0, -5.0, 3.0, 1.0])
            difference = (decoder(changed) - before).abs().sum(1)[0]
            y, x = divmod(int(difference.argmax()), difference.shape[1])
            assert abs(4 * y + 2 - (96 + stride_px / 2)) <= stride_px and abs(4 * x + 2 - (400 + stride_px / 2)) <= stride_px
            assert difference[:, :40].max() == 0


def test_dense_head_refines_and_coarsens_in_place():
    torch.manual_seed(0)
    x = torch.randn(1, 6, 8, 8)
    fine, coarse = DenseHead(6, 3, upscale=2), DenseHead(6, 5, shrink=4)
    assert fine(x).shape == (1, 3, 16, 16) and coarse(x).shape == (1, 5, 2, 2)
    changed = x.clone()
    changed[:, 0, 2, 5] += 1.0
    assert set(map(tuple, (fine(changed) - fine(x)).abs().sum((0, 1)).nonzero().tolist())) <= {
        (4, 10),
        (4, 11),
        (5, 10),
        (5, 11),
    }
    assert (coarse(changed) - coarse(x)).abs().sum((0, 1)).nonzero().tolist() == [[0, 1]]


def test_global_head_is_linear():
    head = GlobalHead(5, 2)
    x = torch.randn(3, 5)
    torch.testing.assert_close(head(x), x @ head.fc.weight.T + head.fc.bias)
