"""CSAT: a 3M-parameter backbone of convolution blocks with spatial attention, and of transformers at its end.

Source: Kim et al., Bioengineering 2023, 10(11):1279 (CSAT v1: 224 px, pooled width 176, 3M parameters, 1.08 GMAC; a conv stem,
ConvNeXt-V2 style blocks with a sigmoid-gated spatial attention), and the authors' successor CSATv2 for the form of a block:
dwconv7 → LN → Linear 4C → GELU → GRN → Linear C → × spatial attention → drop path → + residual. The layout of v1 was never
published; depths 5/5/4 + 3 at widths 44/88/176 and strides 4/8/16 are ours: 3.038M parameters and 1.090 GMAC with 1000 classes
at 224 px (`csat.model.cost`), each about 1% above what was published.

Differs on purpose:
- The transformer inside the spatial attention depends on the image, where CSATv2's adds the same to every image: see
  `csat/model/networks/attention.py`.
- The depthwise convolution has no bias: its gradient costs a fifth of that layer's backward pass on CPU.
- Where a stage has more positions than channels, GRN is applied to the second linear's weights and not to its input: the same
  numbers without another pass over the widest tensor of the block.

From the stem's norm on everything lies in channels-last memory, whatever comes in: linears and norms then run on a free view.
"""

from functools import partial

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from csat.model.networks.attention import ATTENTION_CELLS, Resampling, SpatialAttention, resampling
from csat.model.networks.layers import (
    DepthwiseConv2d,
    DropPath,
    LayerNorm,
    LayerNorm2d,
    PooledHead,
    attend,
    drop_path_rates,
    taken,
    trunc_normal_,
)


class ConvBlock(nn.Module):
    """ConvNeXt-V2 style block whose branch is gated by spatial attention. `[B, C, H, W]` in and out, channels-last memory."""

    def __init__(self, dim: int, *, attention_dim: int, drop_path: float, fold_grn: bool, device=None, dtype=None):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.fold_grn = fold_grn
        self.conv_dw = DepthwiseConv2d(dim, 7, bias=False, **dd)
        self.norm = LayerNorm(dim, eps=1e-6, **dd)
        self.fc1 = nn.Linear(dim, 4 * dim, **dd)
        self.grn_weight = nn.Parameter(torch.zeros(4 * dim, **dd))
        self.grn_bias = nn.Parameter(torch.zeros(4 * dim, **dd))
        self.fc2 = nn.Linear(4 * dim, dim, **dd)
        self.attention = SpatialAttention(attention_dim, **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor, matrices: Resampling) -> Tensor:
        shortcut = x
        x = self.norm(self.conv_dw(x).permute(0, 2, 3, 1))
        b, h, w, c = x.shape
        x = F.gelu(self.fc1(x)).reshape(b, h * w, 4 * c)
        x = self._grn_and_fc2(x).view(b, h, w, c)
        x = x * self.attention(x, matrices)
        return shortcut + self.drop_path(x.permute(0, 3, 1, 2))

    def _grn_and_fc2(self, x: Tensor) -> Tensor:
        """GRN (ConvNeXt V2, eq. 1-3: `x + γ·x·n + β`, n a channel's norm over their mean), then the second linear."""
        norm = (_sum_of_squares(x) + 1e-12).sqrt()
        scale = 1.0 + self.grn_weight * (norm / (norm.mean(-1, keepdim=True) + 1e-6)).to(self.grn_weight.dtype)
        if not self.fold_grn:
            return self.fc2(torch.addcmul(self.grn_bias.to(x.dtype), x, scale.to(x.dtype)))
        weight = self.fc2.weight * scale  # [B, C, 4C]
        bias = torch.mv(self.fc2.weight, self.grn_bias) + self.fc2.bias
        return torch.matmul(x, weight.to(x.dtype).transpose(1, 2)) + bias.to(x.dtype)


def _sum_of_squares(x: Tensor) -> Tensor:
    """`[B, N, C]` → `[B, 1, C]`, float32 also under autocast. Half the time of a norm forward and backward on a CPU."""
    if not torch.jit.is_scripting() and torch.is_grad_enabled() and x.requires_grad:
        return _SumOfSquares.apply(x)
    return (x * x).sum(1, keepdim=True, dtype=torch.float32)


class _SumOfSquares(torch.autograd.Function):
    """Its gradient, `2 x g`, in one pass; torch makes four of it."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x * x).sum(1, keepdim=True, dtype=torch.float32)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return x * (2 * gradient).to(x.dtype)


class TransformerBlock(nn.Module):
    """Pre-LN transformer block; a 3x3 depthwise convolution with residual tells it where a token is."""

    def __init__(self, dim: int, *, num_heads: int, head_dim: int, drop_path: float, device=None, dtype=None):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.norm1 = LayerNorm(dim, **dd)
        self.position = DepthwiseConv2d(dim, 3, **dd)
        self.qkv = nn.Linear(dim, 3 * num_heads * head_dim, bias=False, **dd)
        self.proj = nn.Linear(num_heads * head_dim, dim, **dd)
        self.norm2 = LayerNorm(dim, **dd)
        self.fc1 = nn.Linear(dim, 4 * dim, **dd)
        self.fc2 = nn.Linear(4 * dim, dim, **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor, matrices: Resampling) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        b, h, w, c = x.shape
        y = self.norm1(x)
        y = y + self.position(y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        qkv = self.qkv(y).view(b, h * w, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        y = attend(qkv[0], qkv[1], qkv[2])
        y = self.proj(y.transpose(1, 2).reshape(b, h, w, self.num_heads * self.head_dim))
        x = x + self.drop_path(y)
        x = x + self.drop_path(self.fc2(F.gelu(self.fc1(self.norm2(x)))))
        return x.permute(0, 3, 1, 2)


class Stage(nn.Module):
    """Optional 2x downsampling, then blocks that share one set of resampling matrices."""

    def __init__(self, in_dim: int | None, dim: int, blocks: list[nn.Module], device=None, dtype=None):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.grad_checkpointing = False
        self.attention_cells = ATTENTION_CELLS
        if in_dim is None:
            self.downsample = nn.Identity()
        else:
            self.downsample = nn.Sequential(LayerNorm2d(in_dim, eps=1e-6, **dd), nn.Conv2d(in_dim, dim, 2, stride=2, **dd))
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(x)
        matrices = resampling(x.shape[2], x.shape[3], self.attention_cells, x.device)
        for block in self.blocks:
            if self.grad_checkpointing and not torch.jit.is_scripting():
                x = checkpoint(block, x, matrices, use_reentrant=False)
            else:
                x = block(x, matrices)
        return x


class CSAT(nn.Module):
    """The backbone with a classification head, as timm expects it. Strides 4, 8 and 16."""

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        stem_dim: int = 16,
        dims: tuple[int, ...] = (44, 88, 176),
        conv_depths: tuple[int, ...] = (5, 5, 4),
        transformer_depth: int = 3,
        num_heads: int = 8,
        head_dim: int = 32,
        attention_dim: int = 8,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device=None,
        dtype=None,
    ):
        """
        Args:
            num_classes: Classes of the head; 0 for pooled, normalised features.
            in_chans: Channels of the image.
            global_pool: Pooling of the head: avg, or "" for none.
            stem_dim: Channels at stride 2.
            dims: Channels per stage.
            conv_depths: Convolution blocks per stage.
            transformer_depth: Transformer blocks after the convolution blocks of the last stage.
            num_heads: Heads of those transformers.
            head_dim: Channels per head.
            attention_dim: Channels of the 49 tokens of a spatial attention.
            drop_rate: Dropout before the classifier.
            drop_path_rate: Stochastic depth of the last block; rises linearly from 0 at the first.
            device: Where parameters are made.
            dtype: Of the parameters.
        """
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.num_features = self.head_hidden_size = dims[-1]
        self.feature_info = [{"num_chs": dim, "reduction": 4 * 2**i, "module": f"stages.{i}"} for i, dim in enumerate(dims)]
        self.stem = nn.Sequential(
            nn.Conv2d(in_chans, stem_dim, 3, stride=2, padding=1, **dd),
            nn.GELU(),
            nn.Conv2d(stem_dim, dims[0], 2, stride=2, **dd),
            LayerNorm2d(dims[0], eps=1e-6, **dd),
        )
        rates = iter(drop_path_rates(drop_path_rate, sum(conv_depths) + transformer_depth))
        stages = []
        for i, (dim, depth) in enumerate(zip(dims, conv_depths, strict=True)):
            is_last = i == len(dims) - 1
            make_conv = partial(ConvBlock, dim, attention_dim=attention_dim, fold_grn=not is_last, **dd)
            blocks = [make_conv(drop_path=next(rates)) for _ in range(depth)]
            if is_last:
                make_transformer = partial(TransformerBlock, dim, num_heads=num_heads, head_dim=head_dim, **dd)
                blocks += [make_transformer(drop_path=next(rates)) for _ in range(transformer_depth)]
            stages.append(Stage(dims[i - 1] if i else None, dim, blocks, **dd))
        self.stages = nn.Sequential(*stages)
        self.head = PooledHead(dims[-1], num_classes, pool_type=global_pool, drop_rate=drop_rate, **dd)
        self.init_weights()

    def init_weights(self) -> None:
        """Weights from a truncated normal (0.02), biases zero, as in ConvNeXt V2.

        The spatial attentions keep torch's own start: at a width of 8, 0.02 would leave every gate at one half and its
        gradient near zero.
        """
        in_attention = {
            child for module in self.modules() if isinstance(module, SpatialAttention) for child in module.modules()
        }
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)) and module not in in_attention:
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Parameters that weight decay should leave alone, beyond norms and biases (timm's optimisers ask)."""
        return {name for name, _ in self.named_parameters() if name.endswith(("grn_weight", "grn_bias"))}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict:
        """Parameter groups for layer-wise learning rates: by stage if `coarse`, else by block."""
        blocks = [(r"^stages\.(\d+)\.downsample", (0,)), (r"^stages\.(\d+)\.blocks\.(\d+)", None)]
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)" if coarse else blocks}

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass and keep only its input."""
        for stage in self.stages:
            stage.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None, reset_other: bool = False) -> None:
        """A fresh classifier; `reset_other` removes the head's norm as well."""
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool, without_norm=reset_other, in_features=self.num_features)
        self.head_hidden_size = self.head.num_features

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ):
        """Features of the chosen stages, and unless `intermediates_only` the last one before them: `(x, [features])`.

        Args:
            x: Images `[B, in_chans, H, W]`.
            indices: Which stages: the last n if an int, all if None.
            norm: Accepted for timm's sake; there is no norm between the last stage and the head's.
            stop_early: Don't compute what no index asks for.
            output_fmt: Only "NCHW".
            intermediates_only: Return the list alone.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"csat gives features as NCHW, not {output_fmt}")
        take_indices = taken(len(self.stages), indices)
        intermediates = []
        x = self.stem(x)
        for index, stage in enumerate(self.stages):
            if stop_early and index > max(take_indices):
                break
            x = stage(x)
            if index in take_indices:
                intermediates.append(x)
        return intermediates if intermediates_only else (x, intermediates)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the stages that no index asks for, and the head."""
        take_indices = taken(len(self.stages), indices)
        max_index = max(take_indices)
        prune_end = max_index < len(self.stages) - 1
        self.stages = self.stages[: max_index + 1]
        if prune_end:
            self.num_features = self.head_hidden_size = self.feature_info[max_index]["num_chs"]
        if prune_norm:
            self.head.norm = nn.Identity()
        if prune_head or prune_end:
            self.reset_classifier(0, "", reset_other=True)
        return take_indices

    def forward_features(self, x: Tensor) -> Tensor:
        """Images `[B, in_chans, H, W]` → `[B, dims[-1], H/16, W/16]`, before pooling and norm."""
        return self.stages(self.stem(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool, norm and classify; `pre_logits` stops before the classifier."""
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


# What timm calls a model's pretrained_cfg: how its images are made. CSAT has no weights.
PRETRAINED_CFG = {
    "url": "",
    "num_classes": 1000,
    "input_size": (3, 224, 224),
    "min_input_size": (3, 64, 64),
    "pool_size": (14, 14),
    "crop_pct": 0.9,
    "interpolation": "bicubic",
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "first_conv": "stem.0",
    "classifier": "head.fc",
    "license": "apache-2.0",
}
# Name → sizes: the published design, and one narrowed for demonstrations and tests.
VARIANTS = {
    "csat": {},
    "csat_nano": {"dims": (24, 48, 96), "conv_depths": (2, 2, 2), "transformer_depth": 1, "num_heads": 4, "head_dim": 16},
}


def make_csat(variant: str, **options) -> CSAT:
    """The model that `timm.create_model(variant, **options)` makes, weight for weight, without timm, which takes seconds."""
    model = CSAT(**{**VARIANTS[variant], **options})
    model.pretrained_cfg = model.default_cfg = dict(PRETRAINED_CFG)
    return model
