"""The paraphraser: what a teacher's layer says, in as many channels as the student has.

Source: Kim et al. 2018, "Paraphrasing complex network: network compression via factor transfer" (arXiv 1802.04977), as CoCo
DistillNet uses it (Zou & Sun 2021, arXiv 2108.12173): an autoencoder of 3x3 convolutions 256 → 256 → k → k with LeakyReLU 0.1,
and its mirror image, without batch norm. It is trained without labels to reconstruct one tapped layer of one teacher, and then
frozen; its encoder's output is that layer's *factor*. With k the student's channels, the student needs no translator.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from csat.errors import ConfigError

SLOPE = 0.1  # of LeakyReLU below zero


class Paraphraser(nn.Module):
    """Encoder and decoder of one tapped layer.

    Args:
        channels: Of the teacher's layer.
        factor_channels: k, the student's channels at the layer that it is compared with.
    """

    def __init__(self, channels: int, factor_channels: int):
        super().__init__()
        if min(channels, factor_channels) < 1:
            raise ConfigError(f"a paraphraser needs channels on both sides, not {channels} and {factor_channels}")
        self.channels, self.factor_channels = channels, factor_channels
        widths = (channels, channels, factor_channels, factor_channels)
        self.encoder = _convolutions(widths)
        self.decoder = _convolutions(widths[::-1])

    def forward(self, features: Tensor) -> Tensor:
        """The reconstruction of a layer, `[B, channels, H, W]` in and out."""
        return self.decoder(self.paraphrase(features))

    def paraphrase(self, features: Tensor) -> Tensor:
        """The factor: `[B, channels, H, W]` → `[B, factor_channels, H, W]`.

        Raises:
            ConfigError: the layer has other channels than the one it was made for: another teacher's, or another layer.
        """
        if features.ndim != 4 or features.shape[1] != self.channels:
            raise ConfigError(
                f"this paraphraser was made for a layer of {self.channels} channels, and the teacher's is "
                f"{list(features.shape)}: train one for this teacher and layer"
            )
        return self.encoder(features)

    def reconstruction_error(self, features: Tensor) -> Tensor:
        """What its training lowers: the mean squared error of the reconstruction of each tile, float32 `[B]`.

        Args:
            features: `[B, channels, H, W]`, the teacher's; detached.
        """
        features = features.detach()
        return F.mse_loss(self(features).float(), features.float(), reduction="none").flatten(1).mean(1)


def _convolutions(widths: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in zip(widths, widths[1:], strict=False):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.LeakyReLU(SLOPE)]
    return nn.Sequential(*layers)
