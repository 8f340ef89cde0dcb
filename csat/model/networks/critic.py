"""The critic of adversarial distillation: does this segmentation of this image come from the teacher or from the student?

Source: the PatchGAN of Isola et al. 2017 (arXiv 1611.07004) with three layers of stride 2 and instance norm, on the image and
the logits together, as CoCo DistillNet names it (Zou & Sun 2021, arXiv 2108.12173). No batch norm: the gradient penalty of
`csat/losses/wgan.py` needs every tile's scores to depend on that tile alone.
"""

import torch
from torch import Tensor, nn

from csat.errors import ConfigError

WIDTH = 64  # of the first layer
FACTORS = (1, 2, 4, 8)  # of the layers' widths; the first three halve the resolution
KERNEL = 4
SLOPE = 0.2  # of LeakyReLU below zero
SMALLEST_PX = 24  # below, the last norm would see a single cell


class PatchCritic(nn.Module):
    """A score for each patch of 70 x 70 px.

    Args:
        num_classes: Channels of the logits.
        width: Channels of the first layer; the cost grows with its square.
        image_channels: Channels of the image.
    """

    def __init__(self, num_classes: int, *, width: int = WIDTH, image_channels: int = 3):
        super().__init__()
        layers: list[nn.Module] = []
        channels = image_channels + num_classes
        for index, factor in enumerate(FACTORS):
            layers.append(nn.Conv2d(channels, factor * width, KERNEL, stride=1 if index == len(FACTORS) - 1 else 2, padding=1))
            layers += [nn.InstanceNorm2d(factor * width)] * (index > 0)
            layers.append(nn.LeakyReLU(SLOPE))
            channels = factor * width
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels, 1, KERNEL, padding=1))

    def forward(self, images: Tensor, logits: Tensor) -> Tensor:
        """Higher for the teacher, once it is trained.

        Args:
            images: float `[B, image_channels, H, W]` in [0, 1].
            logits: `[B, num_classes, H, W]`.

        Returns:
            `[B, 1, H/8 - 2, W/8 - 2]`.

        Raises:
            ConfigError: images and logits are not of one size, or are too small.
        """
        if images.shape[2:] != logits.shape[2:] or min(images.shape[2:]) < SMALLEST_PX:
            raise ConfigError(
                f"the critic takes images and logits of one size, {SMALLEST_PX} px or more, not {list(images.shape)} and "
                f"{list(logits.shape)}"
            )
        return self.layers(torch.cat([images.to(logits.dtype), logits], 1))
