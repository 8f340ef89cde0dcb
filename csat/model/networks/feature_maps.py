"""What maps a timm backbone really gives at a size, and how they come to have the cells that its strides promise."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csat.errors import ConfigError
from csat.model.networks.attention import upsampling_matrix
from csat.model.networks.backbones import FINEST_LEVEL_PX

MOST_OFF = 1.5  # times that a map may have more or fewer cells than its stride promises: beyond, that is not its stride


class FeatureMaps:
    """The maps of a backbone that a decoder reads, found out by one zero image. It holds no module: that stays the owner's.

    Attributes:
        strides_px: Pixels of the image per cell of each map, finest first.
        channels: Of each.
        pooled_channels: Of its pooled features; None where it does not pool to one vector.
        size_px: Edge of an image that it takes.
    """

    def __init__(self, backbone: nn.Module, *, name: str):
        """
        Args:
            backbone: Of `create_backbone`.
            name: timm's, for messages.

        Raises:
            ConfigError: it runs at no size.
        """
        levels = levels_of(backbone)
        self.strides_px, self._indices = tuple(levels), [*levels.values()]
        self.size_px = find_size_px(backbone, levels, name=name)
        last, maps = probe(backbone, levels, self.size_px)
        self.channels = tuple(each.shape[1] for each in maps)
        self.pooled_channels = pooled_channels(backbone, last)

    def pad(self, images: Tensor) -> Tensor:
        """Repeat the last rows and columns until the edges are multiples of the coarsest stride."""
        height, width = images.shape[2:]
        below, beside = -height % self.strides_px[-1], -width % self.strides_px[-1]
        return F.pad(images, (0, beside, 0, below), mode="replicate") if below or beside else images

    def cut(self, cells: Tensor, images: Tensor, stride_px: int) -> Tensor:
        """A map of padded images without the cells beyond the images as they were."""
        height, width = images.shape[2:]
        is_padded = height % self.strides_px[-1] or width % self.strides_px[-1]
        return cells[..., : height // stride_px, : width // stride_px] if is_padded else cells

    def read(self, backbone: nn.Module, images: Tensor, *, with_last: bool) -> tuple[Tensor | None, list[Tensor]]:
        """The input of the backbone's head (None where it is not asked for), and the maps, finest first, each with a cell for
        every stride of the images."""
        if with_last:
            last, maps = backbone.forward_intermediates(images, indices=self._indices)
        else:
            last, maps = (
                None,
                backbone.forward_intermediates(images, indices=self._indices, stop_early=True, intermediates_only=True),
            )
        return last, [to_stride(each, images.shape[2:], px) for each, px in zip(maps, self.strides_px, strict=True)]


def levels_of(backbone: nn.Module) -> dict[int, int]:
    """Stride in px → index of the map that a decoder reads, finest first.

    Of several maps at one stride only the last: it has seen the others. A stride that the one before does not divide is left
    out, for a decoder doubles.
    """
    last = {info["reduction"]: index for index, info in enumerate(backbone.feature_info)}
    levels: dict[int, int] = {}
    for stride_px in sorted(stride for stride in last if stride >= FINEST_LEVEL_PX):
        if not levels or stride_px % max(levels) == 0:
            levels[stride_px] = last[stride_px]
    return levels


def find_size_px(backbone: nn.Module, levels: dict[int, int], *, name: str) -> int:
    """An edge that the backbone takes: small if it can be, else the one that it was made for.

    Args:
        backbone: Of `create_backbone`.
        levels: Of `levels_of`.
        name: timm's, for the message.

    Raises:
        ConfigError: it takes neither.
    """
    coarsest_px, own_px = max(levels), backbone.pretrained_cfg["input_size"][-1]
    wanted_px = (own_px,) if has_fixed_size(backbone) else (max(64, 2 * coarsest_px), own_px + -own_px % coarsest_px)
    refusals = []
    for size_px in dict.fromkeys(wanted_px):
        try:
            if size_px % coarsest_px:
                raise ValueError(f"its coarsest stride of {coarsest_px} px does not divide that")
            for feature_map, stride_px in zip(probe(backbone, levels, size_px)[1], levels, strict=True):
                to_stride(feature_map, (size_px, size_px), stride_px)
            return size_px
        except Exception as error:  # timm's models raise what they like: the cause stays attached
            refusals.append((size_px, error))
    said = "; ".join(f"at {size_px} px: {first_line(error)}" for size_px, error in refusals)
    raise ConfigError(
        f"backbone {name!r} gives no feature maps that a decoder can use ({said}): choose another backbone"
    ) from refusals[-1][1]


def has_fixed_size(backbone: nn.Module) -> bool:
    """Whether timm made it for images of one size; some still take others (`create_backbone` asks for that)."""
    return bool(backbone.pretrained_cfg.get("fixed_input_size"))


def probe(backbone: nn.Module, levels: dict[int, int], size_px: int) -> tuple[Tensor, list[Tensor]]:
    """One zero image through the backbone, without a trace: the input of its head, and its maps, finest first."""
    device = next(backbone.parameters()).device
    with without_trace(backbone):
        return backbone.forward_intermediates(torch.zeros(1, 3, size_px, size_px, device=device), indices=[*levels.values()])


def pooled_channels(backbone: nn.Module, last: Tensor) -> int | None:
    """Channels of its pooled features, given the input of its head; None where it does not pool to one vector."""
    with without_trace(backbone):
        pooled = backbone.forward_head(last, pre_logits=True)
    return pooled.shape[1] if isinstance(pooled, Tensor) and pooled.ndim == 2 else None


def to_stride(feature_map: Tensor, image_px: Sequence[int], stride_px: int) -> Tensor:
    """The map with a cell for every `stride_px` of the image, which most have of themselves.

    Some backbones give a few cells more or less: windows or patches that do not divide their map (MobileViT v2), or
    convolutions without padding. Each map still is of the whole image, so it is resized over it (bilinear, as products of
    matrices: see `csat/model/networks/attention.py`).

    Args:
        feature_map: `[B, C, h, w]`.
        image_px: Height and width of the image, multiples of the stride.
        stride_px: Pixels per cell.

    Raises:
        ValueError: a map that is far from the stride that the backbone states, or none at all.
    """
    rows, columns = (size // stride_px for size in image_px)
    if feature_map.ndim == 4 and feature_map.shape[2:] == (rows, columns):
        return feature_map
    if feature_map.ndim != 4 or not all(_is_near(*pair) for pair in zip(feature_map.shape[2:], (rows, columns), strict=True)):
        raise ValueError(
            f"its map at the stride of {stride_px} px is {list(feature_map.shape)}, where {rows} x {columns} cells were "
            "promised"
        )
    height, width = feature_map.shape[2:]
    down = upsampling_matrix(height, rows, feature_map.device).to(feature_map.dtype)
    across = upsampling_matrix(width, columns, feature_map.device).to(feature_map.dtype)
    return down @ feature_map @ across.t()


def freeze_unused(module: nn.Module, images: Tensor) -> None:
    """`requires_grad` for exactly the parameters that a backward pass from all predictions for such images reaches."""
    module.requires_grad_(True)
    named = dict(module.named_parameters())
    with without_trace(module), torch.enable_grad():
        total = sum(prediction.float().sum() for prediction in module(images).values())
        grads = torch.autograd.grad(total, list(named.values()), allow_unused=True)
    for parameter, grad in zip(named.values(), grads, strict=True):
        parameter.requires_grad_(grad is not None)


@contextmanager
def without_trace(module: nn.Module) -> Iterator[None]:
    """In evaluation mode and without gradients; statistics and the modes of all modules are afterwards as before."""
    modes = {child: child.training for child in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for child, training in modes.items():
            child.training = training


def first_line(error: Exception) -> str:
    """What an error says, for a message of ours."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _is_near(cells: int, promised: int) -> bool:
    return promised / MOST_OFF <= cells <= promised * MOST_OFF
