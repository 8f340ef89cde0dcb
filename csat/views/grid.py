"""Tiles and predictions on another grid: the student's smaller image, and the cells of a response."""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from csat.responses import ResponseSpec


def downsample(images: Tensor, factor: int) -> Tensor:
    """Shrink images by a whole factor, by the mean over each `factor` x `factor` square.

    Args:
        images: float `[B, C, H, W]`.
        factor: Divides H and W; 1 returns the images as they are.
    """
    if images.shape[-1] % factor or images.shape[-2] % factor:
        raise ValueError(f"images of {images.shape[-2]} x {images.shape[-1]} px cannot be shrunk {factor} times evenly")
    return images if factor == 1 else F.avg_pool2d(images, factor)


def align(prediction: Tensor, spec: ResponseSpec, tile_px: int | tuple[int, int]) -> Tensor:
    """Resample a student's dense prediction to the cells of a teacher's response.

    The prediction covers the whole tile, the response the tile less `crop_px` on each side: cell i of the response is centred
    at `crop_px + (i + 1/2) * stride_px` tile pixels, wherever that falls between the prediction's cells. The interpolation is
    linear with cell centres (`align_corners=False`). Where the response is coarser, the interpolated prediction is averaged so
    that every predicted cell counts, over the response's cell less the prediction's (nothing at equal strides, the mean of two
    cells at twice). Both are exact for ramps, at any fractional offset. It is written as two small matrix products, one per
    axis: only the response's cells are computed, and backward is deterministic.

    Args:
        prediction: `[B, C, h, w]` over the whole tile; `[B, C]` is returned as it is.
        spec: The response.
        tile_px: Edge of the tile that the teacher saw, or (height, width) of the image.

    Returns:
        float32 `[B, C, n, n]` with n from `spec.shape(tile_px)`, or `[B, C, rows, columns]`.
    """
    if not spec.is_dense:
        return prediction
    edges = (tile_px, tile_px) if isinstance(tile_px, int) else tile_px
    cells = spec.shape(tile_px)[1:]
    rows, columns = (
        _resampling(size, n, spec.stride_px / edge, spec.crop_px / edge, prediction.device)
        for size, n, edge in zip(prediction.shape[-2:], cells, edges, strict=True)
    )
    with torch.autocast(prediction.device.type, enabled=False):
        return rows @ prediction.float() @ columns.T


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # cached by an evaluation, it must still serve training
def _resampling(size: int, n: int, stride: float, offset: float, device: torch.device) -> Tensor:
    """Weights `[n, size]` from cells of a prediction to those of a response; stride and offset in fractions of the tile."""
    centres = ((offset + (torch.arange(n, dtype=torch.float64) + 0.5) * stride) * size - 0.5).clamp(0, size - 1)
    distances = centres[:, None] - torch.arange(size)
    width = stride * size - 1  # of the mean, in prediction cells
    if width <= 0:
        weights = (1 - distances.abs()).clamp_min(0)
    else:
        weights = (_tent_integral(distances + width / 2) - _tent_integral(distances - width / 2)) / width
    return weights.float().to(device)


def _tent_integral(x: Tensor) -> Tensor:
    """Integral from minus infinity to x of the tent `max(0, 1 - |t|)`, which linear interpolation is made of."""
    x = x.clamp(-1, 1)
    return 0.5 + x - x * x.abs() / 2
