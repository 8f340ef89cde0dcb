"""Optimiser, learning-rate schedule and weight average of one part."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from csat.errors import ConfigError
from csat.methods.contract import OwnOptimiser
from csat.model.parts import PartedModel
from csat.settings import Often


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW with linear warm-up and cosine decay, over the share of tiles done (not steps: workers may come and go).

    A step's learning rate is the schedule's at the tiles done *before* it: the first step has what the schedule begins with
    (all of `lr` where there is no warm-up), and what it ends with is only reached after the last step.
    """

    lr: Often[float] = 1e-3  # peak learning rate
    weight_decay: float = 0.05  # on weights of two or more dimensions
    betas: tuple[float, float] = (0.9, 0.999)  # AdamW's
    warmup: float = 0.05  # share of the run spent warming up, from a hundredth of lr; 0: the first step has all of it
    final_lr: float = 0.01  # learning rate after the last step, as a share of lr
    clip_grad_norm: float | None = 1.0  # largest gradient norm; None: no clipping
    ema_decay: float | None = 0.999  # decay of the averaged weights per step; None: no average
    layer_decay: float = 1.0  # learning rate of each layer of the backbone, as a share of the layer's after it; 1: all alike
    head_lr: float = 1.0  # learning rate of the heads, as a multiple of lr

    def __post_init__(self):
        if not 0 < self.layer_decay <= 1:
            raise ConfigError(f"train.optim.layer_decay must lie in (0, 1], not {self.layer_decay}; 0.7 to 0.9 is usual")
        if not self.head_lr > 0:
            raise ConfigError(f"train.optim.head_lr is a factor above 0, not {self.head_lr}; to freeze parts: model.freeze")

    def lr_at(self, progress: float) -> float:
        """Learning rate of the step before which `progress` (0 … 1) of the run's tiles are done."""
        if progress < self.warmup:
            return self.lr * (progress / self.warmup * 0.99 + 0.01)
        share = min(1.0, (progress - self.warmup) / max(1e-9, 1.0 - self.warmup))
        return self.lr * (self.final_lr + (1 - self.final_lr) * 0.5 * (1 + math.cos(math.pi * share)))

    def ema_decay_at(self, step: int) -> float:
        """Decay at `step`: short at first, so that the average forgets the random initial weights."""
        return min(self.ema_decay, (1 + step) / (10 + step))


def make_optimiser(module: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over the trainable weights; biases, norms and other vectors are not decayed.

    Each group remembers its `lr_scale`: what `set_lr` multiplies the schedule's learning rate with.

    Raises:
        ConfigError: learning rates by layer were asked for, and the module does not tell its layers apart.
    """
    weights = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    scales = dict.fromkeys(weights, 1.0)
    if (config.layer_decay, config.head_lr) != (1, 1):
        if not isinstance(module, PartedModel):
            raise ConfigError("train.optim.layer_decay and head_lr are for models whose parts are told apart: leave them out")
        scales = module.lr_scales(config.layer_decay, config.head_lr)
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in weights.items():
        groups.setdefault((scales[name], parameter.ndim >= 2), []).append(parameter)
    is_cuda = any(parameter.is_cuda for parameter in weights.values())
    return torch.optim.AdamW(
        [
            {"params": groups[key], "weight_decay": config.weight_decay if key[1] else 0.0, "lr_scale": key[0]}
            for key in sorted(groups, reverse=True)
        ],
        lr=config.lr,
        betas=config.betas,
        fused=is_cuda,
    )


def make_own_optimiser(module: nn.Module, own: OwnOptimiser) -> torch.optim.Optimizer:
    """The optimiser that a method asks for, over the trainable weights. Raises ConfigError for another kind."""
    weights = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if own.kind == "adam":
        return torch.optim.Adam(weights, lr=own.lr, betas=own.betas, weight_decay=own.weight_decay)
    if own.kind == "sgd":
        return torch.optim.SGD(weights, lr=own.lr, momentum=own.momentum, weight_decay=own.weight_decay)
    raise ConfigError(f"an optimiser is adam or sgd, not {own.kind!r}")


class WeightAverage:
    """Exponential moving average of a module's weights and of its statistics (batch norm's); counters are copied.

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
    """Set every group's learning rate to `lr` times the group's scale."""
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)  # state saved before there were scales has none


def get_lr(optimiser: torch.optim.Optimizer) -> float:
    """What `set_lr` was last given."""
    group = optimiser.param_groups[0]
    return group["lr"] / group.get("lr_scale", 1.0)
