"""CoCo DistillNet's networks by name, behind the contract of `csat/model/registry.py`, with two maps that can be tapped."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from csat.errors import ConfigError
from csat.model.contract import BACKBONE, DECODER, HEADS, PartedModel
from csat.model.networks.enet import ENet
from csat.model.networks.erfnet import ERFNet
from csat.model.networks.fanet import FANet
from csat.model.networks.mobile_unet import MobileUNet
from csat.responses import ResponseSpec

TAP_STRIDE_PX = 4  # of both tapped maps of every network
NETWORKS: dict[str, type[nn.Module]] = {
    "fanet": FANet,
    "mobile_unet": MobileUNet,
    "enet": ENet,
    "erfnet": ERFNet,
}
# The modules of each network that come before its narrowest map, in order, and those after it; the last one is `head`.
ENCODERS: dict[str, tuple[str, ...]] = {
    "fanet": ("encoder",),
    "mobile_unet": ("encoder",),
    "enet": ("initial", "stage1", "stages23"),
    "erfnet": ("down4", "down8"),
}
DECODERS: dict[str, tuple[str, ...]] = {
    "fanet": ("up", "decoder"),
    "mobile_unet": ("up", "decoder"),
    "enet": ("stage4", "stage5"),
    "erfnet": ("up4", "up2"),
}


class SegmentationNet(PartedModel):
    """A network with one dense head, for images in [0, 1].

    Attributes:
        responses: As given.
        network: Its name.
        options: As given; of that network.
        tap_channels: Channels of the two maps that `tap` gives.
        downsample, step_px: As every model has them.
    """

    downsample = 1

    def __init__(self, responses: Sequence[ResponseSpec], *, network: str, **options: Any):
        """
        Args:
            responses: The head: one, dense, over the whole tile.
            network: Key of `NETWORKS`.
            **options: Of that network; fanet has `width`, mobile_unet has `pretrained`.

        Raises:
            ConfigError: an unknown network, or heads that it does not have.
        """
        super().__init__()
        if network not in NETWORKS:
            raise ConfigError(f"there is no network {network!r}; there is: {', '.join(NETWORKS)}")
        if len(responses) != 1 or not responses[0].is_dense:
            names = ", ".join(spec.name for spec in responses) or "none"
            raise ConfigError(f"model {network!r} segments: it has one dense head, and was asked for: {names}")
        self.responses, self.network, self.options = tuple(responses), network, options
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

    @property
    def tapped_channels(self) -> tuple[int, int]:
        """Of the encoder's and of the decoder's map."""
        return self.tap_channels, self.tap_channels

    def check_tile(self, tile_px: int) -> None:
        """Refuse a tile size that the network cannot take. Raises ConfigError with the nearest that it can."""
        if tile_px <= 0 or tile_px % self.step_px:
            nearest = max(self.step_px, round(tile_px / self.step_px) * self.step_px)
            raise ConfigError(
                f"{self.network} takes tiles of multiples of {self.step_px} px: set data.tile_px {nearest}, not {tile_px}"
            )

    def parts(self) -> dict[str, list[nn.Module]]:
        return {
            BACKBONE: [self.net.get_submodule(name) for name in ENCODERS[self.network]],
            DECODER: [self.net.get_submodule(name) for name in DECODERS[self.network]],
            HEADS: [self.net.head],
        }

    def backbone_layers(self) -> dict[str, int]:
        """One layer per block of the encoder, in the order in which the image meets them."""
        blocks: dict[str, int] = {}
        layers = {}
        for part in ENCODERS[self.network]:
            for name, _ in self.net.get_submodule(part).named_parameters(prefix=f"net.{part}"):
                layers[name] = blocks.setdefault(_block_of(name), len(blocks))
        return layers

    def tensors_of_head(self, name: str) -> dict[str, Tensor]:
        """There is one head, whatever it is called."""
        return self.tensors_of(HEADS)


def _block_of(name: str) -> str:
    """`net.encoder.blocks.3.0.conv.weight` → `net.encoder.blocks.3`: up to the first number, or the module's own name."""
    parts = name.split(".")
    numbers = [index for index, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbers[0] + 1 if numbers else -1])
