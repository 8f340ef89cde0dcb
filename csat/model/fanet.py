"""FANet, the teacher of CoCo DistillNet: a U-Net of selective-kernel residual blocks, with strip pooling in its decoder.

Source: Zou & Sun 2021 (arXiv 2108.12173), after the fully attention-based network of Li et al. 2020 (JBHI, doi
10.1109/JBHI.2020.3028180); selective kernels: Li et al. 2019 (arXiv 1903.06586); strip pooling: Hou et al. 2020 (arXiv
2003.13328). Published: widths 64/128/256/512, each double convolution two selective-kernel residual blocks (5x5 beside 3x3,
reduction 2), strip pooling after the decoder's 256/128/64; with two classes and one channel of 256 x 256 38.25M parameters and
171.556 GMAC.

What is inside a block was never published. Decided here, as an arrangement that meets both figures: a residual block is a 3x3
convolution, then a selective kernel, with a 1x1 convolution on the shortcut where the width changes; the shares of the two
branches are a sigmoid (a softmax over two, without its redundant half); strip pooling works at a quarter of the width.

That is 38.61M parameters (0.9% above), and 171.75 GMAC (0.1% above) *as the authors counted*: their tool charges a transposed
convolution for every position of its output, four times too many, and batch norm. Without that it is 166.69 GMAC, 2.8% below,
which is what `csat.model.cost` says. The students' published figures confirm that way of counting to the last digit: see
`tests/csat/model/published_count.py`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csat.errors import ConfigError

WIDTH = 64  # channels at full resolution; doubled at each of the three levels below
KERNELS = (3, 5)  # of the two branches of a selective kernel
REDUCTION = 2  # of the channels between the two linears that choose between the branches
STRIP_TAPS = 3  # of the convolutions along a strip
STRIP_RATIO = 4  # of the channels to those of a strip


class FANet(nn.Module):
    """The network.

    Args:
        num_classes: Channels of the output.
        in_channels: Of the image; the published figures are for one.
        width: Channels at full resolution, a multiple of 8; 64 is the published network.

    Attributes:
        step_px: Image edges are multiples of it.
        tap_channels: Channels of the two maps that `tap` gives, both at a stride of 4 px.

    Raises:
        ConfigError: a width that strip pooling cannot divide.
    """

    step_px = 8

    def __init__(self, num_classes: int, *, in_channels: int = 3, width: int = WIDTH):
        super().__init__()
        if width < 8 or width % 8:
            raise ConfigError(f"fanet: width is a multiple of 8, such as 64 (as published) or 16, not {width}")
        widths = [width * 2**level for level in range(4)]
        self.tap_channels = widths[2]
        self.encoder = nn.ModuleList(_double(a, b) for a, b in zip((in_channels, *widths), widths, strict=False))
        decoded = list(zip(widths[:0:-1], widths[-2::-1], strict=True))  # (512, 256), (256, 128), (128, 64)
        self.up = nn.ModuleList(nn.ConvTranspose2d(below, here, 2, stride=2) for below, here in decoded)
        self.decoder = nn.ModuleList(nn.Sequential(_double(2 * here, here), StripPooling(here)) for _, here in decoded)
        self.head = nn.Conv2d(width, num_classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        """`[B, in_channels, H, W]` → logits `[B, num_classes, H, W]`."""
        return self.tap(images)[2]

    def tap(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What CoCo compares, and the logits.

        Returns:
            The third encoder block's map and the first up-convolution's (before the skip joins it), both
            `[B, tap_channels, H/4, W/4]`, and logits `[B, num_classes, H, W]`.
        """
        maps, x = [], images
        for level, block in enumerate(self.encoder):
            x = block(x if level == 0 else F.max_pool2d(x, 2))
            maps.append(x)
        raised = []
        for up, block, skip in zip(self.up, self.decoder, maps[-2::-1], strict=True):
            raised.append(up(x))
            x = block(torch.cat([skip, raised[-1]], 1))
        return maps[2], raised[0], self.head(x)


class SelectiveKernel(nn.Module):
    """A 3x3 and a 5x5 convolution, mixed channel by channel in shares that the whole image decides."""

    def __init__(self, channels: int):
        super().__init__()
        self.branches = nn.ModuleList(_convolve(channels, channels, kernel, nn.ReLU()) for kernel in KERNELS)
        self.to_share = nn.Sequential(
            nn.Linear(channels, channels // REDUCTION),
            nn.ReLU(),
            nn.Linear(channels // REDUCTION, channels),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` in and out."""
        small, large = (branch(x) for branch in self.branches)
        share = self.to_share((small + large).mean((2, 3)))
        return torch.lerp(small, large, share[:, :, None, None])


class SelectiveResidual(nn.Module):
    """3x3 convolution → selective kernel, with a shortcut."""

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        self.branch = nn.Sequential(_convolve(in_channels, channels, 3, nn.ReLU()), SelectiveKernel(channels))
        self.shortcut = nn.Identity() if in_channels == channels else _convolve(in_channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, in_channels, H, W]` → `[B, channels, H, W]`."""
        return F.relu(self.branch(x) + self.shortcut(x))


class StripPooling(nn.Module):
    """A gate in (0, 1) per position and channel, from the means of its row and of its column."""

    def __init__(self, channels: int):
        super().__init__()
        inner = channels // STRIP_RATIO
        along = {"padding": "same", "bias": False}
        self.down = nn.Sequential(nn.Conv2d(channels, inner, (STRIP_TAPS, 1), **along), nn.BatchNorm2d(inner))
        self.across = nn.Sequential(nn.Conv2d(channels, inner, (1, STRIP_TAPS), **along), nn.BatchNorm2d(inner))
        self.to_gate = nn.Conv2d(inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` in and out."""
        strips = self.down(x.mean(3, keepdim=True)) + self.across(x.mean(2, keepdim=True))
        return x * self.to_gate(F.relu(strips)).sigmoid()


def _double(in_channels: int, channels: int) -> nn.Sequential:
    return nn.Sequential(SelectiveResidual(in_channels, channels), SelectiveResidual(channels, channels))


def _convolve(in_channels: int, channels: int, kernel: int, *then: nn.Module) -> nn.Sequential:
    convolution = nn.Conv2d(in_channels, channels, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels), *then)
