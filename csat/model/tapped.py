"""A classifier on one named layer of a timm backbone: the network whose attention maps AT+ compares.

Source: del Amor et al. 2024 (arXiv 2401.06010): VGG16 to `conv5_3` *before* its ReLU, global average pooling, one linear.
In timm that is `vgg16` cut after `features.28` (13 convolutions, the last without its ReLU and without the pooling after it),
tensor for tensor, so that timm's ImageNet weights serve. Differs: images are normalised as those weights expect, and the
authors leave them in [0, 1]. Any other backbone works by naming its layer: `layer4` of a ResNet, `stages.2` of CSAT.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from csat.errors import ConfigError
from csat.model.contract import FEATURES, Layer, Model, ModelConfig
from csat.model.networks.backbones import create_backbone, layers_of
from csat.model.parts import BACKBONE, DECODER, HEADS
from csat.responses import ResponseSpec
from csat.settings import read_settings
from csat.tasks import DatasetInfo, Task

PROBE_PX = (64, 96)  # height and width; two sizes, so that a layer with its axes in another order is noticed


@dataclass(frozen=True, kw_only=True)
class LayerOptions:
    """Of a timm model that classifies by one of its layers, for method attention."""

    layer: str  # dotted name of the last module that is kept, such as features.28 of vgg16
    upsample: bool = False  # enlarge what model.downsample shrank, as the paper does; nothing is computed less


@dataclass(frozen=True, kw_only=True)
class TappedOptions:
    """What a classifier on a layer is made of."""

    backbone: str = "vgg16"  # timm's name
    layer: str = "features.28"  # dotted name of a module in it, the last that is kept
    downsample: int = 1  # the model sees the tile at 1/downsample of its pixels
    # It enlarges what it sees to the tile's pixels (bilinear), as the paper does: nothing is computed less. Differs: pixels
    # stay where they lie (theirs puts corner on corner).
    upsample: bool = False

    def __post_init__(self):
        if self.downsample < 1:
            raise ConfigError(f"downsample is a whole factor of at least 1, not {self.downsample}")


class TappedClassifier(Model):
    """Backbone up to a layer, mean over its cells, linear. What comes after the layer is dropped.

    Attributes:
        stride_px: Pixels per cell of the layer: of the model's image, and with `upsample` of the enlarged one.
        step_px: What the edges of the model's image are multiples of, so that the cells cover the whole image.
        channels: Of the layer.
    """

    kind = "tapped"
    Options = TappedOptions
    uses = ("downsample",)
    has_pretrained = True

    def __init__(self, options: TappedOptions, responses: Sequence[ResponseSpec], *, pretrained: bool | str = False):
        """
        Args:
            options: What it is made of.
            responses: One head, for the tile as a whole.
            pretrained: With timm's own weights, downloaded or of this file.

        Raises:
            ConfigError: an unknown backbone or layer, a layer that is no map or that more than one path leads around, other
                heads.
        """
        super().__init__(options, responses)
        if len(responses) != 1 or responses[0].is_dense:
            names = ", ".join(spec.name for spec in responses) or "none"
            raise ConfigError(f"a classifier on a layer has one head, for the tile as a whole, and was asked for: {names}")
        backbone, downsample = options.backbone, options.downsample
        self.downsample, self.layer, self.upsample = downsample, options.layer, options.upsample
        self.backbone = create_backbone(backbone, pretrained=pretrained)
        data = self.backbone.pretrained_cfg
        self.register_buffer("mean", torch.tensor(data.get("mean", (0.5, 0.5, 0.5))).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(data.get("std", (0.5, 0.5, 0.5))).view(1, 3, 1, 1))
        _cut_after(self.backbone, self.layer, name=backbone)
        _, self.channels, height, width = self._probe(backbone)
        self.stride_px = PROBE_PX[0] // height
        self.step_px = self.stride_px // math.gcd(self.stride_px, downsample) if self.upsample else self.stride_px
        self.head = nn.Linear(self.channels, responses[0].channels)

    @classmethod
    def check_task(cls, config: ModelConfig, info: DatasetInfo) -> None:
        if info.task != Task.CLASSIFICATION:
            raise ConfigError(f"model.options.layer is for classification, and the task is {info.task}: leave it out")

    @classmethod
    def check_settings(cls, config: ModelConfig) -> None:
        if unused := cls.unused_settings(config):
            raise ConfigError(f"a classifier on a layer has no {', '.join(unused)}: leave them out, or model.options.layer")

    @classmethod
    def read_options(cls, config: ModelConfig) -> TappedOptions:
        chosen = read_settings(LayerOptions, config.options, what="model.options of a classifier on a layer")
        return TappedOptions(backbone=config.name, downsample=config.downsample, **asdict(chosen))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Float `[B, 3, H, W]` in [0, 1], already downsampled → the head's name → logits `[B, C]`."""
        return self.tap(images, ())[1]

    @property
    def layers(self) -> dict[str, Layer]:
        """The one that it classifies by."""
        stride_px = self.stride_px if self.upsample else self.stride_px * self.downsample
        return {FEATURES: Layer(channels=self.channels, stride_px=stride_px, has_verdict=True)}

    def tap(self, images: Tensor, layers: Iterable[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The layer's map and the logits that follow from it, as `csat.losses.attention.attention_maps` wants them.

        Args:
            images: Float `[B, 3, H, W]` in [0, 1], already downsampled; H and W multiples of `step_px`.
            layers: Its one, or none.

        Returns:
            `[B, channels, H/stride_px, W/stride_px]`, with `upsample` downsample times as many cells, and `[B, C]`.
        """
        if self.upsample and self.downsample > 1:
            images = interpolate(images, scale_factor=float(self.downsample), mode="bilinear", align_corners=False)
        features = self.backbone.forward_features((images - self.mean) / self.std)
        maps, logits = {FEATURES: features}, self.head(features.mean((2, 3)))
        return {name: maps[name] for name in layers}, {spec.name: logits for spec in self.responses}

    def check_tile(self, tile_px: int) -> None:
        """Refuse a tile size that does not divide into cells of the layer. Raises ConfigError with the nearest that does."""
        step_px = self.step_px * self.downsample
        if tile_px <= 0 or tile_px % step_px:
            nearest = max(step_px, round(tile_px / step_px) * step_px)
            raise ConfigError(
                f"layer {self.layer!r} has a cell per {self.stride_px} px, and with downsample {self.downsample} one per "
                f"{step_px} px of the tile: set data.tile_px {nearest}, not {tile_px}"
            )

    @property
    def noun(self) -> str:
        return f"classifier on the layer {self.layer!r} of {self.options.backbone!r}"

    def check_source(self, source: Model, source_name: str) -> None:
        super().check_source(source, source_name)
        if (source.options.backbone, source.layer) != (self.options.backbone, self.layer):
            raise ConfigError(f"{source_name} holds a {source.noun}, and a {self.noun} is asked for: name the same layer")

    def parts(self) -> dict[str, list[nn.Module]]:
        return {BACKBONE: [self.backbone], DECODER: [], HEADS: [self.head]}

    def tensors_of_head(self, name: str) -> dict[str, Tensor]:
        """Of the one head, as `tensors_of`: its tensors do not carry its name."""
        return self.tensors_of(HEADS) if name in (spec.name for spec in self.responses) else {}

    def backbone_layers(self) -> dict[str, int]:
        return {f"backbone.{name}": layer for name, layer in layers_of(self.backbone, self.options.backbone).items()}

    @torch.no_grad()
    def _probe(self, backbone: str) -> tuple[int, ...]:
        """Shape of the layer's map for an image of PROBE_PX, checked to be what the cut backbone answers."""
        seen: list[Tensor] = []
        # A copy: a shortcut may be added to the layer's output in place, and would pass for it.
        hook = self.backbone.get_submodule(self.layer).register_forward_hook(lambda _, __, output: seen.append(output.clone()))
        was_training = {module: module.training for module in self.backbone.modules()}
        self.backbone.eval()
        try:
            answer = self.backbone.forward_features(torch.rand(1, 3, *PROBE_PX, generator=torch.Generator().manual_seed(0)))
        except (RuntimeError, TypeError, AssertionError, ValueError) as error:
            raise ConfigError(
                f"{backbone!r} cannot end at layer {self.layer!r} ({error}): {_advice(self.backbone)}"
            ) from error
        finally:
            hook.remove()
            for module, training in was_training.items():
                module.training = training
        is_map = answer.ndim == 4 and answer.shape[2] * PROBE_PX[1] == answer.shape[3] * PROBE_PX[0]
        if len(seen) != 1 or not is_map or not torch.equal(seen[0], answer):
            raise ConfigError(
                f"{backbone!r} cannot end at layer {self.layer!r}: what comes out is {list(answer.shape)} and not that "
                f"layer's map [B, C, H, W]: {_advice(self.backbone)}"
            )
        return tuple(answer.shape)


def _cut_after(backbone: nn.Module, layer: str, *, name: str) -> None:
    """Put identities in the place of everything that is registered after the layer, at each level of its path."""
    module, path = backbone, []
    for part in layer.split("."):
        children = dict(module.named_children())
        if part not in children:
            inside = ".".join(path) or name
            raise ConfigError(
                f"{name!r} has no layer {layer!r}: {inside} holds {', '.join(children) or 'no layers'}; {_advice(backbone)}"
            )
        names = list(children)
        for later in names[names.index(part) + 1 :]:
            setattr(module, later, nn.Identity())
        path.append(part)
        module = children[part]


def _advice(backbone: nn.Module) -> str:
    return f"its stages end at {', '.join(info['module'] for info in backbone.feature_info)}"
