"""Optimiser, learning-rate schedule and weight average of one part."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW with linear warm-up and cosine decay, over the share of tiles done (not steps: workers may come and go)."""

    lr: float = 1e-3  # peak learning rate
    weight_decay: float = 0.05  # on weights of two or more dimensions
    betas: tuple[float, float] = (0.9, 0.999)  # AdamW's
    warmup: float = 0.05  # share of the run spent warming up
    final_lr: float = 0.01  # learning rate at the end, as a share of lr
    clip_grad_norm: float | None = 1.0  # largest gradient norm; None: no clipping
    ema_decay: float | None = 0.999  # decay of the averaged weights per step; None: no average

    def lr_at(self, progress: float) -> float:
        """Learning rate when `progress` (0 … 1) of the run's tiles are done."""
        if progress < self.warmup:
            return self.lr * (progress / self.warmup * 0.99 + 0.01)
        share = min(1.0, (progress - self.warmup) / max(1e-9, 1.0 - self.warmup))
        return self.lr * (self.final_lr + (1 - self.final_lr) * 0.5 * (1 + math.cos(math.pi * share)))

    def ema_decay_at(self, step: int) -> float:
        """Decay at `step`: short at first, so that the average forgets the random initial weights."""
        return min(self.ema_decay, (1 + step) / (10 + step))


def make_optimiser(module: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over the trainable weights; biases, norms and other vectors are not decayed."""
    weights = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in weights if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in weights if p.ndim < 2], "weight_decay": 0.0},
    ]
    is_cuda = any(p.is_cuda for p in weights)
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.lr, betas=config.betas, fused=is_cuda)


class WeightAverage:
    """Exponential moving average of a module's weights, buffers copied as they are.

    Kept as plain tensors (not as a second module): they go into the checkpoint, and into the module at the end.
    """

    def __init__(self, module: nn.Module, config: OptimConfig):
        self.config = config
        self.tensors = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        current = module.state_dict()
        averaged = [name for name, tensor in current.items() if tensor.is_floating_point()]
        torch._foreach_lerp_(
            [self.tensors[name] for name in averaged],
            [current[name] for name in averaged],
            1 - self.config.ema_decay_at(step),
        )
        for name in current.keys() - set(averaged):
            self.tensors[name].copy_(current[name])


def set_lr(optimisers: Iterable[torch.optim.Optimizer], lr: float) -> None:
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = lr
