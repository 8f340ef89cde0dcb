"""HoVer-Net as a model that fine-tuning trains: images in [0, 1] in, the nuclei heads out, over the whole tile."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from csat.errors import ConfigError
from csat.model.contract import Model, ModelConfig
from csat.model.networks.hovernet import MARGIN_PX, SMALLEST_PX, HoVerNet, Mode, check_edge
from csat.model.parts import BACKBONE, DECODER, HEADS
from csat.responses import ResponseSpec
from csat.tasks import DatasetInfo, Task, heads_of

ENCODER = ("conv0", "d0", "d1", "d2", "d3", "conv_bot")  # in order from the image


@dataclass(frozen=True, kw_only=True)
class HoverNetModelOptions:
    """Of `name: hovernet`."""

    mode: Mode = "fast"  # fast or original
    width: float = 1.0  # fraction of the published channels


class HoverNetModel(Model):
    """The network behind the contract of the models; `net` keeps the published tensor names, and the file has no others."""

    kind = "hovernet"
    Options = HoverNetModelOptions
    weights_file = "hovernet.safetensors"
    step_px = 2  # its own rule is stricter: see check_tile

    def __init__(self, options: HoverNetModelOptions, responses: Sequence[ResponseSpec]):
        """
        Args:
            options: What it is made of.
            responses: `np`, `hv` and, with types, `tp`, with the mode's margin as their `crop_px`.
        """
        super().__init__(options, responses)
        self.mode = options.mode
        num_types = next((spec.channels for spec in responses if spec.name == "tp"), None)
        self.net = HoVerNet(mode=options.mode, num_types=num_types, width=options.width)

    @classmethod
    def check_task(cls, config: ModelConfig, info: DatasetInfo) -> None:
        if info.task != Task.NUCLEI:
            raise ConfigError(f"model hovernet finds nuclei, and the task is {info.task}: choose unet or a timm backbone")

    @classmethod
    def heads_for(cls, info: DatasetInfo, options: HoverNetModelOptions) -> tuple[ResponseSpec, ...]:
        return heads_of(info, crop_px=MARGIN_PX[options.mode])

    def state(self) -> dict[str, dict[str, Tensor]]:
        return {self.weights_file: self.net.state_dict()}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        self.net.load_state_dict(tensors)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Raw predictions.

        Args:
            images: Float `[B, 3, H, W]` in [0, 1].

        Returns:
            `np` a logit `[B, 1, H, W]` (the difference of the network's two), `hv` `[B, 2, H, W]`, `tp` logits `[B, T, H, W]`;
            zeros on the margin that the network does not cover.
        """
        outputs = self.net(images * 255, branches=[spec.name for spec in self.responses])
        if "np" in outputs:
            outputs["np"] = outputs["np"][:, 1:] - outputs["np"][:, :1]
        margin_px = MARGIN_PX[self.mode]
        return {spec.name: F.pad(outputs[spec.name], [margin_px] * 4) for spec in self.responses}

    def check_tile(self, tile_px: int) -> None:
        """Refuse a tile size that the network cannot take. Raises ConfigError with the nearest that it can."""
        check_edge(tile_px, self.mode)

    def tile_sizes(self, largest_px: int) -> tuple[int, ...]:
        return tuple(range(SMALLEST_PX[self.mode], largest_px + 1, 8))

    def parts(self) -> dict[str, list[nn.Module]]:
        """The encoder; of each branch what upsamples; of each branch its last layers, which say as many channels as it has."""
        branches = self.net.decoder.values()
        return {
            BACKBONE: [getattr(self.net, name) for name in ENCODER],
            DECODER: [branch[name] for branch in branches for name in ("u3", "u2", "u1")],
            HEADS: [branch["u0"] for branch in branches],
        }

    def backbone_layers(self) -> dict[str, int]:
        """One layer per stage of the encoder."""
        return {
            f"net.{stage}.{name}": layer
            for layer, stage in enumerate(ENCODER)
            for name, _ in getattr(self.net, stage).named_parameters()
        }
