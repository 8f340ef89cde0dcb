"""ERFNet: residual blocks of one-dimensional convolutions, dilated in the encoder; a student of CoCo.

Source: Romera et al. 2018 (IEEE T-ITS, doi 10.1109/TITS.2017.2750080), as Zou & Sun (arXiv 2108.12173) use it: dropout 0.1
throughout the encoder. Published there, for one channel of 256 x 256: 2.063M parameters and 3.681 GMAC. Ours has the same,
counted as the authors counted (`tests/csat/model/published_count.py`); what is multiplied is 3.304 GMAC.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BN_EPS = 1e-3
DILATIONS = (2, 4, 8, 16)  # of the encoder's last eight blocks, twice in this order


class ERFNet(nn.Module):
    """The network. Attributes and `tap` as in `csat/model/networks/fanet.py`.

    Args:
        num_classes: Channels of the output.
        in_channels: Of the image; the published figures are for one.
    """

    step_px = 8
    tap_channels = 64

    def __init__(self, num_classes: int, *, in_channels: int = 3):
        super().__init__()
        self.down4 = nn.Sequential(Down(in_channels, 16), Down(16, 64))
        dilated = [Factorised(128, dilation, dropout=0.1) for _ in range(2) for dilation in DILATIONS]
        self.down8 = nn.Sequential(*[Factorised(64, dropout=0.1) for _ in range(5)], Down(64, 128), *dilated)
        self.up4 = nn.Sequential(*_up(128, 64), Factorised(64), Factorised(64))
        self.up2 = nn.Sequential(*_up(64, 16), Factorised(16), Factorised(16))
        self.head = nn.ConvTranspose2d(16, num_classes, 2, stride=2)

    def forward(self, images: Tensor) -> Tensor:
        """`[B, in_channels, H, W]` → logits `[B, num_classes, H, W]`."""
        return self.tap(images)[2]

    def tap(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The second downsampling's map and the decoder's first stage, both `[B, 64, H/4, W/4]`, and the logits."""
        encoded = self.down4(images)
        decoded = self.up4(self.down8(encoded))
        return encoded, decoded, self.head(self.up2(decoded))


class Down(nn.Module):
    """A convolution beside a maximum, at half the resolution."""

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        self.convolve = nn.Conv2d(in_channels, channels - in_channels, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(channels, eps=BN_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, in_channels, H, W]` → `[B, channels, H/2, W/2]`."""
        return F.relu(self.norm(torch.cat([self.convolve(x), F.max_pool2d(x, 2)], 1)))


class Factorised(nn.Module):
    """3x1 → 1x3, twice, the second time dilated, with a shortcut ("non-bottleneck-1D"). `[B, C, H, W]` in and out."""

    def __init__(self, channels: int, dilation: int = 1, *, dropout: float = 0.0):
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(channels, channels, (3, 1), padding=(1, 0)),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, (1, 3), padding=(0, 1)),
            nn.BatchNorm2d(channels, eps=BN_EPS),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, (3, 1), padding=(dilation, 0), dilation=(dilation, 1)),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, (1, 3), padding=(0, dilation), dilation=(1, dilation)),
            nn.BatchNorm2d(channels, eps=BN_EPS),
            nn.Dropout2d(dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.branch(x))


def _up(in_channels: int, channels: int) -> tuple[nn.Module, ...]:
    raised = nn.ConvTranspose2d(in_channels, channels, 3, stride=2, padding=1, output_padding=1)
    return raised, nn.BatchNorm2d(channels, eps=BN_EPS), nn.ReLU(inplace=True)
