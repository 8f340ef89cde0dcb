"""FANet, the teacher of CoCo DistillNet: a U-Net of selective-kernel residual blocks, with strip pooling in its decoder.

Source: Zou & Sun 2021 (arXiv 2108.12173) and the networks that the authors published, after the fully attention-based network
of Li et al. 2020 (JBHI, doi 10.1109/JBHI.2020.3028180); selective kernels: Li et al. 2019 (arXiv 1903.06586); strip pooling:
Hou et al. 2020 (arXiv 2003.13328). Widths 64/128/256/512; each double convolution is two selective-kernel residual blocks (5x5
beside 3x3, reduction 2); strip pooling follows the decoder's 256/128/64. Published, with two classes and one channel of
256 x 256: 38.25M parameters and 171.556 GMAC.

Ours has 38.248M parameters (0.005% below) and 171.50 GMAC (0.035% below) *as the authors counted*: their tool charges a
transposed convolution for every position of its output, four times too many, and leaves out the batch norms, as it does for
Mobile U-Net (`tests/csat/model/published_count.py`). With its norms it has 38.291M, and 166.96 GMAC are multiplied, which is
what `csat.model.cost` says.

Decided here, where nothing is known: the 3x3 and 5x5 convolutions, the two that choose between them, the transposed ones and
the head have a bias, the others have batch norm instead; at 64 channels strip pooling also sees 12 x 12 and 18 x 18 cells;
these are raised linearly, cell centres on cell centres. Differs on purpose: with one tile alone in a training batch, the norm
of the pooled vector uses its stored statistics, since one value has no spread.

Until November 2026 this file held a guess at the block (a 3x3 convolution before the selective kernel, a sigmoid for its
softmax, strip pooling at a quarter of the width): weights trained with it do not fit, and are refused by name.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csat.errors import ConfigError
from csat.model.networks.attention import resampling
from csat.model.networks.norms import LoneBatchNorm2d

WIDTH = 64  # channels at full resolution; doubled at each of the three levels below
KERNELS = (3, 5)  # of the two branches of a selective kernel
REDUCTION = 2  # of the channels between the layers that choose between the branches
STRIP_TAPS = 3  # of the convolutions along a strip
CELLS = ((3, 6), (12, 18), (12, 18))  # per axis, that the three levels of the decoder are pooled to, the coarsest level first
DROPOUT = 0.5  # of whole channels, before the head
EARLIER = "encoder.0.0.branch.0.0.weight"  # a tensor that only the block of before has


class FANet(nn.Module):
    """The network.

    Args:
        num_classes: Channels of the output.
        in_channels: Of the image; the published figures are for one.
        width: Channels at full resolution, a multiple of 8; 64 is the published network.

    Attributes:
        step_px: Image edges are multiples of it.
        tap_channels: Channels of the two maps that `tap` gives, both at a stride of 4 px.

    Raises:
        ConfigError: a width that cannot be halved often enough; on loading, weights of the block of before.
    """

    step_px = 8

    def __init__(self, num_classes: int, *, in_channels: int = 3, width: int = WIDTH):
        super().__init__()
        if width < 8 or width % 8:
            raise ConfigError(f"fanet: width is a multiple of 8, such as 64 (as published) or 16, not {width}")
        widths = [width * 2**level for level in range(4)]
        self.tap_channels = widths[2]
        self.encoder = nn.ModuleList(_double(a, b) for a, b in zip((in_channels, *widths), widths, strict=False))
        decoded = list(zip(widths[:0:-1], widths[-2::-1], strict=True))  # (512, 256), (256, 128), (128, 64)
        self.up = nn.ModuleList(nn.ConvTranspose2d(below, here, 2, stride=2) for below, here in decoded)
        self.decoder = nn.ModuleList(
            nn.Sequential(_double(2 * here, here), StripPooling(here, cells, is_last=here == width))
            for (_, here), cells in zip(decoded, CELLS, strict=True)
        )
        self.head = nn.Sequential(nn.Dropout2d(DROPOUT), nn.Conv2d(width, num_classes, 1))
        self.register_load_state_dict_pre_hook(_refuse_earlier)

    def forward(self, images: Tensor) -> Tensor:
        """`[B, in_channels, H, W]` → logits `[B, num_classes, H, W]`."""
        return self.tap(images)[2]

    def tap(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What CoCo compares, and the logits.

        Returns:
            The third encoder block's map and the first up-convolution's (before the skip joins it), both
            `[B, tap_channels, H/4, W/4]`, and logits `[B, num_classes, H, W]`.
        """
        maps, x = [], images
        for level, block in enumerate(self.encoder):
            x = block(x if level == 0 else F.max_pool2d(x, 2))
            maps.append(x)
        raised = []
        for up, block, skip in zip(self.up, self.decoder, maps[-2::-1], strict=True):
            raised.append(up(x))
            x = block(torch.cat([skip, raised[-1]], 1))
        return maps[2], raised[0], self.head(x)


class SelectiveKernel(nn.Module):
    """A 3x3 and a 5x5 convolution, mixed channel by channel in shares that the whole image decides."""

    def __init__(self, channels: int):
        super().__init__()
        inner = channels // REDUCTION
        self.branches = nn.ModuleList(_convolve(channels, channels, kernel, bias=True) for kernel in KERNELS)
        self.summary = nn.Sequential(nn.Conv2d(channels, inner, 1, bias=False), LoneBatchNorm2d(inner), nn.ReLU())
        self.to_shares = nn.ModuleList(nn.Conv2d(inner, channels, 1) for _ in KERNELS)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` in and out."""
        small, large = (branch(x) for branch in self.branches)
        summary = self.summary((small + large).mean((2, 3), keepdim=True))
        to_small, to_large = (to_share(summary) for to_share in self.to_shares)
        return torch.lerp(small, large, torch.sigmoid(to_large - to_small))  # the softmax over two


class SelectiveResidual(nn.Module):
    """1x1 convolution → selective kernel → 1x1 convolution, with a shortcut."""

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        self.before = _convolve(in_channels, channels, 1)
        self.kernel = nn.Sequential(SelectiveKernel(channels), nn.BatchNorm2d(channels), nn.ReLU())
        self.after = _convolve(channels, channels, 1, is_linear=True)
        is_same = in_channels == channels
        self.shortcut = nn.Identity() if is_same else _convolve(in_channels, channels, 1, is_linear=True)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, in_channels, H, W]` → `[B, channels, H, W]`."""
        return F.relu(self.after(self.kernel(self.before(x))) + self.shortcut(x))


class StripPooling(nn.Module):
    """What lies around each position, in cells and along its row and its column, added to what is there.

    Args:
        channels: In and out.
        cells: Per axis, of the two coarse maps.
        is_last: Of the decoder: the cells have half the channels and lie beside the map, instead of being added to it, and the
            strips are multiplied with the input.
    """

    def __init__(self, channels: int, cells: tuple[int, int], *, is_last: bool = False):
        super().__init__()
        self.cells, self.is_last = cells, is_last
        coarse = channels // 2 if is_last else channels
        self.to_cells, self.to_strips = (_convolve(channels, channels, 1) for _ in range(2))
        self.near = _convolve(channels, channels, 3, is_linear=True)
        self.around = nn.ModuleList(_convolve(channels, coarse, 3, is_linear=True) for _ in cells)
        self.down = _convolve(channels, channels, (STRIP_TAPS, 1), is_linear=True)
        self.across = _convolve(channels, channels, (1, STRIP_TAPS), is_linear=True)
        self.from_cells = _convolve(2 * channels if is_last else channels, channels, 3)
        self.from_strips = _convolve(channels, channels, 3)
        self.join = _convolve(2 * channels, channels, 1, is_linear=True)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` in and out."""
        by_cells, by_strips = self._look_around(self.to_cells(x)), self._look_along(self.to_strips(x))
        if self.is_last:
            by_strips = by_strips * x
        return F.relu(x + self.join(torch.cat([by_cells, by_strips], 1)))

    def _look_around(self, x: Tensor) -> Tensor:
        maps = [self.near(x)]
        for cells, convolve in zip(self.cells, self.around, strict=True):
            # Matrices: adaptive pooling and bilinear upsampling, exact in ONNX at any size and deterministic on CUDA.
            rows, columns, up_rows, up_columns = (
                matrix.to(x.dtype) for matrix in resampling(x.shape[2], x.shape[3], cells, x.device)
            )
            maps.append(up_rows @ convolve(rows @ x @ columns.t()) @ up_columns.t())
        return self.from_cells(F.relu(torch.cat(maps, 1) if self.is_last else sum(maps)))

    def _look_along(self, x: Tensor) -> Tensor:
        strips = self.down(x.mean(3, keepdim=True)) + self.across(x.mean(2, keepdim=True))
        return self.from_strips(F.relu(strips))


def _double(in_channels: int, channels: int) -> nn.Sequential:
    return nn.Sequential(SelectiveResidual(in_channels, channels), SelectiveResidual(channels, channels))


def _convolve(
    in_channels: int, channels: int, kernel: int | tuple[int, int], *, bias: bool = False, is_linear: bool = False
) -> nn.Sequential:
    """Convolution and batch norm, then ReLU unless `is_linear`."""
    convolution = nn.Conv2d(in_channels, channels, kernel, padding="same", bias=bias)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels), *([] if is_linear else [nn.ReLU()]))


def _refuse_earlier(module: nn.Module, state: Mapping[str, Any], prefix: str, *_: Any) -> None:
    if prefix + EARLIER in state:
        raise ConfigError(
            "these weights are of the earlier fanet, whose blocks were built otherwise: that fanet must be trained again"
        )
