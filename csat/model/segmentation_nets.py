"""CoCo DistillNet's networks as models: one dense head, images in [0, 1], and two maps that can be tapped."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from csat.errors import ConfigError
from csat.model.contract import DECODED, ENCODED, Layer, Model, ModelConfig, NoOptions
from csat.model.networks.enet import ENet
from csat.model.networks.erfnet import ERFNet
from csat.model.networks.fanet import WIDTH, FANet
from csat.model.networks.mobile_unet import MobileUNet
from csat.model.parts import BACKBONE, DECODER, HEADS
from csat.responses import ResponseSpec
from csat.tasks import DatasetInfo, Task

TAP_STRIDE_PX = 4  # of both tapped maps of every network


class SegmentationNet(Model):
    """What the networks share. A subclass names its network.

    Attributes:
        Network: The network, of which `net` is one.
        encoder, decoder: Its modules before its narrowest map, in order, and those after it; the last one is `head`.
    """

    Network: ClassVar[type[nn.Module]]
    encoder: ClassVar[tuple[str, ...]] = ("encoder",)
    decoder: ClassVar[tuple[str, ...]] = ("up", "decoder")

    def __init__(self, options: object, responses: Sequence[ResponseSpec], *, pretrained: bool | str = False):
        """
        Args:
            options: What it is made of.
            responses: The head: one, dense, over the whole tile.
            pretrained: With timm's own weights, downloaded or of this file, where it has any.

        Raises:
            ConfigError: heads that it does not have.
        """
        super().__init__(options, responses)
        if len(responses) != 1 or not responses[0].is_dense:
            names = ", ".join(spec.name for spec in responses) or "none"
            raise ConfigError(f"model {self.kind!r} segments: it has one dense head, and was asked for: {names}")
        more = {"pretrained": pretrained} if self.has_pretrained else {}
        self.net = self.Network(responses[0].channels, **asdict(options), **more)
        self.step_px = self.net.step_px
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))

    @classmethod
    def check_task(cls, config: ModelConfig, info: DatasetInfo) -> None:
        if info.task != Task.SEGMENTATION:
            raise ConfigError(f"model {cls.kind} segments, and the task is {info.task}: choose unet or a timm backbone")

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Float `[B, 3, H, W]` in [0, 1] → name → logits `[B, C, H, W]`."""
        return self.tap(images, ())[1]

    @property
    def layers(self) -> dict[str, Layer]:
        """One map of the encoder, one of the decoder."""
        layer = Layer(channels=self.net.tap_channels, stride_px=TAP_STRIDE_PX)
        return {ENCODED: layer, DECODED: layer}

    def tap(self, images: Tensor, layers: Iterable[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """As every model; `images` are in [0, 1], their edges multiples of `step_px`."""
        encoded, decoded, logits = self.net.tap((images - self.mean) / self.std)
        maps = {ENCODED: encoded, DECODED: decoded}
        return {name: maps[name] for name in layers}, {spec.name: logits for spec in self.responses}

    def tile_sizes(self, largest_px: int) -> tuple[int, ...]:
        return tuple(range(self.step_px, largest_px + 1, self.step_px))

    def parts(self) -> dict[str, list[nn.Module]]:
        return {
            BACKBONE: [self.net.get_submodule(name) for name in self.encoder],
            DECODER: [self.net.get_submodule(name) for name in self.decoder],
            HEADS: [self.net.head],
        }

    def backbone_layers(self) -> dict[str, int]:
        """One layer per block of the encoder, in the order in which the image meets them."""
        blocks: dict[str, int] = {}
        layers = {}
        for part in self.encoder:
            for name, _ in self.net.get_submodule(part).named_parameters(prefix=f"net.{part}"):
                layers[name] = blocks.setdefault(_block_of(name), len(blocks))
        return layers

    def tensors_of_head(self, name: str) -> dict[str, Tensor]:
        """There is one head, whatever it is called."""
        return self.tensors_of(HEADS)


@dataclass(frozen=True, kw_only=True)
class FANetOptions:
    """Of `name: fanet`."""

    width: int = WIDTH  # channels at full resolution, a multiple of 8


class FANetModel(SegmentationNet):
    kind = "fanet"
    Options = FANetOptions
    Network = FANet


class MobileUNetModel(SegmentationNet):
    """Its encoder is timm's MobileNetV2."""

    kind = "mobile_unet"
    Options = NoOptions
    Network = MobileUNet
    has_pretrained = True


class ENetModel(SegmentationNet):
    kind = "enet"
    Options = NoOptions
    Network = ENet
    encoder = ("initial", "stage1", "stages23")
    decoder = ("stage4", "stage5")


class ERFNetModel(SegmentationNet):
    kind = "erfnet"
    Options = NoOptions
    Network = ERFNet
    encoder = ("down4", "down8")
    decoder = ("up4", "up2")


def _block_of(name: str) -> str:
    """`net.encoder.blocks.3.0.conv.weight` → `net.encoder.blocks.3`: up to the first number, or the module's own name."""
    parts = name.split(".")
    numbers = [index for index, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbers[0] + 1 if numbers else -1])
