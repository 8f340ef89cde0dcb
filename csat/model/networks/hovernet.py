"""HoVer-Net's network (Graham et al., Medical Image Analysis 2019), with the tensor names and shapes of its published weights.

A preact-ResNet50 that halves the image three times (conv0 at full resolution), and one decoder per question: `tp` which
type of nucleus, `np` is it a nucleus, `hv` how far to its centre. The decoders convolve without padding, so what comes out
covers the image less a fixed margin.

| mode | decoder kernel | conv0 | published for | image → output | margin | valid edges |
|---|---|---|---|---|---|---|
| fast | 3 | zero-padded | PanNuke, MoNuSAC | 256 → 164 px | 46 px | multiples of 8 from 96 px |
| original | 5 | unpadded | CoNSeP, Kumar, CPM17 | 270 → 80 px | 95 px | 6 + multiples of 8 from 198 px |

The names hold "/" and what looks like a stutter because the published checkpoints do: they load strictly or not at all.

Source: the paper's figure 2 and the published checkpoints. Differs: `width` narrows every layer, for CPUs and dry runs
(width 1 is the published net); a branch that nobody wants is not computed; upsampling repeats pixels instead of
multiplying by the 2x2 of ones that the checkpoints carry (the same numbers).
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csat.errors import ConfigError

Mode = Literal["fast", "original"]

DECODER_KERNEL = {"fast": 3, "original": 5}
SHALLOW_CROP_PX = {"fast": (46, 18), "original": (92, 36)}  # off each side of the maps of d0 and d1, to meet the decoders'
MARGIN_PX = {"fast": 46, "original": 95}  # image pixels on each side that the output does not cover
UNPADDED_PX = {"fast": 0, "original": 6}  # what conv0 takes off the image's edge
SMALLEST_PX = {"fast": 96, "original": 198}
ENCODER = (("d0", 64, 3, 1), ("d1", 128, 4, 2), ("d2", 256, 6, 2), ("d3", 512, 3, 2))  # name, bottleneck width, units, stride
GROUPS = 4  # of the decoders' grouped convolutions
BN_EPS = 1e-5


class HoVerNet(nn.Module):
    """The network, without post-processing.

    Args:
        mode: "fast" or "original".
        num_types: Channels of the `tp` branch, background included; None: no such branch (Kumar, CPM17).
        width: Fraction of the published channels, in (0, 1].
    """

    def __init__(self, *, mode: Mode = "fast", num_types: int | None = 6, width: float = 1.0):
        super().__init__()
        if mode not in DECODER_KERNEL:
            raise ConfigError(f"HoVer-Net's mode is one of {', '.join(DECODER_KERNEL)}, not {mode!r}")
        if not 0 < width <= 1:
            raise ConfigError(f"HoVer-Net's width is a fraction of the published net, above 0 and at most 1, not {width}")
        if num_types is not None and num_types < 2:
            raise ConfigError(
                f"HoVer-Net's num_types counts the background too: at least 2, or null for none, not {num_types}"
            )
        self.mode, self.num_types, self.width = mode, num_types, width

        self.conv0 = _sequence(
            ("/", nn.Conv2d(3, _narrow(64, width), 7, padding=3 if mode == "fast" else 0, bias=False)),
            ("bn", nn.BatchNorm2d(_narrow(64, width), eps=BN_EPS)),
            ("relu", nn.ReLU(inplace=True)),
        )
        channels = _narrow(64, width)
        for name, planes, num_units, stride in ENCODER:
            inner, outer = _narrow(planes, width), _narrow(4 * planes, width)
            self.add_module(name, ResidualBlock(channels, inner, outer, num_units, stride))
            channels = outer
        self.conv_bot = nn.Conv2d(channels, _narrow(1024, width), 1, bias=False)

        branches = {} if num_types is None else {"tp": num_types}
        branches |= {"np": 2, "hv": 2}
        self.decoder = nn.ModuleDict({name: _branch(DECODER_KERNEL[mode], out, width) for name, out in branches.items()})
        self.upsample2x = Upsample2x()

    @property
    def branches(self) -> tuple[str, ...]:
        """Names of the outputs, in the published order."""
        return tuple(self.decoder)

    def forward(self, images: Tensor, branches: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Raw outputs of each branch.

        Args:
            images: float `[B, 3, H, W]`, RGB, 0 to 255 (divided by 255 here, as the published net does).
            branches: The outputs wanted; None for all of them.

        Returns:
            tp logits `[B, num_types, h, w]`, np logits `[B, 2, h, w]`, hv `[B, 2, h, w]` (horizontal, vertical; -1 to 1 when
            trained), with `h = H - 2 * MARGIN_PX[mode]`.

        Raises:
            ConfigError: an edge that the encoder cannot halve three times, or too small for the margin.
        """
        for edge_px in images.shape[-2:]:
            check_edge(edge_px, self.mode)
        d0 = self.d0(self.conv0(images / 255))
        d1 = self.d1(d0)
        d2 = self.d2(d1)
        deepest = self.upsample2x(self.conv_bot(self.d3(d2))) + d2
        crop0_px, crop1_px = SHALLOW_CROP_PX[self.mode]
        d0, d1 = _crop(d0, crop0_px), _crop(d1, crop1_px)

        outputs = {}
        for name in self.branches if branches is None else branches:
            branch = self.decoder[name]
            x = self.upsample2x(branch["u3"](deepest)) + d1
            x = self.upsample2x(branch["u2"](x)) + d0
            outputs[name] = branch["u0"](branch["u1"](x))
        return outputs


def check_edge(edge_px: int, mode: Mode) -> None:
    """Refuse an image edge that the net cannot take. Raises ConfigError naming the nearest that it can."""
    rest = (edge_px - UNPADDED_PX[mode]) % 8
    if rest == 0 and edge_px >= SMALLEST_PX[mode]:
        return
    lower = max(edge_px - rest, SMALLEST_PX[mode])
    raise ConfigError(
        f"HoVer-Net ({mode}) halves the image three times and loses {MARGIN_PX[mode]} px on each side: it takes tiles of "
        f"{UNPADDED_PX[mode]} + a multiple of 8 px, from {SMALLEST_PX[mode]} px, not {edge_px} px. "
        f"Nearest: {lower} or {lower + 8} px"
    )


class ResidualBlock(nn.Module):
    """A stage of the preact-ResNet: bottleneck units, of which the first has a projected shortcut, and a final norm.

    Maps `[B, in, h, w]` to `[B, out, h / stride, w / stride]`.
    """

    def __init__(self, in_channels: int, inner: int, out_channels: int, num_units: int, stride: int):
        super().__init__()
        units = [_bottleneck(in_channels, inner, out_channels, stride=stride, is_first=True)]
        units += [_bottleneck(out_channels, inner, out_channels, stride=1, is_first=False) for _ in range(num_units - 1)]
        self.units = nn.ModuleList(units)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)
        self.blk_bna = _norm_act(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        carried = self.shortcut(x)
        for index, unit in enumerate(self.units):
            carried = carried + unit(x if index == 0 else carried)
        return self.blk_bna(carried)


class DenseBlock(nn.Module):
    """Densely connected units without padding: each sees everything before it, and takes a margin off it.

    Maps `[B, in, h, w]` to `[B, in + growth * units, h - units * (kernel - 1), ...]`.
    """

    def __init__(self, in_channels: int, inner: int, growth: int, num_units: int, kernel: int):
        super().__init__()
        widths = [in_channels + growth * index for index in range(num_units + 1)]
        self.units = nn.ModuleList(_dense_unit(channels, inner, growth, kernel) for channels in widths[:-1])
        self.blk_bna = _norm_act(widths[-1])
        self.margin_px = kernel // 2

    def forward(self, x: Tensor) -> Tensor:
        for unit in self.units:
            x = torch.cat((_crop(x, self.margin_px), unit(x)), dim=1)
        return self.blk_bna(x)


class Upsample2x(nn.Module):
    """Each pixel becomes 2x2. The buffer is in every published checkpoint; the computation does not need it."""

    def __init__(self):
        super().__init__()
        self.register_buffer("unpool_mat", torch.ones(2, 2))

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2, mode="nearest")


def _bottleneck(in_channels: int, inner: int, out_channels: int, *, stride: int, is_first: bool) -> nn.Sequential:
    # The first unit of a block gets its input normalised: by the norm that ends the block before it.
    preact = [] if is_first else [("preact/bn", nn.BatchNorm2d(in_channels, eps=BN_EPS)), ("preact/relu", nn.ReLU())]
    # TensorFlow's "same" padding, which the weights were trained with: a stride of 2 over an even edge pads right and below.
    pad = [("conv2/pad", nn.ZeroPad2d((0, 1, 0, 1)))] if stride == 2 else []
    return _sequence(
        *preact,
        ("conv1", nn.Conv2d(in_channels, inner, 1, bias=False)),
        ("conv1/bn", nn.BatchNorm2d(inner, eps=BN_EPS)),
        ("conv1/relu", nn.ReLU(inplace=True)),
        *pad,
        ("conv2", nn.Conv2d(inner, inner, 3, stride=stride, padding=0 if pad else 1, bias=False)),
        ("conv2/bn", nn.BatchNorm2d(inner, eps=BN_EPS)),
        ("conv2/relu", nn.ReLU(inplace=True)),
        ("conv3", nn.Conv2d(inner, out_channels, 1, bias=False)),
    )


def _dense_unit(in_channels: int, inner: int, growth: int, kernel: int) -> nn.Sequential:
    return _sequence(
        ("preact_bna/bn", nn.BatchNorm2d(in_channels, eps=BN_EPS)),
        ("preact_bna/relu", nn.ReLU(inplace=True)),
        ("conv1", nn.Conv2d(in_channels, inner, 1, bias=False)),
        ("conv1/bn", nn.BatchNorm2d(inner, eps=BN_EPS)),
        ("conv1/relu", nn.ReLU(inplace=True)),
        ("conv2", nn.Conv2d(inner, growth, kernel, groups=GROUPS, bias=False)),
    )


def _branch(kernel: int, out_channels: int, width: float) -> nn.ModuleDict:
    w512, w256, w128, w64, growth = (_narrow(channels, width) for channels in (512, 256, 128, 64, 32))
    return nn.ModuleDict(
        {
            "u3": _sequence(
                ("conva", nn.Conv2d(_narrow(1024, width), w256, kernel, bias=False)),
                ("dense", DenseBlock(w256, w128, growth, 8, kernel)),
                ("convf", nn.Conv2d(w256 + 8 * growth, w512, 1, bias=False)),
            ),
            "u2": _sequence(
                ("conva", nn.Conv2d(w512, w128, kernel, bias=False)),
                ("dense", DenseBlock(w128, w128, growth, 4, kernel)),
                ("convf", nn.Conv2d(w128 + 4 * growth, w256, 1, bias=False)),
            ),
            "u1": _sequence(("conva", nn.Conv2d(w256, w64, kernel, padding=kernel // 2, bias=False))),
            "u0": _sequence(
                ("bn", nn.BatchNorm2d(w64, eps=BN_EPS)),
                ("relu", nn.ReLU(inplace=True)),
                ("conv", nn.Conv2d(w64, out_channels, 1)),
            ),
        }
    )


def _norm_act(channels: int) -> nn.Sequential:
    return _sequence(("bn", nn.BatchNorm2d(channels, eps=BN_EPS)), ("relu", nn.ReLU(inplace=True)))


def _sequence(*layers: tuple[str, nn.Module]) -> nn.Sequential:
    return nn.Sequential(OrderedDict(layers))


def _narrow(channels: int, width: float) -> int:
    """That fraction of the channels, as a multiple of the groups."""
    return max(GROUPS, round(channels * width / GROUPS) * GROUPS)


def _crop(x: Tensor, margin_px: int) -> Tensor:
    return x[..., margin_px:-margin_px, margin_px:-margin_px]
