"""Loss for the last feature maps of a teacher and a student that see one image at different resolutions."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from csat.losses.regression import squared_error

Resize = Literal["max_pool", "bicubic", "both"]
RESIZES = ("max_pool", "bicubic", "both")


def resized_error(student: Tensor, teacher: Tensor, resize: Resize = "both") -> Tensor:
    """Mean squared error between the student's map and the teacher's, brought to the student's size.

    `L_pix` of DiPalma et al. 2021 (arXiv 2101.04170): `MSE(F_S, g(F_T))`, where g is an adaptive maximum pooling, a bicubic
    interpolation (cell centres, no smoothing before it), or both: `1/2 [MSE(F_S, maxpool F_T) + MSE(F_S, bicubic F_T)]`.
    The authors' code computes only the pooled half of the last form; here it is the formula as they wrote it.

    Args:
        student: `[B, C, h, w]`.
        teacher: `[B, C, H, W]` of the same region, any H and W; detached.
        resize: "max_pool", "bicubic" or "both".

    Returns:
        float32 `[B]`, the mean over channels and the student's cells.

    Raises:
        ValueError: the maps differ in more than their size, or `resize` is none of the three.
    """
    if resize not in RESIZES:
        raise ValueError(f"resized_error: resize is one of {', '.join(RESIZES)}, not {resize!r}")
    if student.ndim != 4 or teacher.ndim != 4 or student.shape[:2] != teacher.shape[:2]:
        raise ValueError(
            f"resized_error: student {list(student.shape)} and teacher {list(teacher.shape)} must be maps [B, C, H, W] of the "
            "same B and C"
        )
    teacher, size = teacher.detach().float(), student.shape[2:]
    errors = []
    if resize != "bicubic":
        errors.append(squared_error(student, F.adaptive_max_pool2d(teacher, size)))
    if resize != "max_pool":
        errors.append(squared_error(student, F.interpolate(teacher, size=size, mode="bicubic", align_corners=False)))
    return sum(errors) / len(errors)
