"""Mobile U-Net: MobileNetV2 as the encoder of a U-Net whose decoder is made of inverted residual blocks; a student of CoCo.

Source: Jing et al. 2022, "Mobile-Unet", as Zou & Sun (arXiv 2108.12173) use it: 4x4 transposed convolutions to 96/32/24/16
channels, each joined with the encoder's map of that width, an inverted residual block (expansion 6), and at half the image's
resolution a 1x1 convolution to 3 channels and one to the classes, raised bilinearly. Published, for one channel of 256 x 256:
4.640M parameters and 1.492 GMAC.

Ours has 4.682M parameters: the published figure leaves out the batch norms' 0.043M. And 0.963 GMAC: the published one charges
transposed convolutions for every position of their output, which is four times too many and here more than a third of all
(`tests/csat/model/published_count.py`). Counted their way the two networks agree to the last digit.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csat.model.networks.backbones import load_weights

ENCODER = "mobilenetv2_100"
WIDTHS = (16, 24, 32, 96)  # of the encoder's maps at strides 2, 4, 8 and 16, and so of the decoder's
BOTTLENECK = 1280  # channels at stride 32
EXPANSION = 6
SCORED = 3  # channels between the two last convolutions


class MobileUNet(nn.Module):
    """The network. Attributes and `tap` as in `csat/model/networks/fanet.py`.

    Args:
        num_classes: Channels of the output.
        in_channels: Of the image; the published figures are for one.
        pretrained: The encoder starts from timm's weights: downloaded, or those of this file.
    """

    step_px = 32
    tap_channels = WIDTHS[1]

    def __init__(self, num_classes: int, *, in_channels: int = 3, pretrained: bool | str = False):
        super().__init__()
        import timm  # takes seconds, and this module lies under the settings of its model

        self.encoder = timm.create_model(ENCODER, num_classes=0, in_chans=in_channels, pretrained=pretrained is True)
        if isinstance(pretrained, str):
            load_weights(self.encoder, pretrained, name=ENCODER)
        descending = WIDTHS[::-1]
        below = (BOTTLENECK, *descending)
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(a, b, 4, stride=2, padding=1) for a, b in zip(below, WIDTHS[::-1], strict=False)
        )
        self.decoder = nn.ModuleList(_inverted_residual(2 * width, width) for width in descending)
        self.head = nn.Sequential(nn.Conv2d(WIDTHS[0], SCORED, 1), nn.Conv2d(SCORED, num_classes, 1))

    def forward(self, images: Tensor) -> Tensor:
        """`[B, in_channels, H, W]` → logits `[B, num_classes, H, W]`."""
        return self.tap(images)[2]

    def tap(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The encoder's and the decoder's last maps at a stride of 4 px, `[B, 24, H/4, W/4]`, and the logits."""
        x, maps = self.encoder.forward_intermediates(images)
        decoded = []
        for up, block, skip in zip(self.up, self.decoder, maps[3::-1], strict=True):
            x = block(torch.cat([skip, up(x)], 1))
            decoded.append(x)
        logits = F.interpolate(self.head(x), scale_factor=2.0, mode="bilinear", align_corners=False)
        return maps[1], decoded[2], logits


def _inverted_residual(in_channels: int, channels: int) -> nn.Sequential:
    """Widen, convolve each channel by itself, narrow (Sandler et al. 2018). No shortcut: the width changes."""
    wide = EXPANSION * in_channels
    return nn.Sequential(
        nn.Conv2d(in_channels, wide, 1, bias=False),
        nn.BatchNorm2d(wide),
        nn.ReLU6(inplace=True),
        nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False),
        nn.BatchNorm2d(wide),
        nn.ReLU6(inplace=True),
        nn.Conv2d(wide, channels, 1, bias=False),
        nn.BatchNorm2d(channels),
    )
