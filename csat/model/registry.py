"""Which models fine-tuning can train, and from where each may start.

Every model has parts (`csat/model/contract.py`), `responses` (its heads), `downsample`, `step_px`, `check_tile(tile_px)`, and
turns float `[B, 3, H, W]` in [0, 1] into name → raw prediction over the whole image: `[B, C, h, w]`, or `[B, C]` for a head
without pixels.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from csat.errors import ConfigError
from csat.model.contract import BACKBONE, DECODER, HEADS, PartedModel
from csat.model.hovernet_model import HoverNetModel
from csat.model.networks.fanet import WIDTH
from csat.model.networks.hovernet import MARGIN_PX, Mode
from csat.model.segmentation_nets import NETWORKS, SegmentationNet
from csat.model.student import Student, StudentConfig
from csat.model.tapped import TappedClassifier
from csat.model.transfer import transfer
from csat.model.unet import UNetModel
from csat.settings import Place, read_settings
from csat.tasks import DatasetInfo, Task, heads_of

INITS = ("scratch", "pretrained", "run")
TRANSFERS = {
    "backbone": (BACKBONE,),
    "backbone+decoder": (BACKBONE, DECODER),
    "all": (BACKBONE, DECODER, HEADS),
}
FREEZES = {"none": (), "backbone": (BACKBONE,), "backbone+decoder": (BACKBONE, DECODER)}
TIMM_SETTINGS = ("decoder_channels", "downsample", "drop_path", "grad_checkpointing")  # the others have no use for them


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What is trained, and from where it starts."""

    name: str = "csat"  # a timm model (csat, resnet18, …), hovernet, unet, fanet, mobile_unet, enet or erfnet
    init: str = "scratch"  # scratch, pretrained (timm's own weights, downloaded) or run (from_run)
    from_run: Place | None = None  # run folder of pretrain.py or finetune.py, or an exported folder; local or s3://
    transfer: str = "all"  # of from_run: backbone, backbone+decoder, or all (also heads of the same name and form)
    freeze: str = "none"  # what does not train: none, backbone, or backbone+decoder
    decoder_channels: int = 64  # width of the dense decoder of a timm backbone
    downsample: int = 1  # the model sees the tile at 1/downsample of its pixels
    drop_path: float = 0.0  # stochastic depth of the backbone's last block, 0 to 1
    grad_checkpointing: bool = False  # recompute the backbone's blocks in the backward pass
    channels_last: bool = True  # memory layout of a timm backbone
    options: dict[str, Any] = field(default_factory=dict)  # hovernet: mode, width; unet, fanet: width; timm: layer

    def __post_init__(self):
        for name, allowed in (("init", INITS), ("transfer", TRANSFERS), ("freeze", FREEZES)):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"model.{name} is one of {', '.join(allowed)}, not {getattr(self, name)!r}")
        if (self.init == "run") != (self.from_run is not None):
            raise ConfigError(
                f"model.init {self.init!r} with model.from_run {self.from_run!r}: a run folder goes with init run, and only "
                "there"
            )
        if self.freeze != "none" and self.init == "scratch":
            raise ConfigError(f"model.freeze {self.freeze} with model.init scratch: random weights would never learn")
        if DECODER in FREEZES[self.freeze] and (self.init != "run" or DECODER not in TRANSFERS[self.transfer]):
            raise ConfigError(
                f"model.freeze {self.freeze} needs a decoder that has learned something: set model.init run and model.transfer"
                " backbone+decoder or all, or model.freeze backbone"
            )


@dataclass(frozen=True, kw_only=True)
class HoverNetModelOptions:
    """Of `name: hovernet`."""

    mode: Mode = "fast"  # fast or original
    width: float = 1.0  # fraction of the published channels


@dataclass(frozen=True, kw_only=True)
class UNetOptions:
    """Of `name: unet`."""

    width: int = 32  # channels at full resolution
    depth: int = 4  # times that the image is halved


@dataclass(frozen=True, kw_only=True)
class FANetOptions:
    """Of `name: fanet`."""

    width: int = WIDTH  # channels at full resolution, a multiple of 8


@dataclass(frozen=True, kw_only=True)
class TappedOptions:
    """Of a timm model that classifies by one of its layers, for method attention."""

    layer: str  # dotted name of the last layer that is kept, such as features.28 of vgg16
    upsample: bool = False  # enlarge what model.downsample shrank, as the paper does; nothing is computed less


@dataclass(frozen=True, kw_only=True)
class NoOptions:
    """Of the other networks for segmentation."""


def build_model(config: ModelConfig, info: DatasetInfo, load: Callable[[str], nn.Module]) -> PartedModel:
    """A model with the heads of a task, on the CPU.

    Args:
        config: The settings.
        info: Task and classes of the data.
        load: Gives the model of `from_run` (`csat.export.folder` has it; it lies above this module).

    Raises:
        ConfigError: settings that cannot work together; an initial run of another model, or without one.
    """
    model = _build(config, info)
    moved = []
    if config.from_run is not None:
        moved = transfer(load(config.from_run), model, parts=TRANSFERS[config.transfer], source_name=config.from_run)
    if DECODER in FREEZES[config.freeze] and not model.tensors_of(DECODER).keys() <= set(moved):
        raise ConfigError(
            f"model.freeze {config.freeze}, and a part of the decoder is not in {config.from_run}: it would never learn. Set "
            "model.freeze backbone"
        )
    if config.freeze != "none":
        model.freeze(FREEZES[config.freeze])
    return model


def _build(config: ModelConfig, info: DatasetInfo) -> PartedModel:
    if config.name == "hovernet":
        if info.task != Task.NUCLEI:
            raise ConfigError(f"model hovernet finds nuclei, and the task is {info.task}: choose unet or a timm backbone")
        _refuse_timm_settings(config)
        options = read_settings(HoverNetModelOptions, config.options, what="model.options of hovernet")
        return HoverNetModel(heads_of(info, crop_px=MARGIN_PX[options.mode]), mode=options.mode, width=options.width)
    if config.name == "unet":
        _refuse_timm_settings(config)
        options = read_settings(UNetOptions, config.options, what="model.options of unet")
        return UNetModel(heads_of(info), width=options.width, depth=options.depth)
    if config.name in NETWORKS:
        return _build_segmentation_net(config, info)
    if "layer" in config.options:
        return _build_tapped(config, info)
    if config.options:
        raise ConfigError(
            f"model.options are for hovernet, unet and fanet; {config.name!r} has none: {', '.join(config.options)} (but "
            "for layer, and upsample beside it: by which layer it classifies)"
        )
    student = StudentConfig(
        backbone=config.name,
        decoder_channels=config.decoder_channels,
        downsample=config.downsample,
        drop_path=config.drop_path,
        pretrained=config.init == "pretrained",
        grad_checkpointing=config.grad_checkpointing,
        channels_last=config.channels_last,
    )
    return Student(student, heads_of(info))


def _build_tapped(config: ModelConfig, info: DatasetInfo) -> TappedClassifier:
    if info.task != Task.CLASSIFICATION:
        raise ConfigError(f"model.options.layer is for classification, and the task is {info.task}: leave it out")
    defaults = ModelConfig()
    others = [n for n in TIMM_SETTINGS if n != "downsample" and getattr(config, n) != getattr(defaults, n)]
    if others:
        raise ConfigError(f"a classifier on a layer has no {', '.join(others)}: leave them out, or model.options.layer")
    options = read_settings(TappedOptions, config.options, what="model.options of a classifier on a layer")
    return TappedClassifier(
        heads_of(info),
        backbone=config.name,
        pretrained=config.init == "pretrained",
        downsample=config.downsample,
        **asdict(options),
    )


def _build_segmentation_net(config: ModelConfig, info: DatasetInfo) -> SegmentationNet:
    if info.task != Task.SEGMENTATION:
        raise ConfigError(f"model {config.name} segments, and the task is {info.task}: choose unet or a timm backbone")
    has_pretrained = config.name == "mobile_unet"  # its encoder is timm's MobileNetV2
    _refuse_timm_settings(config, has_pretrained=has_pretrained)
    kind = FANetOptions if config.name == "fanet" else NoOptions
    options = asdict(read_settings(kind, config.options, what=f"model.options of {config.name}"))
    if has_pretrained:
        options["pretrained"] = config.init == "pretrained"
    return SegmentationNet(heads_of(info), network=config.name, **options)


def _refuse_timm_settings(config: ModelConfig, *, has_pretrained: bool = False) -> None:
    defaults = ModelConfig()
    others = [name for name in TIMM_SETTINGS if getattr(config, name) != getattr(defaults, name)]
    others += ["init pretrained"] if config.init == "pretrained" and not has_pretrained else []
    if others:
        raise ConfigError(f"model {config.name!r} has no {', '.join(others)}: these are for timm backbones; leave them out")
