"""What every model is (`Model`), and what is trained and from where it starts (`ModelConfig`).

A model is one file with an options dataclass and a class, and one line in `csat/model/registry.py`. The class says all that
the rest of the system may know: which tasks it serves, what it answers, which of its maps can be tapped, the tiles that it
takes, its parts, and how it is written to files.
"""

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Self

from torch import Tensor

from csat.errors import ConfigError
from csat.model.parts import BACKBONE, DECODER, HEADS, PartedModel
from csat.model.timm_form import TimmForm
from csat.responses import ResponseSpec
from csat.settings import ModelPlace, Often, Place, read_settings
from csat.tasks import DatasetInfo, heads_of
from csat.views.grid import downsample

# Names of layers that mean the same in every model that has them: the encoder's and the decoder's map that method coco
# compares, and the last map of the backbone.
ENCODED, DECODED, FEATURES = "encoder", "decoder", "features"
INITS = ("scratch", "pretrained", "run")
TRANSFERS = {
    "backbone": (BACKBONE,),
    "backbone+decoder": (BACKBONE, DECODER),
    "all": (BACKBONE, DECODER, HEADS),
}
FREEZES = {"none": (), "backbone": (BACKBONE,), "backbone+decoder": (BACKBONE, DECODER)}
TIMM_SETTINGS = ("decoder_channels", "downsample", "drop_path", "grad_checkpointing")  # not every model has a use for them


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What is trained, and from where it starts."""

    name: Often[str] = "csat"  # a timm model (csat, resnet18, …), hovernet, unet, fanet, mobile_unet, enet or erfnet
    init: Often[str] = "scratch"  # scratch, pretrained (timm's own weights, downloaded or of weights) or run (from_run)
    weights: Often[Place | None] = None  # with init pretrained: a file with timm's names, local or s3://; None: downloaded
    from_run: Often[ModelPlace | None] = None  # run of pretrain.py or finetune.py, exported folder, or a student by its name
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
        if self.weights is not None and self.init != "pretrained":
            raise ConfigError(f"model.weights {self.weights} goes with model.init pretrained, not with {self.init}")
        if self.freeze != "none" and self.init == "scratch":
            raise ConfigError(f"model.freeze {self.freeze} with model.init scratch: random weights would never learn")
        if DECODER in FREEZES[self.freeze] and (self.init != "run" or DECODER not in TRANSFERS[self.transfer]):
            raise ConfigError(
                f"model.freeze {self.freeze} needs a decoder that has learned something: set model.init run and model.transfer"
                " backbone+decoder or all, or model.freeze backbone"
            )


@dataclass(frozen=True, kw_only=True)
class NoOptions:
    """Of a model that has nothing to choose."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A map inside a model that can be tapped."""

    channels: int
    stride_px: int  # pixels of the tile per cell
    has_verdict: bool = False  # a classification follows from it alone: gradients by it make attention maps


class Model(PartedModel):
    """A network whose backbone, decoder and heads are told apart, with everything that is to be known about it.

    A subclass says on the class:
        kind: Its name in files, and its key in the registry.
        Options: Frozen dataclass of what it is made of; the constructor takes one. Files keep it.
        weights_file: File of its tensors in an exported folder.
        uses: Of TIMM_SETTINGS, those that it has a use for; the others are refused.
        has_pretrained: It can start from timm's own weights.
        decoder_setting: What a user sets so that its decoder has another size.

    Attributes:
        options: As given.
        responses: What it answers: one spec per head. The head's modules are called by its name.
        downsample: It sees the tile at 1/downsample of its pixels.
        step_px: What the edges of its images are multiples of.
    """

    kind: ClassVar[str]
    Options: ClassVar[type] = NoOptions
    weights_file: ClassVar[str] = "model.safetensors"
    uses: ClassVar[tuple[str, ...]] = ()
    has_pretrained: ClassVar[bool] = False
    decoder_setting: ClassVar[str] = "model.options"
    downsample: int = 1
    step_px: int = 1

    def __init__(self, options: Any, responses: Sequence[ResponseSpec]):
        """A subclass calls this first.

        Args:
            options: Of the class's `Options`.
            responses: The heads.
        """
        super().__init__()
        self.options, self.responses = options, tuple(responses)

    # From settings, and from and to files.

    @classmethod
    def from_config(cls, config: ModelConfig, info: DatasetInfo) -> Self:
        """A fresh model with the heads of a task, on the CPU.

        Args:
            config: The settings; `from_run` and `freeze` are the registry's business.
            info: Task and classes of the data.

        Raises:
            ConfigError: a task that it does not serve, settings that it has no use for, or that cannot work together.
        """
        cls.check_task(config, info)
        cls.check_settings(config)
        options = cls.read_options(config)
        more = {"pretrained": config.weights or config.init == "pretrained"} if cls.has_pretrained else {}
        return cls(options, cls.heads_for(info, options), **more)

    @classmethod
    def check_task(cls, config: ModelConfig, info: DatasetInfo) -> None:
        """Refuse data that it is not for. Raises ConfigError with what would do."""

    @classmethod
    def check_settings(cls, config: ModelConfig) -> None:
        """Refuse settings that would change nothing. Raises ConfigError naming them."""
        if unused := cls.unused_settings(config):
            raise ConfigError(
                f"model {config.name!r} has no {', '.join(unused)}: these are for timm backbones; leave them out"
            )

    @classmethod
    def unused_settings(cls, config: ModelConfig) -> list[str]:
        """What a user has set and the model has no use for."""
        defaults = ModelConfig()
        unused = [n for n in TIMM_SETTINGS if n not in cls.uses and getattr(config, n) != getattr(defaults, n)]
        return unused + (["init pretrained"] if config.init == "pretrained" and not cls.has_pretrained else [])

    @classmethod
    def read_options(cls, config: ModelConfig) -> Any:
        """Its `Options`, out of the settings. Raises ConfigError for an unknown one, or a wrong value."""
        return read_settings(cls.Options, config.options, what=f"model.options of {config.name}")

    @classmethod
    def heads_for(cls, info: DatasetInfo, options: Any) -> tuple[ResponseSpec, ...]:
        """The heads that it has for a task."""
        return heads_of(info)

    def describe(self) -> dict[str, Any]:
        """What config.json says of it besides its responses; `from_description` makes the same model of it, less weights."""
        return {"model": self.kind, "options": asdict(self.options)}

    @classmethod
    def from_description(cls, config: Mapping[str, Any], responses: Sequence[ResponseSpec]) -> Self:
        """A fresh model of this kind, as a config.json says.

        Raises:
            ConfigError: options that it does not have.
        """
        return cls(read_settings(cls.Options, config["options"], what=f"options of model {cls.kind!r}"), responses)

    def state(self) -> dict[str, dict[str, Tensor]]:
        """File name → its tensors by name, `weights_file` first. That one is enough to load the model from."""
        return {self.weights_file: self.state_dict()}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Take the tensors of `weights_file`, all of them.

        Raises:
            RuntimeError: others than the model has.
        """
        self.load_state_dict(tensors)

    def in_timm(self, metadata: Mapping[str, Any]) -> TimmForm | None:
        """What of it timm opens; None where timm has no such network.

        Args:
            metadata: Of its exported folder: tile_px, licences.
        """
        return None

    # What it sees and says.

    @abstractmethod
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Float `[B, 3, H, W]`, as `see` gives them → name → raw prediction over the whole image: `[B, C, h, w]`, or `[B, C]`
        for a head without pixels."""

    def see(self, tiles: Tensor, *, is_small: bool = False) -> Tensor:
        """Tiles as `forward` wants them: float `[B, 3, H, W]` in [0, 1], shrunk by `downsample`.

        Args:
            tiles: `[B, 3, H, W]` of 0 to 255, any dtype.
            is_small: They were read at the model's resolution: nothing is shrunk.
        """
        return downsample(tiles.float() / 255, 1 if is_small else self.downsample)

    @property
    def layers(self) -> dict[str, Layer]:
        """Name → map that `tap` gives."""
        return {}

    def tap(self, images: Tensor, layers: Iterable[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Some of the `layers` by name, `[B, channels, h, w]`, and what `forward` says, in one pass."""
        assert not list(layers), f"{type(self).__name__} has no layers to tap"
        return {}, self(images)

    def prediction_stride_px(self, spec: ResponseSpec) -> int:
        """Pixels of the model's image per cell of a dense prediction."""
        return 1

    # The tiles that it takes.

    def check_tile(self, tile_px: int) -> None:
        """Refuse a tile size that the model cannot take. Raises ConfigError with the nearest that it can."""
        step_px = self.step_px * self.downsample
        if tile_px <= 0 or tile_px % step_px:
            nearest = max(step_px, round(tile_px / step_px) * step_px)
            raise ConfigError(
                f"{self.noun} takes tiles of multiples of {step_px} px: set data.tile_px {nearest}, not {tile_px}"
            )

    def tile_sizes(self, largest_px: int) -> tuple[int, ...] | None:
        """Edges of tiles that it takes, up to the largest; None: any that its responses fit."""
        return None

    @property
    def has_one_size(self) -> bool:
        """Whether it was made for images of a single size."""
        return False

    # What others may take from it.

    @property
    def noun(self) -> str:
        """What it is, for messages."""
        return self.kind

    def check_source(self, source: "Model", source_name: str) -> None:
        """Refuse to take weights of a model of another kind. Raises ConfigError naming both."""
        if type(source) is not type(self):
            raise ConfigError(
                f"{source_name} holds a {source.noun}, and model.name asks for a {self.noun}: name the same model"
            )
