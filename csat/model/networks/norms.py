"""Norms made safe: batch norm for maps of a single cell, and group norm of channels-last maps on a CPU.

torch 2.15 takes the variance of a group of channels-last maps on a CPU as a difference of two large numbers: 2e-4 off where
their mean is six times their deviation, 2e-3 at twenty times. So such maps are centred first, which leaves 1e-6. (In the
plain order of memory they are right as well, but ResNet-10 then answers 270 tiles/s where it now answers 380.)
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LoneBatchNorm2d(nn.BatchNorm2d):
    """Batch norm, but for one value per channel in training, which torch refuses: then the stored statistics serve.

    A part of a step may be a single tile: the last of a stream, one size among whole images, or the stand-in of a rank
    without tiles.
    """

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` in and out."""
        if not self.training or x.numel() > x.shape[1]:
            return super().forward(x)
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)


def guard_norms(module: nn.Module) -> None:
    """Have every group norm inside the module (itself included) see centred maps where it needs them, in place.

    No tensor or name changes, and no result but for rounding: a norm does not depend on what its groups' mean is.
    """
    for layer in module.modules():
        if isinstance(layer, nn.GroupNorm) and _centred not in layer._forward_pre_hooks.values():
            layer.register_forward_pre_hook(_centred)


def _centred(norm: nn.GroupNorm, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """What a group norm is called with; of channels-last maps on a CPU each group less its mean."""
    x, *others = arguments
    if x.device.type != "cpu" or x.ndim != 4 or x.is_contiguous() or x.shape[1] % norm.num_groups:
        return arguments
    with torch.no_grad():  # a constant to the norm, whose gradient is therefore the same
        groups = x.mean((2, 3)).unflatten(1, (norm.num_groups, -1)).mean(2)
        means = groups.repeat_interleave(x.shape[1] // norm.num_groups, 1)[..., None, None]
    return (x - means, *others)
