"""Loss for values compared as they are, such as HoVer-Net's horizontal and vertical distances."""

from torch import Tensor

from csat.losses.pairs import check_pair


def squared_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error of a tile, over its channels and cells.

    For HV maps this is the term L_a of HoVer-Net (Graham et al. 2019), with the teacher's maps for the true ones.

    Args:
        student: `[B, C, ...]`.
        teacher: the same shape; detached.

    Returns:
        float32 `[B]`.

    Raises:
        ValueError: the shapes differ.
    """
    student, teacher = check_pair(student, teacher, "squared_error")
    return (student - teacher).square().flatten(1).mean(dim=1)
