"""Which models fine-tuning can train, and from where each may start.

Every model has `responses` (its heads), `downsample`, `step_px`, `check_tile(tile_px)`, and turns float `[B, 3, H, W]` in [0, 1] into
name → raw prediction over the whole image: `[B, C, h, w]`, or `[B, C]` for a head without pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from csat.data.datasets.contract import DatasetInfo, Task
from csat.data.tasks import heads_of
from csat.errors import ConfigError
from csat.model.hovernet import MARGIN_PX, Mode
from csat.model.hovernet_model import HoverNetModel
from csat.model.student import Student, StudentConfig
from csat.model.unet import UNetModel
from csat.settings import read_settings

INITS = ("scratch", "pretrained", "run")
TRANSFERS = ("backbone", "backbone+decoder", "all")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What is trained, and from where it starts."""

    name: str = "csat"  # any timm model with forward_intermediates (csat, resnet18, …), hovernet or unet
    init: str = "scratch"  # scratch, pretrained (timm's own weights, downloaded) or run (from_run)
    from_run: str | None = None  # run folder of pretrain.py or finetune.py, or an exported folder; local or s3://
    transfer: str = "all"  # of from_run: backbone, backbone+decoder, or all (also heads of the same name and form)
    decoder_channels: int = 64  # width of the dense decoder of a timm backbone
    downsample: int = 1  # the model sees the tile at 1/downsample of its pixels
    drop_path: float = 0.0  # stochastic depth of the backbone's last block, 0 to 1
    grad_checkpointing: bool = False  # recompute the backbone's blocks in the backward pass
    channels_last: bool = True  # memory layout of a timm backbone
    options: dict[str, Any] = field(default_factory=dict)  # hovernet: mode, width; unet: width, depth

    def __post_init__(self):
        for name, allowed in (("init", INITS), ("transfer", TRANSFERS)):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"model.{name} is one of {', '.join(allowed)}, not {getattr(self, name)!r}")
        if (self.init == "run") != (self.from_run is not None):
            raise ConfigError(
                f"model.init {self.init!r} with model.from_run {self.from_run!r}: a run folder goes with init run, and only there"
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


def build_model(config: ModelConfig, info: DatasetInfo, load: Callable[[str], nn.Module]) -> nn.Module:
    """A model with the heads of a task, on the CPU.

    Args:
        config: The settings.
        info: Task and classes of the data.
        load: Gives the model of `from_run` (`csat.export` has it; it lies above this module).

    Raises:
        ConfigError: settings that cannot work together; an initial run of another model, or without one.
    """
    model = _build(config, info)
    if config.from_run is not None:
        _transfer(config, load(config.from_run), model)
    return model


def _build(config: ModelConfig, info: DatasetInfo) -> nn.Module:
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
    if config.options:
        raise ConfigError(f"model.options are for hovernet and unet; {config.name!r} has none: {', '.join(config.options)}")
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


def _refuse_timm_settings(config: ModelConfig) -> None:
    if config.init == "pretrained" or config.downsample != 1 or config.drop_path:
        raise ConfigError(f"model {config.name!r} has no init pretrained, downsample or drop_path: leave them out")


def _transfer(config: ModelConfig, source: nn.Module, model: nn.Module) -> None:
    """Copy weights of the initial run into a fresh model.

    Raises:
        ConfigError: it holds another kind of model, another backbone or another decoder.
    """
    if isinstance(source, Student) != isinstance(model, Student) or type(source) is not type(model):
        raise ConfigError(
            f"{config.from_run} holds a {_kind(source)} and model.name asks for {config.name!r}: name the same model"
        )
    if not isinstance(model, Student):
        _copy_equal(config, source, model)
        return
    if source.config.backbone != config.name:
        raise ConfigError(
            f"{config.from_run} holds a student with the backbone {source.config.backbone!r}, and model.name is {config.name!r}: "
            f"set --model.name {source.config.backbone}, or choose another run"
        )
    model.backbone.load_state_dict(source.backbone.state_dict())
    if config.transfer == "backbone":
        return
    if source.config.decoder_channels != config.decoder_channels:
        raise ConfigError(
            f"{config.from_run} has a decoder of {source.config.decoder_channels} channels and model.decoder_channels is "
            f"{config.decoder_channels}: set them alike, or --model.transfer backbone"
        )
    model.decoder.load_state_dict(source.decoder.state_dict())
    if config.transfer == "all":
        stored = {spec.name: spec for spec in source.responses}
        for spec in model.responses:
            other = stored.get(spec.name)
            if other and (other.kind, other.channels, other.is_dense) == (spec.kind, spec.channels, spec.is_dense):
                model.heads[spec.name].load_state_dict(source.heads[spec.name].state_dict())


def _copy_equal(config: ModelConfig, source: nn.Module, model: nn.Module) -> None:
    """All tensors of one name and shape; heads of another size stay fresh. Raises ConfigError where the body differs."""
    own, given = model.state_dict(), source.state_dict()
    fitting = {name: tensor for name, tensor in given.items() if name in own and own[name].shape == tensor.shape}
    heads = ("heads.", "net.decoder.tp.", "decoder.", "up.")
    missing = [name for name in own if name not in fitting and not name.startswith(heads)]
    if missing:
        raise ConfigError(
            f"{config.from_run} holds a {config.name} of another size: {len(missing)} tensors differ, such as {missing[0]}; set the "
            "same model.options"
        )
    model.load_state_dict({**own, **fitting})


def _kind(model: nn.Module) -> str:
    names = {HoverNetModel: "hovernet", UNetModel: "unet"}
    return f"student with the backbone {model.config.backbone!r}" if isinstance(model, Student) else names[type(model)]
