"""Which models there are, and from where fine-tuning's may start. A new one is its file and one line in `MODELS`."""

from collections.abc import Callable

from csat.errors import ConfigError
from csat.model.contract import FREEZES, TRANSFERS, Model, ModelConfig
from csat.model.parts import DECODER
from csat.model.transfer import transfer
from csat.settings import resolve
from csat.tasks import DatasetInfo

# kind → class, as "module:attribute": importing the registry imports no network. The class itself is accepted in place of the
# string. A model is built by its kind as `model.name`; any other name is a timm backbone's.
MODELS: dict[str, str | type[Model]] = {
    "student": "csat.model.student:Student",
    "hovernet": "csat.model.hovernet:HoverNetModel",
    "unet": "csat.model.unet:UNetModel",
    "tapped": "csat.model.tapped:TappedClassifier",
    "fanet": "csat.model.segmentation_nets:FANetModel",
    "mobile_unet": "csat.model.segmentation_nets:MobileUNetModel",
    "enet": "csat.model.segmentation_nets:ENetModel",
    "erfnet": "csat.model.segmentation_nets:ERFNetModel",
}
STUDENT, TAPPED = "student", "tapped"  # the kinds that are built around a timm backbone, whose name is the model's


def find_model(kind: str) -> type[Model]:
    """A model's class. Raises ConfigError for a kind that is not there, listing those that are."""
    if kind not in MODELS:
        raise ConfigError(f"there is no model of kind {kind!r}; known are: {', '.join(MODELS)}")
    return resolve(MODELS[kind])


def kind_of(config: ModelConfig) -> str:
    """The kind of model that settings ask for: of a timm backbone a student, or a classifier on the layer that is named."""
    if config.name in MODELS and config.name not in (STUDENT, TAPPED):
        return config.name
    return TAPPED if "layer" in config.options else STUDENT


def build_model(config: ModelConfig, info: DatasetInfo, load: Callable[[str], Model]) -> Model:
    """A model with the heads of a task, on the CPU.

    Args:
        config: The settings.
        info: Task and classes of the data.
        load: Gives the model of `from_run` (`load_exported` of `csat.model.files`, which needs this module).

    Raises:
        ConfigError: settings that cannot work together; an initial run of another model, or without one.
    """
    model = find_model(kind_of(config)).from_config(config, info)
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
