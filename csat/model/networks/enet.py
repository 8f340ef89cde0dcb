"""ENet: bottlenecks at an eighth of the image's resolution, dilated and asymmetric by turns; a student of CoCo.

Source: Paszke et al. 2016 (arXiv 1606.02147), as Zou & Sun (arXiv 2108.12173) use it: PReLU in the encoder, ReLU in the
decoder. Published there, for one channel of 256 x 256: 0.349M parameters and 0.516 GMAC. Ours has the same, counted as the
authors counted (`tests/csat/model/published_count.py`); what is multiplied is 0.461 GMAC.

Differs: the decoder raises its shortcut by nearest neighbours and not by the positions of the encoder's maxima. Unpooling by
positions has no deterministic backward pass on CUDA and no ONNX form; parameters and multiplications are the same.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

INTERNAL_RATIO = 4  # of a bottleneck's channels to those of its inner convolution
# Stages 2 and 3: what the inner convolution of each bottleneck is. A number dilates a 3x3, "5" is a 5x1 and a 1x5.
MIDDLE = (1, 2, "5", 4, 1, 8, "5", 16)


class ENet(nn.Module):
    """The network. Attributes and `tap` as in `csat/model/networks/fanet.py`.

    Args:
        num_classes: Channels of the output.
        in_channels: Of the image; the published figures are for one.
    """

    step_px = 8
    tap_channels = 64

    def __init__(self, num_classes: int, *, in_channels: int = 3):
        super().__init__()
        self.initial = Initial(in_channels, 16)
        self.stage1 = nn.Sequential(
            DownBottleneck(16, 64, dropout=0.01), *[Bottleneck(64, dropout=0.01, act=nn.PReLU) for _ in range(4)]
        )
        middle = [Bottleneck(128, kind, dropout=0.1, act=nn.PReLU) for _ in range(2) for kind in MIDDLE]
        self.stages23 = nn.Sequential(DownBottleneck(64, 128, dropout=0.1), *middle)
        self.stage4 = nn.Sequential(UpBottleneck(128, 64), *[Bottleneck(64, dropout=0.1, act=nn.ReLU) for _ in range(2)])
        self.stage5 = nn.Sequential(UpBottleneck(64, 16), Bottleneck(16, dropout=0.1, act=nn.ReLU))
        self.head = nn.ConvTranspose2d(16, num_classes, 3, stride=2, padding=1, output_padding=1, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """`[B, in_channels, H, W]` → logits `[B, num_classes, H, W]`."""
        return self.tap(images)[2]

    def tap(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The maps at the ends of stages 1 and 4, both `[B, 64, H/4, W/4]`, and the logits."""
        encoded = self.stage1(self.initial(images))
        decoded = self.stage4(self.stages23(encoded))
        return encoded, decoded, self.head(self.stage5(decoded))


class Initial(nn.Module):
    """A convolution beside a maximum, at half the resolution."""

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        self.convolve = nn.Conv2d(in_channels, channels - in_channels, 3, stride=2, padding=1, bias=False)
        self.norm = nn.Sequential(nn.BatchNorm2d(channels), nn.PReLU())

    def forward(self, x: Tensor) -> Tensor:
        """`[B, in_channels, H, W]` → `[B, channels, H/2, W/2]`."""
        return self.norm(torch.cat([self.convolve(x), F.max_pool2d(x, 3, stride=2, padding=1)], 1))


class Bottleneck(nn.Module):
    """1x1 → inner convolution → 1x1, with a shortcut. `[B, C, H, W]` in and out."""

    def __init__(self, channels: int, kind: int | str = 1, *, dropout: float, act: type[nn.Module]):
        super().__init__()
        inner = channels // INTERNAL_RATIO
        if kind == "5":
            middle = [
                *_convolve(inner, inner, (5, 1), act, padding=(2, 0)),
                *_convolve(inner, inner, (1, 5), act, padding=(0, 2)),
            ]
        else:
            middle = _convolve(inner, inner, 3, act, padding=kind, dilation=kind)
        self.branch = nn.Sequential(
            *_convolve(channels, inner, 1, act), *middle, *_convolve(inner, channels, 1, act), nn.Dropout2d(dropout)
        )
        self.act = act()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x + self.branch(x))


class DownBottleneck(nn.Module):
    """A bottleneck that halves the resolution; its shortcut is a maximum, with zeros for the new channels."""

    def __init__(self, in_channels: int, channels: int, *, dropout: float):
        super().__init__()
        inner, act = in_channels // INTERNAL_RATIO, nn.PReLU
        self.num_new = channels - in_channels
        self.branch = nn.Sequential(
            *_convolve(in_channels, inner, 2, act, stride=2),
            *_convolve(inner, inner, 3, act, padding=1),
            *_convolve(inner, channels, 1, act),
            nn.Dropout2d(dropout),
        )
        self.act = act()

    def forward(self, x: Tensor) -> Tensor:
        """`[B, in_channels, H, W]` → `[B, channels, H/2, W/2]`."""
        return self.act(F.pad(F.max_pool2d(x, 2), (0, 0, 0, 0, 0, self.num_new)) + self.branch(x))


class UpBottleneck(nn.Module):
    """A bottleneck that doubles the resolution."""

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        inner = in_channels // INTERNAL_RATIO
        self.shortcut = nn.Sequential(nn.Conv2d(in_channels, channels, 1, bias=False), nn.BatchNorm2d(channels))
        self.branch = nn.Sequential(
            *_convolve(in_channels, inner, 1, nn.ReLU),
            nn.ConvTranspose2d(inner, inner, 2, stride=2, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(),
            nn.Conv2d(inner, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.Dropout2d(0.1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """`[B, in_channels, H, W]` → `[B, channels, 2H, 2W]`."""
        return F.relu(F.interpolate(self.shortcut(x), scale_factor=2.0, mode="nearest") + self.branch(x))


def _convolve(
    in_channels: int, channels: int, kernel: int | tuple[int, int], act: type[nn.Module], **options
) -> tuple[nn.Module, ...]:
    return nn.Conv2d(in_channels, channels, kernel, bias=False, **options), nn.BatchNorm2d(channels), act()
