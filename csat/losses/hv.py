"""Loss for the gradient of HoVer-Net's horizontal and vertical maps, which jumps where two nuclei touch."""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from csat.losses.pairs import check_pair

KERNEL_SIZE = 5
NUCLEUS_THRESHOLD = 0.5


def hv_gradient_error(student: Tensor, teacher: Tensor, nucleus_probs: Tensor) -> Tensor:
    """Squared error of the horizontal derivative of h and the vertical derivative of v, inside the teacher's nuclei.

    The term L_b of HoVer-Net (Graham et al. 2019): derivatives by 5x5 kernels `x / (x^2 + y^2)` and `y / (x^2 + y^2)`, not
    normalised (a slope of 1 per cell answers 12), averaged over both channels of the cells that are nucleus. Differs: the
    teacher's maps and mask stand for the true ones, and the average is per tile, so that tiles are weighed alike however they
    are spread over ranks. A tile without nuclei has a loss of zero.

    Args:
        student: `[B, 2, n, n]`, channels (horizontal, vertical).
        teacher: the same shape; detached.
        nucleus_probs: `[B, 1, n, n]`, the teacher's; nucleus where above 1/2; detached.

    Returns:
        float32 `[B]`.

    Raises:
        ValueError: the shapes do not fit each other.
    """
    student, teacher = check_pair(student, teacher, "hv_gradient_error")
    if student.ndim != 4 or student.shape[1] != 2 or nucleus_probs.shape != student[:, :1].shape:
        raise ValueError(
            f"hv_gradient_error: expected maps [B, 2, n, n] and nucleus_probs [B, 1, n, n], "
            f"got {list(student.shape)} and {list(nucleus_probs.shape)}"
        )
    is_nucleus = (nucleus_probs.detach() > NUCLEUS_THRESHOLD).float()
    with torch.autocast(student.device.type, enabled=False):
        # The derivative is linear: that of the difference is the difference of the derivatives, at half the price.
        difference = (student - teacher).contiguous(memory_format=torch.channels_last)
        slopes = F.conv2d(difference, _derivative_kernels(student.device), padding=KERNEL_SIZE // 2)
    num_values = 2 * is_nucleus.flatten(1).sum(dim=1)
    return (is_nucleus * slopes.square()).flatten(1).sum(dim=1) / num_values.clamp_min(1)


@lru_cache(maxsize=8)
@torch.inference_mode(False)  # cached by an evaluation, they must still serve training
def _derivative_kernels(device: torch.device) -> Tensor:
    """`[2, 2, 5, 5]`: h along x, v along y (as correlations: they answer +12 to a slope of +1).

    The channels do not mix: half of the weights are zeros, which with channels last is 4 times as fast on a CPU as two groups.
    """
    offsets = torch.arange(KERNEL_SIZE, dtype=torch.float32) - KERNEL_SIZE // 2
    y, x = torch.meshgrid(offsets, offsets, indexing="ij")
    squared_distance = (x * x + y * y).clamp_min(1e-15)  # the centre is 0 / 0: its weight is 0
    kernels = torch.zeros(2, 2, KERNEL_SIZE, KERNEL_SIZE)
    kernels[0, 0] = x / squared_distance
    kernels[1, 1] = y / squared_distance
    return kernels.to(device)
