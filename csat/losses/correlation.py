"""CoCo: how the spatial similarities of an encoder layer correlate with those of a decoder layer."""

import torch
import torch.nn.functional as F
from torch import Tensor

CELLS = 16  # per axis of the pooled maps: 256 x 256 similarities; 32 would cost 64 times as much, more than a small student


def correlation_error(
    student_encoder: Tensor,
    student_decoder: Tensor,
    teacher_encoder: Tensor,
    teacher_decoder: Tensor,
    *,
    cells: int = CELLS,
) -> Tensor:
    """`||R_S - R_T||_F^2 / N^2`, the mean squared difference of the cross-layer correlations of `correlate_layers`.

    CoCo DistillNet (Zou & Sun 2021, arXiv 2108.12173) names "correlations of channel-mixed spatial similarity between
    different layers" and never published the formula: this one is decided here, in those words. Teacher and student may have
    any numbers of channels and any map sizes, since only cells are compared with cells.

    Args:
        student_encoder, student_decoder: `[B, C, H, W]`, each with its own C, H and W.
        teacher_encoder, teacher_decoder: The same of the teacher (its paraphrased factors); detached.
        cells: Cells per axis that every map is pooled to.

    Returns:
        float32 `[B]`, non-negative.

    Raises:
        ValueError: something is no map, the batches differ, or a map has fewer cells than `cells`.
    """
    student = correlate_layers(student_encoder, student_decoder, cells=cells)
    with torch.no_grad():
        teacher = correlate_layers(teacher_encoder, teacher_decoder, cells=cells)
    if len(student) != len(teacher):
        raise ValueError(f"correlation_error: {len(student)} tiles of the student and {len(teacher)} of the teacher")
    return (student - teacher).square().mean((1, 2))


def correlate_layers(encoder: Tensor, decoder: Tensor, *, cells: int = CELLS) -> Tensor:
    """`R = G_enc G_dec^T`.

    `G` of a map F: `q = F * softmax_c(GAP F)` mixes in how active each channel is over the whole image; F is pooled to
    `cells` x `cells` by the mean; `G` are the inner products of all pairs of cells of q, each row divided by its L2 norm.

    Args:
        encoder: `[B, C, H, W]`.
        decoder: `[B, C', H', W']`.
        cells: Cells per axis.

    Returns:
        float32 `[B, N, N]` with N = cells^2, in [-1, 1].

    Raises:
        ValueError: as `correlation_error`.
    """
    if len(encoder) != len(decoder):
        raise ValueError(f"correlate_layers: {len(encoder)} encoder maps and {len(decoder)} decoder maps")
    with torch.autocast(encoder.device.type, enabled=False):
        return _similarities(encoder, cells) @ _similarities(decoder, cells).mT


def _similarities(features: Tensor, cells: int) -> Tensor:
    """`[B, N, N]`, rows of unit length."""
    if features.ndim != 4 or min(features.shape[2:]) < cells:
        raise ValueError(
            f"CoCo compares maps [B, C, H, W] of at least {cells} x {cells} cells, not {list(features.shape)}: choose a finer "
            "layer or fewer cells"
        )
    features = features.float()
    activity = features.mean((2, 3), keepdim=True).softmax(1)
    mixed = (F.adaptive_avg_pool2d(features, cells) * activity).flatten(2)
    return F.normalize(mixed.mT @ mixed, dim=2)
