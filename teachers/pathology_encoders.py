"""What is known about the public pathology encoders: how timm builds them, their normalisation, resolution and licence.

From their model cards. All are gated on the Hugging Face hub: their terms are accepted there, by you. Licences and terms
change; several forbid commercial use, or releasing anything derived, which a distilled student is: verify upstream.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import timm.layers
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from csat.errors import ConfigError

Pool = Literal["model", "token", "avg", "token+avg"]
SWIGLU = {"mlp_layer": "SwiGLUPacked", "act_layer": "SiLU"}  # classes, which a hub configuration cannot hold
BIOPTIMUS_MEAN, BIOPTIMUS_STD = (0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517)


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """One published encoder."""

    architecture: str  # timm's name
    arguments: Mapping[str, Any] = field(default_factory=dict)  # of timm.create_model; layers by name
    pool: Pool = "model"  # what its authors call its embedding
    mean: tuple[float, float, float] = IMAGENET_DEFAULT_MEAN  # of RGB in [0, 1]
    std: tuple[float, float, float] = IMAGENET_DEFAULT_STD
    mpp: float = 0.5  # micrometres per pixel
    licence: str = "unknown"


# hub id → encoder
ENCODERS = {
    "MahmoodLab/UNI": Encoder(
        architecture="vit_large_patch16_224",
        arguments={"img_size": 224, "patch_size": 16, "init_values": 1e-5, "num_classes": 0, "dynamic_img_size": True},
        pool="token",
        licence="CC BY-NC-ND 4.0",
    ),
    "MahmoodLab/UNI2-h": Encoder(
        architecture="vit_giant_patch14_224",
        arguments={
            "img_size": 224,
            "patch_size": 14,
            "depth": 24,
            "num_heads": 24,
            "init_values": 1e-5,
            "embed_dim": 1536,
            "mlp_ratio": 2.66667 * 2,
            "num_classes": 0,
            "no_embed_class": True,
            "reg_tokens": 8,
            "dynamic_img_size": True,
            **SWIGLU,
        },
        pool="token",
        licence="CC BY-NC-ND 4.0",
    ),
    "paige-ai/Virchow": Encoder(
        architecture="vit_huge_patch14_224",
        arguments={
            "img_size": 224,
            "init_values": 1e-5,
            "num_classes": 0,
            "mlp_ratio": 5.3375,
            "global_pool": "",
            "dynamic_img_size": True,
            **SWIGLU,
        },
        pool="token+avg",
        licence="Apache-2.0",
    ),
    "paige-ai/Virchow2": Encoder(
        architecture="vit_huge_patch14_224",
        arguments={
            "img_size": 224,
            "init_values": 1e-5,
            "num_classes": 0,
            "reg_tokens": 4,
            "mlp_ratio": 5.3375,
            "global_pool": "",
            "dynamic_img_size": True,
            **SWIGLU,
        },
        pool="token+avg",
        licence="CC BY-NC-ND 4.0",
    ),
    "bioptimus/H-optimus-0": Encoder(
        architecture="vit_giant_patch14_reg4_dinov2",
        arguments={"img_size": 224, "init_values": 1e-5, "num_classes": 0, "dynamic_img_size": False},
        pool="token",
        mean=BIOPTIMUS_MEAN,
        std=BIOPTIMUS_STD,
        licence="Apache-2.0",
    ),
    "bioptimus/H-optimus-1": Encoder(
        architecture="vit_giant_patch14_reg4_dinov2",
        arguments={"img_size": 224, "init_values": 1e-5, "num_classes": 0, "dynamic_img_size": False},
        pool="token",
        mean=BIOPTIMUS_MEAN,
        std=BIOPTIMUS_STD,
        licence="CC BY-NC-ND 4.0",
    ),
    "prov-gigapath/prov-gigapath": Encoder(
        architecture="vit_giant_patch14_dinov2",
        arguments={
            "img_size": 224,
            "patch_size": 16,
            "embed_dim": 1536,
            "depth": 40,
            "num_heads": 24,
            "init_values": 1e-5,
            "mlp_ratio": 5.33334,
            "num_classes": 0,
        },
        pool="token",
        licence="Apache-2.0, with terms of use on its page (research only)",
    ),
    "bioptimus/H0-mini": Encoder(
        architecture="vit_base_patch14_reg4_dinov2",
        arguments={
            "img_size": 224,
            "init_values": 1e-5,
            "num_classes": 0,
            "mlp_ratio": 5.33334,
            "global_pool": "",
            "dynamic_img_size": True,
            **SWIGLU,
        },
        pool="token",
        mean=BIOPTIMUS_MEAN,
        std=BIOPTIMUS_STD,
        licence="CC BY-NC-ND 4.0",
    ),
    # Phikon under timm's names; owkin/phikon itself has those of another library.
    "1aurent/vit_base_patch16_224.owkin_pancancer": Encoder(
        architecture="vit_base_patch16_224",
        arguments={"num_classes": 0},
        pool="token",
        licence="Owkin's non-commercial licence",
    ),
}


def find_encoder(model: str) -> Encoder | None:
    """The known encoder of a model such as "hf-hub:MahmoodLab/uni": the hub does not tell cases apart."""
    wanted = model.partition(":")[2].lower()
    return next((encoder for name, encoder in ENCODERS.items() if name.lower() == wanted), None)


def create_arguments(encoder: Encoder) -> dict[str, Any]:
    """Arguments of `timm.create_model`, layers as classes."""
    return with_layers(encoder.arguments)


def with_layers(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `timm.create_model`, in which a layer (`mlp_layer`, `act_layer`, …) may be named, as YAML must.

    A name is a class (or, as SwiGLUPacked, a class with settings) of timm.layers or torch.nn. One of small letters is timm's
    own word ("silu", "layernorm2d") and stays.

    Raises:
        ConfigError: there is no such layer.
    """
    return {name: _layer(name, value) if name.endswith("_layer") else value for name, value in arguments.items()}


def _layer(argument: str, value: Any) -> Any:
    if not isinstance(value, str) or value.islower():
        return value
    known = {name: each for library in (torch.nn, timm.layers) for name, each in vars(library).items() if callable(each)}
    if value not in known:
        close = ", ".join(difflib.get_close_matches(value, known, n=3)) or "none"
        raise ConfigError(
            f"arguments.{argument}: neither timm.layers nor torch.nn has a class {value!r}; names that look like it: {close}"
        )
    return known[value]
