"""Distil slow pathology teachers into tiny students. Importing this package registers the `csat` models with timm."""

from csat import model  # noqa: F401  (registers the backbones)
