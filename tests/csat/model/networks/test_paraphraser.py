import pytest
import torch
from torch import nn

from csat.errors import ConfigError
from csat.model.networks.paraphraser import Paraphraser


def test_the_published_layout():
    convolutions = [m for m in Paraphraser(256, 24).modules() if isinstance(m, nn.Conv2d)]
    assert [(m.in_channels, m.out_channels) for m in convolutions] == [
        (256, 256), (256, 24), (24, 24), (24, 24), (24, 256), (256, 256),
    ]  # fmt: skip
    assert all(m.kernel_size == (3, 3) for m in convolutions)


def test_it_learns_to_reconstruct_a_layer():
    """Features of two hidden causes fit into a factor of two channels."""
    torch.manual_seed(0)
    features = torch.einsum("bkhw,ck->bchw", torch.rand(4, 2, 6, 6), torch.rand(8, 2))
    paraphraser = Paraphraser(8, 2)
    optimiser = torch.optim.SGD(paraphraser.parameters(), lr=0.05, momentum=0.9, weight_decay=2e-4)
    before = paraphraser.reconstruction_error(features)
    for _ in range(150):
        optimiser.zero_grad()
        paraphraser.reconstruction_error(features).mean().backward()
        optimiser.step()
    after = paraphraser.reconstruction_error(features)
    assert before.shape == after.shape == (4,)
    assert (after < 0.5 * before).all()
    assert paraphraser.paraphrase(features).shape == (4, 2, 6, 6)


def test_the_error_by_hand_and_no_gradient_to_the_teacher():
    paraphraser = Paraphraser(2, 1)
    nn.init.zeros_(paraphraser.decoder[-2].weight)
    nn.init.constant_(paraphraser.decoder[-2].bias, 1.0)
    features = torch.tensor([[[[3.0]], [[1.0]]]], requires_grad=True)  # reconstructed as (1, 1)
    value = paraphraser.reconstruction_error(features)
    torch.testing.assert_close(value, torch.tensor([2.0]))
    value.sum().backward()
    assert features.grad is None


def test_another_teachers_layer_is_refused():
    with pytest.raises(ConfigError, match=r"made for a layer of 256 channels.*\[1, 64, 4, 4\]: train one for this teacher"):
        Paraphraser(256, 24).paraphrase(torch.zeros(1, 64, 4, 4))
    with pytest.raises(ConfigError, match="channels on both sides, not 256 and 0"):
        Paraphraser(256, 0)
