"""Several teachers may answer different tiles of a step: each one's terms are averaged over the tiles that it has answered.

The loss of a step is `sum over teachers of (sum of its terms over its tiles) / (tiles of all ranks that it has answered)`. The
loop divides by the tiles of all ranks, so a term of a teacher is first multiplied by its tile's share: `tiles of all ranks /
tiles of all ranks that this teacher has answered`, or 0 where it has not answered this tile. The shares follow from counts of
all ranks: one process and several agree, however unequal their tiles. A teacher that has answered all of them, as is usual,
changes nothing.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from csat.responses import Batch
from csat.training.context import TrainContext


def share_out(batches: Sequence[Batch], teachers: Sequence[str], tiles_all: int, context: TrainContext) -> None:
    """Set the shares of a step's batches. Every rank must call it, also without batches.

    Args:
        batches: This rank's.
        teachers: Names of all teachers, where there are several; else nothing is to do.
        tiles_all: Tiles of all ranks.
    """
    if not teachers:
        return
    counts = [float(sum(batch.answered[name].sum() for batch in batches)) for name in teachers]
    for name, answered in zip(teachers, context.sum_over_ranks(counts), strict=True):
        if answered < tiles_all:
            for batch in batches:
                batch.shares[name] = batch.answered[name].float() * (tiles_all / max(answered, 1.0))


def shared(terms: Mapping[str, Tensor], teacher_of: Mapping[str, str], batch: Batch) -> dict[str, Tensor]:
    """The terms `[B]`, each times its teacher's share. What has no share is 0, whatever its term is.

    Args:
        teacher_of: Term → teacher.
    """
    if not batch.shares:
        return dict(terms)
    weighed = {}
    for name, term in terms.items():
        share = batch.shares.get(teacher_of.get(name, ""))
        weighed[name] = term if share is None else torch.where(share > 0, term * share, torch.zeros_like(term))
    return weighed
