"""Loss for embeddings, of a tile or of each cell."""

import torch.nn.functional as F
from torch import Tensor

from csat.losses.pairs import check_pair


def cosine_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """`1 - cos(student, teacher)` over the channels.

    Direction only: an encoder's scale is its own, and the student's projection must not spend capacity on it (decided here:
    RCKD's paper gives no loss).

    Args:
        student: `[B, C, ...]`.
        teacher: the same shape; detached.

    Returns:
        float32 `[B]` in [0, 2], the mean over cells.

    Raises:
        ValueError: the shapes differ.
    """
    student, teacher = check_pair(student, teacher, "cosine_distance")
    cosine = F.cosine_similarity(student, teacher, dim=1)
    return 1 - cosine[:, None].flatten(1).mean(dim=1)  # also where there are no cells, [B]
