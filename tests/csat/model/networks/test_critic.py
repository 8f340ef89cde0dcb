"""The critic, alone and with the terms of WGAN-GP, in one process and in two."""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from csat.errors import ConfigError
from csat.losses.wgan import PENALTY_WEIGHT, critic_loss, gradient_penalty
from csat.model.networks.critic import PatchCritic
from tests.support.forks import in_two_processes


class CriticTurn(nn.Module):
    """What a method does in the critic's turn: tiles → loss `[B]`."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.critic = PatchCritic(2)

    def forward(self, images: Tensor, student: Tensor, teacher: Tensor, share: Tensor) -> Tensor:
        scores = [self.critic(images, logits) for logits in (student, teacher)]
        penalty = gradient_penalty(self.critic, images, student, teacher, share)
        return critic_loss(*scores) + PENALTY_WEIGHT * penalty


def make_batch(num_tiles: int = 5) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = [(num_tiles, 3, 32, 32), (num_tiles, 2, 32, 32), (num_tiles, 2, 32, 32), (num_tiles,)]
    return [torch.rand(shape, generator=generator) for shape in shapes]


@pytest.mark.parametrize("width", [64, 16])
def test_the_layout_of_a_patchgan(width: int):
    critic = PatchCritic(2, width=width)
    widths = (5, width, 2 * width, 4 * width, 8 * width, 1)
    expected = sum(16 * a * b + b for a, b in zip(widths, widths[1:], strict=False))
    assert sum(p.numel() for p in critic.parameters()) == expected
    assert critic(torch.rand(2, 3, 64, 96), torch.randn(2, 2, 64, 96)).shape == (2, 1, 6, 10)


def test_a_score_sees_a_patch_of_70_px():
    critic = PatchCritic(1)
    for module in critic.modules():
        if isinstance(module, nn.InstanceNorm2d):
            module.forward = lambda x: x  # the norm spreads a change over the whole tile: without it, the convolutions' reach
    logits = torch.randn(1, 1, 128, 128, requires_grad=True)
    critic(torch.rand(1, 3, 128, 128), logits)[0, 0, 7, 7].backward()
    seen = logits.grad[0, 0].abs().sum(0).nonzero()
    assert int(seen.max() - seen.min()) + 1 == 70


def test_scores_depend_on_the_image_and_on_their_own_tile_only():
    images, student, _, _ = make_batch(3)
    critic = CriticTurn().critic
    scores = critic(images, student)
    alone = torch.cat([critic(images[i : i + 1], student[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(scores, alone, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(scores, critic(images.flip(-1), student))


def test_a_turn_lowers_the_loss_on_a_fixed_batch():
    turn, batch = CriticTurn(), make_batch()
    optimiser = torch.optim.Adam(turn.parameters(), lr=1e-4, betas=(0.9, 0.99))
    before = turn(*batch).mean().item()
    for _ in range(5):
        optimiser.zero_grad()
        turn(*batch).mean().backward()
        optimiser.step()
    assert turn(*batch).mean().item() < before


def test_misfits_are_named():
    with pytest.raises(ConfigError, match=r"one size, 24 px or more, not \[1, 3, 32, 32\] and \[1, 2, 64, 64\]"):
        PatchCritic(2)(torch.rand(1, 3, 32, 32), torch.rand(1, 2, 64, 64))
    with pytest.raises(ConfigError, match="24 px or more"):
        PatchCritic(2)(torch.rand(1, 3, 16, 16), torch.rand(1, 2, 16, 16))


def train_on_part(rank: int, folder: str) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    part = [each[:2] if rank == 0 else each[2:] for each in make_batch()]
    turn = DistributedDataParallel(CriticTurn())
    (turn(*part).sum() * 2 / 5).backward()
    torch.save({name: parameter.grad for name, parameter in turn.module.named_parameters()}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_with_ragged_halves_agree_with_one(tmp_path: Path):
    in_two_processes(train_on_part, str(tmp_path))
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    turn = CriticTurn()
    turn(*make_batch()).mean().backward()
    for name, parameter in turn.named_parameters():
        # A bias before an instance norm has no effect, and so a gradient of rounding errors.
        for rank in ranks:
            torch.testing.assert_close(rank[name], parameter.grad, atol=1e-5, rtol=1e-3)
