"""How much of a teacher's answer bfloat16 changes: the same tiles in both number formats, response by response.

A student learns nothing from a teacher's last digits, but a bound has to say what is still a last digit. Each kind of response
is compared as its loss compares it, tile by tile, and the worst tile counts. Reference: a response has 11 significant bits
where it travels as float16 and 8 in bfloat16, whose rounding errors add up over the layers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from csat.responses import Kind, ResponseSpec

# Kind → (what is compared, the most that the worst tile may differ by).
BOUNDS = {
    # Mean absolute difference. Two pathologists, or two scans of a slide, differ by far more than 2 points of 100.
    Kind.PROBABILITY: ("mean absolute difference", 0.02),
    # Of the probabilities that the logits mean: their losses see nothing else.
    Kind.LOGITS: ("half the absolute difference of the probabilities, summed over the classes", 0.02),
    # One minus the cosine: 0.01 is an angle of 8 degrees. A good student ends some 40 degrees from its teacher.
    Kind.FEATURES: ("1 - cosine", 0.01),
    # Root mean square of the difference, as a share of the response's own.
    Kind.REGRESSION: ("relative root mean square", 0.05),
    Kind.ATTENTION: ("relative root mean square", 0.05),
}
TINY = 1e-12
Answers = Mapping[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Deviation:
    """Of one response."""

    response: str
    measure: str  # what is compared, in words
    mean: float  # over the tiles
    worst: float  # of a tile
    bound: float  # what `worst` may be

    @property
    def is_within(self) -> bool:
        return self.worst <= self.bound  # also false where it is not a number


def deviations(batches: Sequence[tuple[Answers, Answers]], specs: Sequence[ResponseSpec]) -> list[Deviation]:
    """By how much answers differ, over all tiles of some batches.

    Args:
        batches: Of each, the answers in float32 and in bfloat16: name → float `[B, C, ...]`.
    """
    found = []
    for spec in specs:
        measure, bound = BOUNDS[spec.kind]
        pairs = [(exact[spec.name].astype(np.float64), fast[spec.name].astype(np.float64)) for exact, fast in batches]
        each = np.concatenate([_by_tile(exact, fast, spec.kind) for exact, fast in pairs])
        mean, worst = float(each.mean()), float(each.max())  # NaN where a tile's is
        found.append(Deviation(response=spec.name, measure=measure, mean=mean, worst=worst, bound=bound))
    return found


def as_record(found: Sequence[Deviation]) -> list[dict[str, Any]]:
    """JSON-ready."""
    return [asdict(each) | {"is_within": each.is_within} for each in found]


def _by_tile(exact: np.ndarray, fast: np.ndarray, kind: Kind) -> np.ndarray:
    """One figure per tile `[B]`; channels are axis 1."""
    inner = tuple(range(1, exact.ndim))
    if kind == Kind.PROBABILITY:
        return np.abs(exact - fast).mean(axis=inner)
    if kind == Kind.LOGITS:
        return 0.5 * np.abs(_softmax(exact) - _softmax(fast)).sum(axis=1).reshape(len(exact), -1).mean(axis=1)
    if kind == Kind.FEATURES:
        lengths = np.linalg.norm(exact, axis=1) * np.linalg.norm(fast, axis=1)
        cosines = (exact * fast).sum(axis=1) / np.maximum(lengths, TINY)
        return 1 - cosines.reshape(len(exact), -1).mean(axis=1)
    return np.sqrt(np.square(exact - fast).mean(axis=inner) / np.maximum(np.square(exact).mean(axis=inner), TINY))


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)
