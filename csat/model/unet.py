"""A plain U-Net (Ronneberger et al. 2015) as everybody uses it: padded convolutions and batch norm; the common baseline.

Differs from the paper: convolutions are padded, so the output covers the image; batch norm after each; bilinear upsampling
with a 1x1 convolution in the place of transposed convolutions, which leave a checkerboard.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csat.errors import ConfigError
from csat.model.contract import Model
from csat.model.parts import BACKBONE, DECODER, HEADS
from csat.responses import ResponseSpec


@dataclass(frozen=True, kw_only=True)
class UNetOptions:
    """Of `name: unet`."""

    width: int = 32  # channels at full resolution; doubled at each level
    depth: int = 4  # times that the image is halved

    def __post_init__(self):
        if self.width < 1 or not 1 <= self.depth <= 6:
            raise ConfigError(f"unet: width must be at least 1 and depth 1 to 6, not {self.width} and {self.depth}")


class UNetModel(Model):
    """Encoder, decoder with skips, and one 1x1 head per response; heads without pixels see the pooled bottleneck."""

    kind = "unet"
    Options = UNetOptions

    def __init__(self, options: UNetOptions, responses: Sequence[ResponseSpec]):
        super().__init__(options, responses)
        width, depth = options.width, options.depth
        self.step_px = 2**depth
        widths = [width * 2**level for level in range(depth + 1)]
        self.encoder = nn.ModuleList(_double(a, b) for a, b in zip([3, *widths], widths, strict=False))
        self.is_dense = any(spec.is_dense for spec in responses)
        levels = list(zip(widths[1:], widths, strict=False)) if self.is_dense else []
        self.up = nn.ModuleList(nn.Conv2d(below, here, 1) for below, here in levels)
        self.decoder = nn.ModuleList(_double(2 * here, here) for _, here in levels)
        self.heads = nn.ModuleDict(
            {
                spec.name: nn.Conv2d(width, spec.channels, 1) if spec.is_dense else nn.Linear(widths[-1], spec.channels)
                for spec in responses
            }
        )
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Float `[B, 3, H, W]` in [0, 1] → name → raw prediction, `[B, C, H, W]` or `[B, C]`."""
        x = (images - self.mean) / self.std
        skips = []
        for level, block in enumerate(self.encoder):
            x = block(x if level == 0 else F.max_pool2d(x, 2))
            skips.append(x)
        pooled = skips.pop().mean((2, 3))
        for level in reversed(range(len(self.decoder))):
            x = F.interpolate(self.up[level](x), scale_factor=2.0, mode="bilinear", align_corners=False)
            x = self.decoder[level](torch.cat([skips[level], x], 1))
        return {spec.name: self.heads[spec.name](x if spec.is_dense else pooled) for spec in self.responses}

    def tile_sizes(self, largest_px: int) -> tuple[int, ...]:
        return tuple(range(self.step_px, largest_px + 1, self.step_px))

    def parts(self) -> dict[str, list[nn.Module]]:
        return {BACKBONE: [self.encoder], DECODER: [*self.up, *self.decoder], HEADS: list(self.heads.values())}

    def backbone_layers(self) -> dict[str, int]:
        """One layer per resolution."""
        return {
            f"encoder.{level}.{name}": level
            for level, block in enumerate(self.encoder)
            for name, _ in block.named_parameters()
        }


def _double(in_channels: int, channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
        nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
    )
