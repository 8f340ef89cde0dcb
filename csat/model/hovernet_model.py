"""HoVer-Net as a model that fine-tuning trains: images in [0, 1] in, the nuclei heads out, over the whole tile."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from csat.model.contract import BACKBONE, DECODER, HEADS, PartedModel
from csat.model.networks.hovernet import MARGIN_PX, HoVerNet, Mode, check_edge
from csat.responses import ResponseSpec

ENCODER = ("conv0", "d0", "d1", "d2", "d3", "conv_bot")  # in order from the image


class HoverNetModel(PartedModel):
    """The network behind the contract of `csat/model/registry.py`; `net` keeps the published tensor names.

    Args:
        responses: `np`, `hv` and, with types, `tp`, with the mode's margin as their `crop_px`.
        mode: "fast" or "original".
        width: Fraction of the published channels.
    """

    downsample = 1
    step_px = 2  # its own rule is stricter: see check_tile

    def __init__(self, responses: Sequence[ResponseSpec], *, mode: Mode = "fast", width: float = 1.0):
        super().__init__()
        self.responses = tuple(responses)
        self.mode, self.width = mode, width
        num_types = next((spec.channels for spec in responses if spec.name == "tp"), None)
        self.net = HoVerNet(mode=mode, num_types=num_types, width=width)

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
