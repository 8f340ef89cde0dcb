"""Batch norm for maps of a single cell, of which a batch may hold one."""

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
