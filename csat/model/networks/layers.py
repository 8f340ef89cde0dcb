"""The few layers that CSAT shares with timm's models, number for number and under timm's names of tensors.

Not timm's own: to import any of it loads torchvision, torch._dynamo and sympy, two seconds in each process that has
a student.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MOST_TOKENS = 256  # of `attend` written out: the matrix of an image with more of them is too large to keep


class LayerNorm(nn.LayerNorm):
    """LayerNorm over the last axis. Under autocast it takes, and gives, float32, as torch's own does on a GPU alone: of
    bfloat16 it takes almost four times as long on a CPU, forward and backward (torch 2.15)."""

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting() and _is_autocast_on_cpu(x):
            x = x.float()
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)


class LayerNorm2d(LayerNorm):
    """LayerNorm over the channels of `[B, C, H, W]`."""

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting() and _is_autocast_on_cpu(x):
            x = x.float()
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class DepthwiseConv2d(nn.Conv2d):
    """A convolution of each channel by itself, stride 1. Under autocast on a CPU it is computed in float32.

    It has few products for its bytes: bfloat16 gains nothing forward, and its gradient by the weights takes up to twice as
    long (torch 2.15). What follows it here, a norm, is faster in float32, too.
    """

    def __init__(self, channels: int, kernel: int, *, bias: bool = True, device=None, dtype=None):
        super().__init__(
            channels, channels, kernel, padding=kernel // 2, groups=channels, bias=bias, device=device, dtype=dtype
        )

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting() and _is_autocast_on_cpu(x):
            with torch.autocast("cpu", enabled=False):
                return self._conv_forward(x.float(), self.weight, self.bias)
        return self._conv_forward(x, self.weight, self.bias)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scaled dot-product attention, `[B, heads, N, D]` each.

    Written out where torch's own has a slow gradient: in bfloat16 on a CPU it takes twice as long (torch 2.15).
    """
    if not torch.jit.is_scripting() and _is_slow_backward(q):
        with torch.autocast("cpu", enabled=False):
            weights = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-2, -1)).softmax(-1)
            return torch.matmul(weights, v)
    return F.scaled_dot_product_attention(q, k, v)


@torch.jit.unused
def _is_autocast_on_cpu(x: Tensor) -> bool:
    return x.device.type == "cpu" and torch.is_autocast_enabled("cpu")


@torch.jit.unused
def _is_slow_backward(q: Tensor) -> bool:
    # The number of tokens comes last: of a trace, which has no gradients, it is not asked.
    return q.dtype == torch.bfloat16 and q.requires_grad and q.device.type == "cpu" and q.shape[-2] <= MOST_TOKENS


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016): in training a branch is zero for a share of the images."""

    def __init__(self, drop_prob: float):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        if self.drop_prob == 0.0 or not self.training:
            return x
        kept = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(1 - self.drop_prob)
        if self.drop_prob < 1.0:
            kept.div_(1 - self.drop_prob)
        return x * kept


class PooledHead(nn.Module):
    """Mean over the cells, norm, dropout, linear; as timm's `NormMlpClassifierHead` without a hidden layer."""

    def __init__(
        self, in_features: int, num_classes: int, *, pool_type: str = "avg", drop_rate: float = 0.0, device=None, dtype=None
    ):
        """
        Args:
            in_features: Channels.
            num_classes: Outputs; 0 for the pooled features.
            pool_type: avg, or "" for none: then the classifier is a 1x1 convolution.
            drop_rate: Dropout before the classifier.
        """
        super().__init__()
        self.num_features = in_features
        self._set_pool(pool_type)
        self.norm = LayerNorm2d(in_features, eps=1e-6, device=device, dtype=dtype)
        self.drop = nn.Dropout(drop_rate)
        self.fc = self._classifier(num_classes, device=device, dtype=dtype)

    def reset(self, num_classes: int, pool_type: str | None = None, *, without_norm: bool = False, in_features: int) -> None:
        """A fresh classifier, of as many channels; with another pooling and without the norm, where that is asked for."""
        weight = next(self.parameters(), None)
        place = {} if weight is None else {"device": weight.device, "dtype": weight.dtype}
        self.num_features = in_features
        if pool_type is not None:
            self._set_pool(pool_type)
        if without_norm:
            self.norm = nn.Identity()
        self.fc = self._classifier(num_classes, **place)
        self.train(self.training)

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """`[B, C, H, W]` → `[B, classes]`; without pooling `[B, classes, H, W]`. `pre_logits` stops before the classifier."""
        x = self.drop(self.flatten(self.norm(self.global_pool(x))))
        return x if pre_logits else self.fc(x)

    def _set_pool(self, pool_type: str) -> None:
        if pool_type not in ("avg", ""):
            raise ValueError(f"csat pools by avg, or not at all (''), not by {pool_type!r}")
        self.global_pool = nn.AdaptiveAvgPool2d(1) if pool_type else nn.Identity()
        self.flatten = nn.Flatten(1) if pool_type else nn.Identity()

    def _classifier(self, num_classes: int, **place) -> nn.Module:
        if num_classes == 0:
            return nn.Identity()
        if isinstance(self.flatten, nn.Identity):
            return nn.Conv2d(self.num_features, num_classes, 1, **place)
        return nn.Linear(self.num_features, num_classes, **place)


@torch.no_grad()
def trunc_normal_(tensor: Tensor, std: float) -> Tensor:
    """Fill with a normal distribution of this standard deviation, cut off at ±2, by the inverse of its distribution function.

    torch's own of the same name draws other numbers from the same seed, from one version to the next.
    """
    bound = math.erf(2 / std / math.sqrt(2))
    tensor.uniform_(-bound, bound).erfinv_()
    return tensor.mul_(std * math.sqrt(2)).clamp_(-2, 2)


def drop_path_rates(last: float, num_blocks: int) -> list[float]:
    """Of every block: rising evenly from 0 at the first."""
    return torch.linspace(0, last, num_blocks, device="cpu").tolist()


def taken(num_maps: int, indices: int | list[int] | None) -> list[int]:
    """Which maps timm's `indices` mean: the last n if an int, all if None; negative ones count from the end."""
    if indices is None:
        indices = num_maps
    chosen = list(range(-indices, 0)) if isinstance(indices, int) else list(indices)
    if not chosen or not all(-num_maps <= index < num_maps for index in chosen):
        raise ValueError(f"indices {indices}: there are {num_maps} feature maps")
    return [index % num_maps for index in chosen]
