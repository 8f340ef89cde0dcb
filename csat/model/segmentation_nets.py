"""CoCo DistillNet's networks by name, behind the contract of `csat/model/registry.py`, with two maps that can be tapped."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from csat.errors import ConfigError
from csat.model.enet import ENet
from csat.model.erfnet import ERFNet
from csat.model.fanet import FANet
from csat.model.mobile_unet import MobileUNet
from csat.responses import ResponseSpec

TAP_STRIDE_PX = 4  # of both tapped maps of every network
NETWORKS: dict[str, type[nn.Module]] = {
    "fanet": FANet,
    "mobile_unet": MobileUNet,
    "enet": ENet,
    "erfnet": ERFNet,
}


class SegmentationNet(nn.Module):
    """A network with one dense head, for images in [0, 1].

    Attributes:
        responses: As given.
        network: Its name.
        tap_channels: Channels of the two maps that `tap` gives.
        downsample, step_px: As every model has them.
    """

    downsample = 1

    def __init__(self, responses: Sequence[ResponseSpec], *, network: str, **options: Any):
        """
        Args:
            responses: The head: one, dense, over the whole tile.
            network: Key of `NETWORKS`.
            **options: Of that network; mobile_unet has `pretrained`.

        Raises:
            ConfigError: an unknown network, or heads that it does not have.
        """
        super().__init__()
        if network not in NETWORKS:
            raise ConfigError(f"there is no network {network!r}; there is: {', '.join(NETWORKS)}")
        if len(responses) != 1 or not responses[0].is_dense:
            names = ", ".join(spec.name for spec in responses) or "none"
            raise ConfigError(f"model {network!r} segments: it has one dense head, and was asked for: {names}")
        self.responses, self.network = tuple(responses), network
        self.net = NETWORKS[network](responses[0].channels, **options)
        self.step_px, self.tap_channels = self.net.step_px, self.net.tap_channels
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Float `[B, 3, H, W]` in [0, 1] → name → logits `[B, C, H, W]`."""
        return {self.responses[0].name: self.tap(images)[2]}

    def tap(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One map of the encoder, one of the decoder, and the logits.

        Args:
            images: Float `[B, 3, H, W]` in [0, 1]; H and W multiples of `step_px`.

        Returns:
            `[B, tap_channels, H/4, W/4]` twice, and `[B, C, H, W]`.
        """
        return self.net.tap((images - self.mean) / self.std)

    def check_tile(self, tile_px: int) -> None:
        """Refuse a tile size that the network cannot take. Raises ConfigError with the nearest that it can."""
        if tile_px <= 0 or tile_px % self.step_px:
            nearest = max(self.step_px, round(tile_px / self.step_px) * self.step_px)
            raise ConfigError(
                f"{self.network} takes tiles of multiples of {self.step_px} px: set --data.tile_px {nearest}, not {tile_px}"
            )
