"""Weights of one model into another: the parts that fit, and what is said where they do not."""

import logging

from torch import Tensor

from csat import nuclei
from csat.errors import ConfigError
from csat.model.contract import Model
from csat.model.parts import BACKBONE, DECODER, HEADS, head_key
from csat.panel import plain_names
from csat.responses import Kind, ResponseSpec

logger = logging.getLogger(__name__)


def transfer(source: Model, model: Model, *, parts: tuple[str, ...], source_name: str) -> list[str]:
    """Copy weights of one model into another.

    Args:
        source: Where they come from.
        model: Of the same kind; keeps its own heads where those of the source do not fit, and its own decoder where the source
            never used one.
        parts: Which of BACKBONE, DECODER, HEADS move.
        source_name: For messages.

    Returns:
        Names of the tensors that were copied.

    Raises:
        ConfigError: another kind of model, another backbone, or a backbone or decoder of another size.
    """
    model.check_source(source, source_name)
    own, given = model.state_dict(), source.state_dict()
    moved: dict[str, Tensor] = {name: tensor for name, tensor in given.items() if name in own and "." not in name}  # mean, std
    moved |= _of_one_size(source, model, BACKBONE, source_name)
    if DECODER in parts and _has_decoder(model):
        if _has_decoder(source):
            moved |= _of_one_size(source, model, DECODER, source_name)
        elif HEADS not in parts:
            raise ConfigError(f"{source_name} has no decoder that was ever trained: set model.transfer backbone")
    heads = _fitting_heads(source, model) if HEADS in parts else {}
    for tensors in heads.values():
        moved |= tensors
    model.load_state_dict({**own, **moved})
    logger.info(
        "from %s: %d of %d tensors; heads: %s", source_name, len(moved), len(own), ", ".join(heads) or "none, all are fresh"
    )
    return list(moved)


def _of_one_size(source: Model, model: Model, part: str, source_name: str) -> dict[str, Tensor]:
    """What both have. A decoder's branch that the source lacks stays fresh.

    Raises:
        ConfigError: a tensor of another shape, or one that the backbone lacks.
    """
    given, own = source.tensors_of(part), model.tensors_of(part)
    wrong = [name for name in own if name in given and given[name].shape != own[name].shape]
    if part == BACKBONE:
        wrong += [name for name in own.keys() ^ given.keys()]
    if wrong:
        shapes = [str(list(tensors[wrong[0]].shape)) if wrong[0] in tensors else "absent" for tensors in (given, own)]
        setting = model.decoder_setting if part == DECODER else "model.options"
        keep = ", or model.transfer backbone" if part == DECODER else ""
        raise ConfigError(
            f"the {part} of {source_name} has another size: {len(wrong)} tensors differ, such as {wrong[0]} ({shapes[0]} "
            f"there, {shapes[1]} here). Set {setting} as that run has them{keep}"
        )
    return {name: tensor for name, tensor in given.items() if name in own}


def _fitting_heads(source: Model, model: Model) -> dict[str, dict[str, Tensor]]:
    """Name of each head that means the same in both → its tensors, as the model calls them.

    A source that learned of several teachers calls its heads by them, too: its `nuclei.np` is a `np`.
    """
    plain = plain_names(spec.name for spec in source.responses)
    stored = {plain[spec.name]: spec for spec in source.responses}
    own = model.tensors_of(HEADS)
    fitting = {}
    for spec in model.responses:
        if spec.name not in stored or not _mean_the_same(spec, stored[spec.name]):
            continue
        there, here = (f".{head_key(name)}." for name in (stored[spec.name].name, spec.name))
        tensors = {name.replace(there, here): each for name, each in source.tensors_of_head(stored[spec.name].name).items()}
        if all(name in own and own[name].shape == tensor.shape for name, tensor in tensors.items()):
            fitting[spec.name] = tensors
    return fitting


def _mean_the_same(one: ResponseSpec, other: ResponseSpec) -> bool:
    """Whether raw predictions of two heads are the same thing: also logits of one and probabilities of the other."""
    softmaxed = [spec.kind == Kind.LOGITS or (spec.kind == Kind.PROBABILITY and spec.channels > 1) for spec in (one, other)]
    same_kind = all(softmaxed) or one.kind == other.kind
    same_names = not one.channel_names or not other.channel_names or nuclei.are_same(one.channel_names, other.channel_names)
    return same_kind and same_names and (one.channels, one.is_dense) == (other.channels, other.is_dense)


def _has_decoder(model: Model) -> bool:
    return bool(model.parts()[DECODER])
