"""From backbone features to predictions: one light decoder for all dense tasks, and a small head per task.

The decoder knows the backbone's strides and nothing of the task, so that pretraining on responses and fine-tuning for
segmentation share it, weights and all; only heads are new. Form: a feature pyramid (Lin et al., 2017) with nearest
upsampling, whose smoothing convolution is a ConvNeXt-style depthwise block. Not from the CSAT paper, which does not describe
its decoders.
"""

from collections.abc import Sequence

import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from csat.model.networks.layers import DepthwiseConv2d, LayerNorm


class DecoderBlock(nn.Module):
    """dwconv5 → LN → Linear 2C → GELU → Linear C, with residual. `[B, C, H, W]` in and out."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv_dw = DepthwiseConv2d(channels, 5, bias=False)
        self.norm = LayerNorm(channels, eps=1e-6)
        self.fc1 = nn.Linear(channels, 2 * channels)
        self.fc2 = nn.Linear(2 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv_dw(x).permute(0, 2, 3, 1))
        return x + self.fc2(F.gelu(self.fc1(y))).permute(0, 3, 1, 2)


class Lateral(nn.Module):
    """LN over the channels, then a linear to the decoder's width: backbones differ in scale by orders of magnitude."""

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        self.norm = LayerNorm(in_channels, eps=1e-6)
        self.fc = nn.Linear(in_channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)


class DenseDecoder(nn.Module):
    """Merges feature maps, fine to coarse, into one map at the finest stride.

    Attributes:
        channels: Width of the output.
        stride_px: Its stride, image pixels per cell.
    """

    def __init__(self, in_channels: Sequence[int], strides_px: Sequence[int], channels: int):
        """
        Args:
            in_channels: Channels of each map, finest first.
            strides_px: Their strides; each a multiple of the one before.
            channels: Width of the output.
        """
        super().__init__()
        assert len(in_channels) == len(strides_px), (in_channels, strides_px)
        assert all(b % a == 0 for a, b in zip(strides_px, strides_px[1:], strict=False)), strides_px
        self.channels = channels
        self.stride_px = strides_px[0]
        self.scales = [b // a for a, b in zip(strides_px, strides_px[1:], strict=False)]
        self.laterals = nn.ModuleList(Lateral(dim, channels) for dim in in_channels)
        self.blocks = nn.ModuleList(DecoderBlock(channels) for _ in in_channels)

    def forward(self, features: list[Tensor]) -> Tensor:
        """`[B, in_channels[i], H/strides_px[i], W/strides_px[i]]` per map → `[B, channels, H/stride_px, W/stride_px]`."""
        x = self.blocks[-1](self.laterals[-1](features[-1]))
        for i in range(len(features) - 2, -1, -1):
            # Nearest: exact at whole factors, and its backward pass is deterministic on CUDA, unlike bilinear's.
            x = F.interpolate(x, scale_factor=float(self.scales[i]), mode="nearest")
            x = self.blocks[i](x + self.laterals[i](features[i]))
        return x


class DenseHead(nn.Module):
    """A map of predictions, `upscale` times finer than the decoder, or `shrink` times coarser."""

    def __init__(self, in_channels: int, out_channels: int, *, upscale: int = 1, shrink: int = 1):
        super().__init__()
        self.shrink = shrink
        self.norm = LayerNorm(in_channels, eps=1e-6)
        self.fc = nn.Linear(in_channels, out_channels * upscale**2)
        self.shuffle = nn.PixelShuffle(upscale)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, in_channels, h, w]` → `[B, out_channels, h * upscale / shrink, w * upscale / shrink]`."""
        if self.shrink > 1:
            x = F.avg_pool2d(x, self.shrink)
        return self.shuffle(self.fc(self.norm(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2))


class GlobalHead(nn.Module):
    """One vector per image from the backbone's pooled features (pooled and normalised by the backbone's own head)."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.fc = nn.Linear(in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, in_channels]` → `[B, out_channels]`."""
        return self.fc(x)
