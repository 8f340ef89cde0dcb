"""1x1 convolutions with a stride and few input channels: computed without the stride, for oneDNN cannot.

oneDNN copies what such a layer sees into a workspace of as many channels as there are, and writes a whole block of them (16
with AVX-512, 8 with AVX2): past the workspace's end where the layer has fewer. The backward pass then crashes, hangs, or
gives wrong gradients without a word: https://github.com/uxlfoundation/oneDNN/issues/6035, open, in the oneDNN 3.13.3 of
torch 2.15. A narrow HoVer-Net has such layers, and the stem of timm's FastViT. The workspace is used for strides alone, so a
slice and a convolution of stride 1 have the same numbers and never meet it. This module goes with the first torch whose
oneDNN has that issue closed.
"""

from torch import Tensor, nn

BLOCK_CHANNELS = 16  # the widest block; a layer with fewer input channels (of a group) overruns the workspace


class StridedPointwise(nn.Conv2d):
    """A 1x1 convolution that takes every n-th pixel first. Its attributes and tensors are those of the layer it stood for."""

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` → `[B, out_channels, ceil(H / stride), ceil(W / stride)]`."""
        rows, columns = self.stride
        return nn.functional.conv2d(x[:, :, ::rows, ::columns], self.weight, self.bias, groups=self.groups)


def guard_pointwise(module: nn.Module) -> None:
    """Make every such layer inside the module (itself included) a `StridedPointwise`, in place: no tensor or name changes."""
    for _, layer in overrunning_layers(module):
        assert _is_plain(layer), f"{type(layer).__name__}: what does this 1x1 convolution compute besides?"
        layer.__class__ = StridedPointwise


def overrunning_layers(module: nn.Module) -> list[tuple[str, nn.Conv2d]]:
    """Name and layer of every convolution that oneDNN would compute past the end of its workspace."""
    return [(name, layer) for name, layer in module.named_modules() if isinstance(layer, nn.Conv2d) and _overruns(layer)]


def _overruns(layer: nn.Conv2d) -> bool:
    is_pointwise = layer.kernel_size == (1, 1) and layer.padding in ((0, 0), "valid")
    few = layer.in_channels // layer.groups < BLOCK_CHANNELS
    return is_pointwise and few and max(layer.stride) > 1 and not isinstance(layer, StridedPointwise)


def _is_plain(layer: nn.Conv2d) -> bool:
    """Whether its 1x1 form computes what torch's does: so does timm's, for "same" padding of one pixel's kernel is none."""
    if type(layer) is nn.Conv2d:
        return True
    from timm.layers import Conv2dSame  # loaded long since, where a layer is neither

    return type(layer) is Conv2dSame
