"""What every loss does first: check that student and teacher speak of the same cells, and leave half precision."""

from torch import Tensor


def check_pair(student: Tensor, teacher: Tensor, what: str) -> tuple[Tensor, Tensor]:
    """The pair in float32, the teacher without its graph.

    Args:
        student: `[B, C, ...]`, any floating dtype.
        teacher: the same shape, any floating dtype.
        what: Name of the loss, for the message.

    Returns:
        float32 (student, teacher). Sums of squares over a tile's cells overflow float16 and lose their small terms in
        bfloat16, so losses are computed in float32 whatever the autocast says.

    Raises:
        ValueError: the shapes differ, or there is no channel dimension.
    """
    if student.shape != teacher.shape or student.ndim < 2:
        raise ValueError(
            f"{what}: student {list(student.shape)} and teacher {list(teacher.shape)} must be of one shape [B, C, ...]"
        )
    return student.float(), teacher.detach().float()
