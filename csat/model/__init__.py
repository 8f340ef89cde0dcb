"""The student: the CSAT backbone (registered with timm by this import), any other timm backbone, decoder and heads."""

from csat.model.networks import csat, resnet10  # noqa: F401  (registers the backbones)
