"""timm backbones by name, checked for what a student needs of them.

timm is imported where it is used: it takes seconds, and this module lies under every model's settings.
"""

import difflib
import io
import pickle
import re
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from csat.errors import ConfigError
from csat.model.networks.csat import VARIANTS, make_csat
from csat.storage import files
from csat.words import some

FINEST_LEVEL_PX = 4  # feature maps of a finer stride are not used: each would multiply the decoder's cost by four


def create_backbone(
    name: str, *, pretrained: bool | str = False, drop_path: float = 0.0, grad_checkpointing: bool = False
) -> nn.Module:
    """The timm model of that name with `num_classes=0`, which gives feature maps through `forward_intermediates`.

    Args:
        name: As timm knows it, with or without a tag: `csat`, `resnet18`, `convnextv2_atto.fcmae_ft_in1k`.
        pretrained: With timm's weights, downloaded where they are not in the hub's cache; or with those of a file, see
            `load_weights`.
        drop_path: Stochastic depth of the last block.
        grad_checkpointing: Recompute blocks in the backward pass.

    Raises:
        ConfigError: an unknown name (with those that look like it), an option that it lacks, no feature maps, weights that do
            not fit.
    """
    options = {"num_classes": 0, **({"drop_path_rate": drop_path} if drop_path > 0 else {})}
    is_fetched = pretrained is True
    backbone = make_csat(name, **options) if name in VARIANTS and not is_fetched else _of_timm(name, is_fetched, options)
    if isinstance(pretrained, str):
        load_weights(backbone, pretrained, name=name)
    if grad_checkpointing:
        backbone.set_grad_checkpointing(True)
    return backbone


def load_weights(backbone: nn.Module, uri: str, *, name: str) -> None:
    """Fill a backbone from a file with timm's names; weights of a classifier, which a backbone lacks, are left out.

    Args:
        backbone: Of timm, without a classifier.
        uri: safetensors, or a torch file, which is read with `weights_only`: nothing in it is run. Numbers of any type.
        name: Of the backbone, for messages.

    Raises:
        ConfigError: no such file, or weights of another network: how many are missing, of another shape, or too many.
    """
    state, own = _read_weights(uri), backbone.state_dict()
    classifier = backbone.pretrained_cfg.get("classifier") or ()
    heads = tuple(f"{place}." for place in ([classifier] if isinstance(classifier, str) else classifier))
    given = {key: tensor for key, tensor in state.items() if key in own or not key.startswith(heads)}
    missing = [key for key in own if key not in given and not key.endswith("num_batches_tracked")]
    unknown = [key for key in given if key not in own]
    misshaped = [key for key in own if key in given and given[key].shape != own[key].shape]
    if missing or unknown or misshaped:
        kinds = (("missing", missing), ("of another shape", misshaped), ("unknown to it", unknown))
        found = "; ".join(f"{len(keys)} {what} ({some(keys, 3)})" for what, keys in kinds if keys)
        raise ConfigError(f"the weights {uri} are not those of timm's {name!r}: {found}. Name the network that they are of")
    backbone.load_state_dict(given, strict=False)


def architecture_of(name: str) -> str:
    """A timm name without the tag of its weights: `convnextv2_atto` of `convnextv2_atto.fcmae_ft_in1k`."""
    return name.partition(".")[0]


def layers_of(backbone: nn.Module, name: str) -> dict[str, int]:
    """Name of each parameter → its layer, 0 nearest to the image: as timm's `param_groups_layer_decay` counts them.

    Raises:
        ConfigError: timm cannot tell this model's layers apart.
    """
    from timm.models import group_parameters
    from timm.optim import auto_group_layers

    if hasattr(backbone, "group_matcher"):
        layers = group_parameters(backbone, backbone.group_matcher(coarse=False), reverse=True)
    else:
        layers = auto_group_layers(backbone)  # csatv2 and a few others: every twelve tensors are a layer
    if len(set(layers.values())) < 2:
        raise ConfigError(f"timm cannot tell the layers of {name!r} apart: leave out train.optim.layer_decay")
    return layers


def _read_weights(uri: str) -> Mapping[str, Tensor]:
    """The tensors of a file; of one that wraps them, those below `state_dict`."""
    if files.info(uri) is None:
        raise ConfigError(f"there is no file of weights {uri}")
    data = files.read_bytes(uri)
    try:
        if uri.endswith(".safetensors"):
            return safetensors.torch.load(data)
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(f"{uri} is no safetensors file, nor a torch file of tensors alone: {reason}") from error
    content = content.get("state_dict", content) if isinstance(content, Mapping) else {}
    if not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise ConfigError(f"{uri} holds no weights by name: expected a state_dict, flat or below the key state_dict")
    return content


def _of_timm(name: str, pretrained: bool, options: dict) -> nn.Module:
    if "timm" not in sys.modules and architecture_of(name) not in (known := _written_in_timm()):
        raise _unknown(name, known)  # without loading timm, which takes seconds
    import timm

    if not timm.is_model(name):
        raise _unknown(name, timm.list_models())
    try:
        backbone = _create(name, pretrained, options)
    except Exception as error:  # timm and the hub raise what they like: the cause stays attached
        raise ConfigError(f"timm cannot make {name!r} with {options}, pretrained={pretrained}: {error}") from error
    if not hasattr(backbone, "forward_intermediates") or not getattr(backbone, "feature_info", None):
        raise ConfigError(
            f"timm's {name!r} has no forward_intermediates and so cannot feed a decoder: choose another backbone"
        )
    if all(info["reduction"] < FINEST_LEVEL_PX for info in backbone.feature_info):
        raise ConfigError(
            f"timm's {name!r} has no feature map at stride {FINEST_LEVEL_PX} px or coarser: choose another backbone"
        )
    return backbone


def _unknown(name: str, known: Sequence[str]) -> ConfigError:
    close = difflib.get_close_matches(name, known, n=6, cutoff=0.5) or [m for m in known if name and name[:4] in m][:6]
    hint = f"did you mean {', '.join(close)}?" if close else "see timm.list_models()"
    return ConfigError(f"timm {version('timm')} has no model {name!r}: {hint}")


def _written_in_timm() -> list[str]:
    """Names of the models that timm's files, and ours, register; read, not loaded."""
    of_timm = Path(find_spec("timm").submodule_search_locations[0], "models")
    texts = (path.read_text() for folder in (of_timm, Path(__file__).parent) for path in folder.glob("*.py"))
    return sorted({name for text in texts for name in re.findall(r"^@register_model\s+def (\w+)\(", text, re.MULTILINE)})


def _create(name: str, pretrained: bool, options: dict) -> nn.Module:
    import timm

    pretrained_cfg = timm.get_pretrained_cfg(name)
    if pretrained_cfg is not None and pretrained_cfg.fixed_input_size:
        try:  # a plain vision transformer takes other sizes only when told so; others don't know the option
            return timm.create_model(name, pretrained=pretrained, dynamic_img_size=True, **options)
        except TypeError:
            pass
    return timm.create_model(name, pretrained=pretrained, **options)
