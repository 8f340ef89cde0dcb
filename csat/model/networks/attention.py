"""Spatial attention: a gate per position that a tiny transformer computes from a 7x7 summary of the image.

Source: CSATv2's block (mean and maximum over the channels → 7x7 → convolution → transformer → bilinear upsampling → multiply),
with the sigmoid of CSAT v1. Differs on purpose:
- CSATv2's tokens have one channel, and a norm over one channel leaves only its bias: its gate depends on the image through
  the 7x7 convolution, but what its transformer adds to that is the same for every image. Here the tokens have `dim` channels
  until the last projection, so that the transformer sees the image too.
- Pooling to 7x7 and back are two matrix products each. They equal adaptive average pooling and bilinear upsampling, and unlike
  those have a deterministic backward pass on CUDA, and an ONNX form at any size.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from csat.model.networks.layers import LayerNorm, attend

ATTENTION_CELLS = 7  # positions per axis of the spatial attention
Resampling = tuple[Tensor, Tensor, Tensor, Tensor]  # pool over rows, over columns; upsample over rows, over columns


def pooling_matrix(size: int, cells: int, device: torch.device) -> Tensor:
    """`[cells, size]` float32 such that `matrix @ x` is adaptive average pooling of `size` values to `cells`."""
    cell = torch.arange(cells, device=device)[:, None]
    position = torch.arange(size, device=device)[None]
    start = torch.div(cell * size, cells, rounding_mode="floor")
    stop = torch.div((cell + 1) * size + cells - 1, cells, rounding_mode="floor")
    inside = ((position >= start) & (position < stop)).to(torch.float32)
    return inside / inside.sum(1, keepdim=True)


def upsampling_matrix(cells: int, size: int, device: torch.device) -> Tensor:
    """`[size, cells]` float32 such that `matrix @ x` is bilinear resizing of `cells` values to `size` (no aligned corners)."""
    position = torch.arange(size, device=device, dtype=torch.float32)[:, None]
    source = ((position + 0.5) * (float(cells) / size) - 0.5).clamp(0.0, float(cells - 1))
    return (1.0 - (source - torch.arange(cells, device=device, dtype=torch.float32)[None]).abs()).clamp(min=0.0)


def resampling(height: int, width: int, cells: int, device: torch.device) -> Resampling:
    """The four matrices between a map of `height` x `width` and one of `cells` x `cells`, shared by the blocks of a stage."""
    return (
        pooling_matrix(height, cells, device),
        pooling_matrix(width, cells, device),
        upsampling_matrix(cells, height, device),
        upsampling_matrix(cells, width, device),
    )


class SpatialAttention(nn.Module):
    """A gate in (0, 1) per position: mean and maximum over the channels → 7x7 → transformer over 49 tokens → full size."""

    def __init__(self, dim: int, device=None, dtype=None):
        """`dim` is the width of the tokens, at least 2: after a norm over one the transformer would not see the image."""
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        if dim < 2:
            raise ValueError(f"spatial attention needs tokens of at least 2 channels, not {dim}")
        self.embed = nn.Conv2d(2, dim, ATTENTION_CELLS, padding=ATTENTION_CELLS // 2, **dd)
        self.norm1 = LayerNorm(dim, **dd)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False, **dd)
        self.proj = nn.Linear(dim, dim, **dd)
        self.norm2 = LayerNorm(dim, **dd)
        self.fc1 = nn.Linear(dim, 2 * dim, **dd)
        self.fc2 = nn.Linear(2 * dim, dim, **dd)
        self.to_gate = nn.Linear(dim, 1, **dd)

    def forward(self, x: Tensor, matrices: Resampling) -> Tensor:
        """`[B, H, W, C]` and the matrices of `resampling(H, W, …)` → gate `[B, H, W, 1]`."""
        pool_rows, pool_columns, up_rows, up_columns = matrices
        statistics = torch.stack([x.mean(-1), x.amax(-1)], 1)
        pooled = torch.matmul(torch.matmul(pool_rows.to(x.dtype), statistics.to(x.dtype)), pool_columns.to(x.dtype).t())
        tokens = self.embed(pooled).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(self.norm1(tokens)).unsqueeze(1).chunk(3, dim=-1)
        tokens = tokens + self.proj(attend(q, k, v).squeeze(1))
        tokens = tokens + self.fc2(F.gelu(self.fc1(self.norm2(tokens))))
        gate = self.to_gate(tokens).view(-1, pool_rows.shape[0], pool_columns.shape[0])
        gate = torch.matmul(torch.matmul(up_rows.to(gate.dtype), gate), up_columns.to(gate.dtype).t())
        return torch.sigmoid(gate).unsqueeze(-1)
