"""CSAT as a model of timm: `timm.create_model("csat")`. To import this registers it."""

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model

from csat.model.networks.csat import CSAT, PRETRAINED_CFG, VARIANTS

default_cfgs = generate_default_cfgs({f"{name}.untrained": PRETRAINED_CFG for name in VARIANTS})


def _create(variant: str, pretrained: bool, **kwargs) -> CSAT:
    feature_cfg = {"out_indices": kwargs.pop("out_indices", (0, 1, 2)), "flatten_sequential": True}
    return build_model_with_cfg(CSAT, variant, pretrained, feature_cfg=feature_cfg, **{**VARIANTS[variant], **kwargs})


@register_model
def csat(pretrained: bool = False, **kwargs) -> CSAT:
    """3.038M parameters and 1.090 GMAC with 1000 classes at 224 px; published: 3.0M and 1.08."""
    return _create("csat", pretrained, **kwargs)


@register_model
def csat_nano(pretrained: bool = False, **kwargs) -> CSAT:
    """The same design narrowed for demonstrations and tests; not a published model."""
    return _create("csat_nano", pretrained, **kwargs)
