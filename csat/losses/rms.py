"""Root-mean-square distance of two maps, which may differ in size."""

import torch
import torch.nn.functional as F
from torch import Tensor

from csat.losses.pairs import check_pair


def rms_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """`sqrt(mean (student - teacher)^2)` of a tile, over channels and cells.

    `L_FM` of del Amor et al. 2024 (arXiv 2401.06010), and the distance of their attention maps. A student's map of another
    size is interpolated (bilinear) to the teacher's, as theirs is. Differs: cell centres stay where they are, and theirs puts
    corner on corner; in `L_FM` theirs is the root of the mean over the whole batch, and here it is taken per tile, so that the
    value does not depend on which tiles share a rank. The gradient at agreement, where a root has none, is zero.

    Args:
        student: `[B, C, h, w]`.
        teacher: `[B, C, H, W]` of the same region; detached.

    Returns:
        float32 `[B]`.

    Raises:
        ValueError: the maps differ in more than their size.
    """
    if student.ndim == teacher.ndim == 4 and student.shape[2:] != teacher.shape[2:]:
        student = F.interpolate(student.float(), size=teacher.shape[2:], mode="bilinear", align_corners=False)
    student, teacher = check_pair(student, teacher, "rms_distance")
    difference = (student - teacher).flatten(1)
    return torch.linalg.vector_norm(difference, dim=1) / max(1, difference.shape[1]) ** 0.5
