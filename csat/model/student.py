"""The student: any timm backbone, the dense decoder, and one head per response.

Its exported folder holds `student.safetensors` (everything), and for timm `model.safetensors` (the backbone, of a classifier
with its last layer): see `csat/model/timm_form.py`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from csat.errors import ConfigError
from csat.licences import licence_of
from csat.model.contract import DECODED, ENCODED, FEATURES, TIMM_SETTINGS, Layer, Model, ModelConfig
from csat.model.networks.backbones import architecture_of, create_backbone, layers_of
from csat.model.networks.feature_maps import (
    FeatureMaps,
    first_line,
    freeze_unused,
    has_fixed_size,
    without_trace,
)
from csat.model.networks.heads import DenseDecoder, DenseHead, GlobalHead
from csat.model.parts import BACKBONE, DECODER, HEADS, head_key
from csat.model.timm_form import TimmForm, timm_form
from csat.responses import Kind, ResponseSpec
from csat.settings import Often, Place, read_settings
from csat.tasks import DatasetInfo, heads_of

PREDICTION_STRIDE_PX = 2  # of dense predictions: half the resolution resolves nuclei borders at a quarter of the cost


@dataclass(frozen=True, kw_only=True)
class StudentConfig:
    """What the student is made of."""

    backbone: Often[str] = "csat"  # any timm model with forward_intermediates: csat, csat_nano, resnet18, efficientnet_b0, …
    decoder_channels: int = 64  # width of the dense decoder
    downsample: int = 1  # the student sees the tile at 1/downsample of its pixels
    drop_path: float = 0.0  # stochastic depth of the backbone's last block, 0 to 1
    pretrained: bool = False  # start from timm's own weights (downloads them); csat has none
    weights: Place | None = None  # start from a file of the backbone's weights with timm's names, local or s3://
    grad_checkpointing: bool = False  # recompute the backbone's blocks in the backward pass: less memory, a third slower
    channels_last: bool = True  # memory layout; faster on CPU and on GPUs with tensor cores

    def __post_init__(self):
        if self.downsample < 1:
            raise ConfigError(f"student.downsample is a whole factor of at least 1, not {self.downsample}")
        if self.decoder_channels < 1:
            raise ConfigError(f"student.decoder_channels must be at least 1, not {self.decoder_channels}")
        if self.pretrained and self.weights is not None:
            raise ConfigError(
                f"student.pretrained downloads weights, and student.weights names {self.weights}: give one of them"
            )
        if not 0 <= self.drop_path < 1:
            raise ConfigError(f"student.drop_path must lie in [0, 1), not {self.drop_path}")


class Student(Model):
    """Backbone, decoder and heads. Parameters that no head reaches are frozen, so DDP needs no search for unused ones.

    Attributes:
        config: As given.
        heads: One module for each response, under its `head_key`.
        last_map: Names of the dense features that are the backbone's last map.
        stride_px: Coarsest stride in use. Images are padded to multiples of it, and predictions cut back.
        step_px: The student's image edges must be multiples of it: the coarsest stride of its dense predictions.
        mean, std: Normalisation of the backbone, `[1, 3, 1, 1]`, for images in [0, 1].
    """

    kind = "student"
    Options = StudentConfig
    weights_file = "student.safetensors"
    uses = TIMM_SETTINGS
    has_pretrained = True
    decoder_setting = "model.decoder_channels"

    def __init__(self, config: StudentConfig, responses: Sequence[ResponseSpec], *, last_map: Sequence[str] = ()):
        """
        Args:
            config: What it is made of.
            responses: What it predicts.
            last_map: Names of dense features that are not predicted by the decoder but are the backbone's last map, at its own
                stride; through a 1x1 convolution where its channels are not the response's.

        Raises:
            ConfigError: a backbone that timm does not have, that gives no feature maps, or runs at no size.
        """
        super().__init__(config, responses)
        _check_names([spec.name for spec in responses])
        self.config, self.downsample = config, config.downsample
        self.backbone = create_backbone(
            config.backbone,
            pretrained=config.weights or config.pretrained,
            drop_path=config.drop_path,
            grad_checkpointing=config.grad_checkpointing,
        )
        data = self.backbone.pretrained_cfg
        self.register_buffer("mean", torch.tensor(data.get("mean", (0.5, 0.5, 0.5))).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(data.get("std", (0.5, 0.5, 0.5))).view(1, 3, 1, 1))
        self._maps = FeatureMaps(self.backbone, name=config.backbone)
        self.stride_px = self._maps.strides_px[-1]
        self.decoder = DenseDecoder(self._maps.channels, self._maps.strides_px, config.decoder_channels)
        self.last_map = tuple(last_map)
        self.heads = nn.ModuleDict({head_key(spec.name): self._make_head(spec) for spec in responses})
        self._needs_decoder = any(spec.is_dense and spec.name not in self.last_map for spec in self.responses)
        self._needs_global = any(not spec.is_dense for spec in self.responses)
        self.step_px = max((self.prediction_stride_px(spec) for spec in self.responses if spec.is_dense), default=1)
        if config.channels_last:
            self.to(memory_format=torch.channels_last)
        freeze_unused(self, torch.zeros(1, 3, self._maps.size_px, self._maps.size_px))

    @classmethod
    def from_config(cls, config: ModelConfig, info: DatasetInfo) -> Self:
        if config.options:
            raise ConfigError(
                f"model.options are for hovernet, unet and fanet; {config.name!r} has none: {', '.join(config.options)} (but "
                "for layer, and upsample beside it: by which layer it classifies)"
            )
        options = StudentConfig(
            backbone=config.name,
            pretrained=config.init == "pretrained" and config.weights is None,
            weights=config.weights,
            channels_last=config.channels_last,
            **{name: getattr(config, name) for name in TIMM_SETTINGS},
        )
        return cls(options, heads_of(info))

    def describe(self) -> dict[str, Any]:
        student = {**asdict(self.config), "pretrained": self.config.pretrained or self.config.weights is not None}
        student.pop("weights")  # a place on the machine where it was trained
        return {
            "backbone": self.config.backbone,
            "student": student,
            "last_map": list(self.last_map),
            "mean": self.mean.flatten().tolist(),
            "std": self.std.flatten().tolist(),
            "stride_px": self.stride_px,
        }

    @classmethod
    def from_description(cls, config: Mapping[str, Any], responses: Sequence[ResponseSpec]) -> Self:
        """The timm weights that it began with are not fetched: its own are in the file."""
        options = read_settings(StudentConfig, {**config["student"], "pretrained": False}, what="the stored student")
        return cls(options, responses, last_map=config.get("last_map", ()))

    def in_timm(self, metadata: Mapping[str, Any]) -> TimmForm:
        """The backbone; of a student whose one answer is a class, the classifier too."""
        tile_px, (*more, spec) = metadata.get("tile_px"), self.responses
        is_classifier = not more and not spec.is_dense and spec.kind == Kind.LOGITS
        return timm_form(
            self.backbone,
            self.config.backbone,
            mean=self.mean.flatten().tolist(),
            std=self.std.flatten().tolist(),
            input_px=tile_px // self.downsample if tile_px else None,
            classifier=self.heads[head_key(spec.name)].fc if is_classifier else None,
            class_names=spec.channel_names,
            licence=licence_of(metadata),
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Raw predictions for every response.

        Args:
            images: Float `[B, 3, H, W]` in [0, 1], already downsampled; H and W multiples of `step_px`. Where they are no
                multiples of `stride_px` (HoVer-Net's 270 px), the last rows and columns are repeated until they are.

        Returns:
            Name → prediction. Dense ones cover the whole image, `[B, C, H/2, W/2]`; dense features, with their hundreds of
            channels, lie at the power of two nearest below their own stride instead, and those of `last_map` at `stride_px`.
            Global ones `[B, C]`. A probability with one channel is a logit for a sigmoid, one with several channels and
            `LOGITS` are logits for a softmax; all else are values as they are.
        """
        return self.tap(images, ())[1]

    @property
    def layers(self) -> dict[str, Layer]:
        """The backbone's maps by stride, the last as `features`; with a decoder, also its last map and the finest."""
        finest_px = self.decoder.stride_px * self.downsample
        dense = {
            ENCODED: Layer(channels=self._maps.channels[0], stride_px=finest_px),
            DECODED: Layer(channels=self.decoder.channels, stride_px=finest_px),
        }
        strides_px = [stride_px * self.downsample for stride_px in self._maps.strides_px]
        backbone = [Layer(channels=each, stride_px=px) for each, px in zip(self._maps.channels, strides_px, strict=True)]
        named = {f"stride_{layer.stride_px}": layer for layer in backbone[:-1]}
        return {**(dense if self._needs_decoder else {}), **named, FEATURES: backbone[-1]}

    def tap(self, images: Tensor, layers: Iterable[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """As every model; where images are padded, their cells beyond the image are cut away."""
        features, decoded, pooled = self._run(images)
        predictions = {}
        for spec in self.responses:
            source = features[-1] if spec.name in self.last_map else decoded if spec.is_dense else pooled
            predictions[spec.name] = self.heads[head_key(spec.name)](source)
            if spec.is_dense:
                predictions[spec.name] = self._maps.cut(predictions[spec.name], images, self.prediction_stride_px(spec))
        finest_px = self.decoder.stride_px
        maps = {ENCODED: (features[0], finest_px), DECODED: (decoded, finest_px), FEATURES: (features[-1], self.stride_px)}
        for cells, stride_px in zip(features, self._maps.strides_px, strict=True):
            maps[f"stride_{stride_px * self.downsample}"] = cells, stride_px
        return {name: self._maps.cut(maps[name][0], images, maps[name][1]) for name in layers}, predictions

    def _run(self, images: Tensor) -> tuple[list[Tensor], Tensor | None, Tensor | None]:
        """Maps of the backbone, finest first, and the decoder's and the pooled last one where a head needs them."""
        height, width = images.shape[2:]
        if height % self.step_px or width % self.step_px:
            raise ConfigError(
                f"student {self.config.backbone!r} takes images whose edges are multiples of {self.step_px} px, "
                f"not {height} x {width} px"
            )
        x = self._maps.pad((images - self.mean) / self.std)
        if self.config.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        last, features = self._maps.read(self.backbone, x, with_last=self._needs_global)
        decoded = self.decoder(features) if self._needs_decoder else None
        pooled = self.backbone.forward_head(last, pre_logits=True) if self._needs_global else None
        return features, decoded, pooled

    def check_tile(self, tile_px: int) -> None:
        """Refuse a tile size that this student cannot take.

        Raises:
            ConfigError: with the nearest sizes that would do.
        """
        factor = self.config.downsample
        step_px = factor * self.step_px
        if tile_px <= 0 or tile_px % step_px:
            near_px = [size for size in (tile_px // step_px * step_px, (tile_px // step_px + 1) * step_px) if size > 0]
            raise ConfigError(
                f"student {self.config.backbone!r} takes tiles whose edge is a multiple of {step_px} px "
                f"(stride {self.step_px} x downsample {factor}), not {tile_px} px: set data.tile_px to "
                f"{' or '.join(map(str, near_px))}"
            )
        image_px = tile_px // factor
        try:
            with without_trace(self):
                predictions = self(torch.zeros(1, 3, image_px, image_px, device=self.mean.device))
            self._check_predictions(predictions, image_px)
        except Exception as error:  # timm's models raise what they like at a size that they do not take
            raise ConfigError(
                f"backbone {self.config.backbone!r} refuses images of {image_px} px ({first_line(error)}): set "
                f"data.tile_px {self._maps.size_px * factor}, or choose a backbone that takes images of any size"
            ) from error

    def prediction_stride_px(self, spec: ResponseSpec) -> int:
        """Pixels of the student's image per cell of a dense prediction."""
        if spec.name in self.last_map:
            return self.stride_px
        stride_px = PREDICTION_STRIDE_PX
        if spec.kind == Kind.FEATURES:  # hundreds of channels: at the teacher's own resolution, not finer
            stride_px = max(stride_px, spec.stride_px // self.config.downsample)
        return min(2 ** (stride_px.bit_length() - 1), self.stride_px)

    @property
    def has_one_size(self) -> bool:
        return has_fixed_size(self.backbone)

    @property
    def noun(self) -> str:
        return f"student with the backbone {self.config.backbone!r}"

    def check_source(self, source: Model, source_name: str) -> None:
        super().check_source(source, source_name)
        theirs, ours = source.config.backbone, self.config.backbone
        if architecture_of(theirs) != architecture_of(ours):
            raise ConfigError(
                f"{source_name} holds a student with the backbone {theirs!r}, and model.name is {ours!r}: set model.name "
                f"{theirs}, or choose another run"
            )

    def parts(self) -> dict[str, list[nn.Module]]:
        decoder = [self.decoder] if self._needs_decoder else []
        return {BACKBONE: [self.backbone], DECODER: decoder, HEADS: list(self.heads.values())}

    def backbone_layers(self) -> dict[str, int]:
        return {f"backbone.{name}": layer for name, layer in layers_of(self.backbone, self.config.backbone).items()}

    def _make_head(self, spec: ResponseSpec) -> nn.Module:
        if spec.name in self.last_map:
            last_channels = self._maps.channels[-1]
            is_same = spec.channels == last_channels
            return nn.Identity() if is_same else nn.Conv2d(last_channels, spec.channels, 1)
        if not spec.is_dense:
            if self._maps.pooled_channels is None:
                raise ConfigError(
                    f"backbone {self.config.backbone!r} does not pool its features to one vector per image, which the "
                    f"response {spec.name!r} needs: choose another backbone"
                )
            return GlobalHead(self._maps.pooled_channels, spec.channels)
        finest_px, wanted_px = self.decoder.stride_px, self.prediction_stride_px(spec)
        shrink, upscale = max(1, wanted_px // finest_px), max(1, finest_px // wanted_px)
        return DenseHead(self.decoder.channels, spec.channels, upscale=upscale, shrink=shrink)

    def _check_predictions(self, predictions: dict[str, Tensor], image_px: int) -> None:
        for spec in filter(lambda spec: spec.is_dense, self.responses):
            cells, came = image_px // self.prediction_stride_px(spec), predictions[spec.name].shape[2:]
            if came != (cells, cells):
                raise ValueError(f"{spec.name} has {came[0]} x {came[1]} cells, where {cells} x {cells} were promised")


def _check_names(names: Sequence[str]) -> None:
    for name in names:
        if not all(name.split(".")) or name.count(".") > 1:
            raise ConfigError(
                f"response {name!r}: a head's name is not empty, and has a dot at most behind its teacher's name"
            )
    if not names or len(set(map(head_key, names))) < len(names):
        raise ConfigError(f"a student needs at least one response, and their names must differ; got {names}")
