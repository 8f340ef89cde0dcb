"""A model as timm opens it: `timm.create_model("local-dir:FOLDER", pretrained=True)`, and the same from the hub.

timm reads two files of a folder: config.json (`architecture`, `num_classes`, `model_args`, `label_names`, `pretrained_cfg`; it
passes over other keys where `pretrained_cfg` is there) and model.safetensors, strictly, under its own names. `crop_pct` is 1:
with any other timm enlarges a tile and cuts its edges off, and the resolution is silently wrong.

Our own architectures are not in timm. One file with the network travels beside the weights; it needs torch and timm alone,
and importing it makes the architecture known.
"""

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from csat.model.networks.backbones import architecture_of

WEIGHTS = "model.safetensors"
# Architecture → the files of the network, in the order in which they depend on each other; the last makes it known to timm.
_CSAT = ("layers.py", "attention.py", "csat.py", "csat_timm.py")
OWN = {
    "csat": _CSAT,
    "csat_nano": _CSAT,
    "resnet10_gn": ("resnet10.py",),
}
PACKAGE = "csat"
HEADER = "# One network, to be used without the package that it comes from. Apache-2.0. Needs torch and timm.\n"


@dataclass(frozen=True, kw_only=True)
class TimmForm:
    """What a folder holds for timm.

    Attributes:
        tensors: Of model.safetensors.
        config: Keys of config.json.
        sources: File name → text of a network that timm does not have.
    """

    tensors: dict[str, Tensor]
    config: dict[str, Any]
    sources: dict[str, str] = field(default_factory=dict)


def timm_form(
    backbone: nn.Module,
    name: str,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    input_px: int | None,
    classifier: nn.Linear | None = None,
    class_names: Sequence[str] = (),
    licence: str = "",
) -> TimmForm:
    """A backbone, and the classifier on its pooled features where there is one and timm has a place for it.

    Args:
        backbone: Of `create_backbone`.
        name: timm's, with or without the tag of its weights.
        mean: Of its normalisation, for images in [0, 1]; and `std`.
        input_px: Edge of the images that it saw; None: of any size.
        classifier: Takes what `forward_head(…, pre_logits=True)` gives.
        class_names: In order; empty where nobody has named them.
        licence: In one line.
    """
    architecture, own = architecture_of(name), dict(backbone.pretrained_cfg)
    model_args = {"dynamic_img_size": True} if getattr(backbone, "dynamic_img_size", False) else {}
    tensors = dict(backbone.state_dict())
    place = _place_of(classifier, own, architecture, model_args, tensors)
    num_classes = classifier.out_features if place else 0
    labels = {"label_names": list(class_names)} if place and class_names else {}
    if place:
        tensors |= {f"{place}.{key}": tensor for key, tensor in classifier.state_dict().items()}
    pretrained = {
        "input_size": [3, input_px, input_px] if input_px else list(own["input_size"]),
        "interpolation": own.get("interpolation", "bicubic"),
        "crop_pct": 1.0,
        "mean": list(mean),
        "std": list(std),
        "num_classes": num_classes,
        **{key: own[key] for key in ("first_conv", "classifier") if own.get(key)},
        **labels,
        **({"license": licence} if licence else {}),
    }
    config = {"architecture": architecture, "num_classes": num_classes, "num_features": backbone.num_features, **labels}
    config |= {"model_args": model_args, "pretrained_cfg": pretrained}
    return TimmForm(tensors=tensors, config=config, sources=network_source(architecture))


def network_source(architecture: str) -> dict[str, str]:
    """File name → text of the one file that makes an architecture of ours known to timm; empty where timm has it."""
    if architecture not in OWN:
        return {}
    parts = {name: (Path(__file__).parent / "networks" / name).read_text() for name in OWN[architecture]}
    network = OWN[architecture][-1].removesuffix(".py").removesuffix("_timm")
    docstring = ast.get_docstring(ast.parse(parts[f"{network}.py"]), clean=False)
    bodies = [_without_own_imports(text) for text in parts.values()]
    return {f"{network}_timm.py": "\n\n".join([f'{HEADER}"""{docstring}"""', *bodies])}


def _place_of(
    classifier: nn.Linear | None,
    own: Mapping[str, Any],
    architecture: str,
    model_args: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
) -> str | None:
    """Where timm keeps the classifier of this architecture; None where it would not hold ours."""
    place = own.get("classifier")
    if classifier is None or not isinstance(place, str):
        return None
    import timm

    try:
        with torch.device("meta"):  # names and shapes alone
            whole = timm.create_model(architecture, num_classes=classifier.out_features, **model_args)
    except Exception:  # timm's models raise what they like; then timm gets the backbone alone
        return None
    shapes = {key: tensor.shape for key, tensor in whole.state_dict().items()}
    ours = {key: tensor.shape for key, tensor in tensors.items()}
    ours |= {f"{place}.{key}": tensor.shape for key, tensor in classifier.state_dict().items()}
    return place if shapes == ours else None


def _without_own_imports(text: str) -> str:
    """A module's text without its docstring and its imports of this package."""
    dropped: set[int] = set()
    for index, node in enumerate(ast.parse(text).body):
        is_docstring = index == 0 and isinstance(node, ast.Expr)
        is_own = isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE
        if is_docstring or is_own:
            dropped |= set(range(node.lineno, node.end_lineno + 1))
    return "\n".join(line for number, line in enumerate(text.splitlines(), 1) if number not in dropped).strip() + "\n"
