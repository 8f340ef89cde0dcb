"""ResNet-10 with group norm: teacher and student of resolution-based distillation.

Source: DiPalma et al. 2021 (arXiv 2101.04170): 7x7 stem, one basic block per stage at 32/64/128/256 channels, GroupNorm with
32 groups, 1.231M parameters with 4 classes. It has no batch statistics, so images of any size can be trained on one by one.

timm's ResNet, whose stem is 64 channels wide whatever is asked for: the stem and the first stage are replaced, at 32. As in
timm, the last norm of each block starts at zero (the paper does not say how it starts).
"""

import torch.nn as nn
from timm.layers import GroupNorm
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, ResNet

WIDTHS = (32, 64, 128, 256)


class ResNet10(ResNet):
    """The backbone with a classification head, as timm expects it. Strides 2, 4, 8, 16 and 32."""

    def __init__(self, num_classes: int = 1000, in_chans: int = 3, device=None, dtype=None, **options):
        """
        Args:
            num_classes: Classes of the head; 0 for pooled features.
            in_chans: Channels of the image.
            device: Where parameters are made.
            dtype: Of the parameters.
            **options: Of timm's ResNet: global_pool, drop_rate, drop_path_rate, output_stride.
        """
        dd = {"device": device, "dtype": dtype}
        layers = {"layers": (1,) * len(WIDTHS), "channels": WIDTHS, "norm_layer": GroupNorm}
        super().__init__(BasicBlock, num_classes=num_classes, in_chans=in_chans, **layers, **dd, **options)
        self.conv1 = nn.Conv2d(in_chans, WIDTHS[0], 7, stride=2, padding=3, bias=False, **dd)
        self.bn1 = GroupNorm(WIDTHS[0], **dd)
        self.layer1 = nn.Sequential(BasicBlock(WIDTHS[0], WIDTHS[0], norm_layer=GroupNorm, **dd))
        self.feature_info[0]["num_chs"] = WIDTHS[0]
        self.init_weights()


default_cfgs = generate_default_cfgs(
    {
        "resnet10_gn.untrained": {
            "url": "",
            "num_classes": 1000,
            "input_size": (3, 224, 224),
            "pool_size": (7, 7),
            "crop_pct": 0.875,
            "interpolation": "bilinear",
            "mean": (0.485, 0.456, 0.406),
            "std": (0.229, 0.224, 0.225),
            "first_conv": "conv1",
            "classifier": "fc",
            "license": "apache-2.0",
        }
    }
)


@register_model
def resnet10_gn(pretrained: bool = False, **kwargs) -> ResNet10:
    """ResNet-10 with GroupNorm, 1.231M parameters with 4 classes."""
    return build_model_with_cfg(ResNet10, "resnet10_gn", pretrained, **kwargs)
