"""What is known about the public pathology encoders: how timm builds them, their normalisation, resolution and licence.

From their model cards. All are gated on the Hugging Face hub: their terms are accepted there, by you. Licences and terms
change; several forbid commercial use, or releasing anything derived, which a distilled student is: verify upstream.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import SwiGLUPacked

Pool = Literal["model", "token", "avg", "token+avg"]
BIOPTIMUS_MEAN, BIOPTIMUS_STD = (0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517)


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """One published encoder."""

    architecture: str  # timm's name
    arguments: Mapping[str, Any] = field(default_factory=dict)  # of timm.create_model
    has_swiglu: bool = False  # its MLP is a packed SwiGLU: a class, which a hub configuration cannot hold
    pool: Pool = "model"  # what its authors call its embedding
    mean: tuple[float, float, float] = IMAGENET_DEFAULT_MEAN  # of RGB in [0, 1]
    std: tuple[float, float, float] = IMAGENET_DEFAULT_STD
    mpp: float = 0.5  # micrometres per pixel
    licence: str = "unknown"


# hub id → encoder
ENCODERS = {
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
        },
        has_swiglu=True,
        pool="token",
        licence="CC BY-NC-ND 4.0",
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
        },
        has_swiglu=True,
        pool="token+avg",
        licence="CC BY-NC-ND 4.0",
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
        },
        has_swiglu=True,
        pool="token",
        mean=BIOPTIMUS_MEAN,
        std=BIOPTIMUS_STD,
        licence="CC BY-NC-ND 4.0",
    ),
}


def create_arguments(encoder: Encoder) -> dict[str, Any]:
    """Arguments of `timm.create_model`, layer classes included."""
    layers = {"mlp_layer": SwiGLUPacked, "act_layer": torch.nn.SiLU} if encoder.has_swiglu else {}
    return {**encoder.arguments, **layers}
