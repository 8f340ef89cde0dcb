"""The parts of a trained model: what moves from another run, what is frozen, how far a weight lies from the heads."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, Self

from torch import Tensor, nn

from csat.model.networks.norms import guard_norms
from csat.model.networks.pointwise import guard_pointwise

BACKBONE, DECODER, HEADS = "backbone", "decoder", "heads"


def head_key(response: str) -> str:
    """What the head of a response is called among modules, whose names have no dots: `nuclei__np` of `nuclei.np`."""
    return response.replace(".", "__")


class PartedModel(nn.Module, ABC):
    """A network whose backbone, decoder and heads are told apart.

    Attributes:
        frozen: Parts that do not train. They stay in evaluation mode (norms use their stored statistics and keep them, no
            block is dropped), whatever `train()` says.
    """

    frozen: tuple[str, ...] = ()

    @abstractmethod
    def parts(self) -> dict[str, list[nn.Module]]:
        """BACKBONE, DECODER, HEADS → the modules that each is made of. A model for whole images has no modules in DECODER."""

    @abstractmethod
    def backbone_layers(self) -> dict[str, int]:
        """Name of each parameter of the backbone → its layer; 0 is nearest to the image.

        Raises:
            ConfigError: this backbone does not tell its layers apart.
        """

    def __setattr__(self, name: str, value: Any) -> None:
        """Whatever becomes a part of a model is made safe before it computes anything."""
        if isinstance(value, nn.Module):
            guard_pointwise(value)
            guard_norms(value)
        super().__setattr__(name, value)

    def tensors_of(self, part: str) -> dict[str, Tensor]:
        """The part's parameters and buffers, under their names in `state_dict()`."""
        modules = set(self.parts()[part])
        prefixes = tuple(f"{name}." for name, module in self.named_modules() if module in modules)
        return {name: tensor for name, tensor in self.state_dict().items() if name.startswith(prefixes)}

    def tensors_of_head(self, name: str) -> dict[str, Tensor]:
        """Of the head that answers under that name, as `tensors_of`."""
        return {key: tensor for key, tensor in self.tensors_of(HEADS).items() if f".{head_key(name)}." in key}

    def freeze(self, parts: Iterable[str]) -> None:
        """From now on these parts do not train."""
        self.frozen = (*self.frozen, *parts)
        for part in self.frozen:
            for module in self.parts()[part]:
                module.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for part in self.frozen:
            for module in self.parts()[part]:
                module.eval()
        return self

    def lr_scales(self, layer_decay: float, head_lr: float) -> dict[str, float]:
        """What the learning rate of each trainable parameter is multiplied with.

        The decoder learns at the full rate, and each layer of the backbone at `layer_decay` times that of the layer after it
        (Bao et al. 2022, "BEiT"); layers without a trainable parameter do not count.

        Args:
            layer_decay: In (0, 1].
            head_lr: Of the heads.

        Raises:
            ConfigError: as `backbone_layers`, where `layer_decay` is not 1.
        """
        trainable = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        scales = dict.fromkeys(trainable, 1.0) | dict.fromkeys(trainable & self.tensors_of(HEADS).keys(), head_lr)
        if layer_decay != 1:
            layers = {name: layer for name, layer in self.backbone_layers().items() if name in trainable}
            order = sorted(set(layers.values()), reverse=True)
            depth = {layer: index + 1 for index, layer in enumerate(order)}
            scales |= {name: layer_decay ** depth[layer] for name, layer in layers.items()}
        return scales
