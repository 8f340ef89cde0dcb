"""What several rounds say: median and spread, and ratios of candidates that took turns in them."""

from collections.abc import Sequence
from statistics import median
from typing import Any


def summary(values: Sequence[float]) -> dict[str, Any]:
    """JSON-ready: the median, the least, the most, and every round."""
    return {"median": median(values), "least": min(values), "most": max(values), "rounds": list(values)}


def ratio(values: Sequence[float], others: Sequence[float]) -> dict[str, Any]:
    """Of each round's value to the other one's of the same round: a machine that is slow for a while is slow for both.

    NaN where there is nothing to compare.
    """
    pairs = [value / other for value, other in zip(values, others, strict=False) if other]
    return summary(pairs or [float("nan")])


def cell(values: Sequence[float]) -> str:
    """Median [least, most], with as many digits as say something; `-` for none."""
    if not values:
        return "-"
    digits = next((digits for edge, digits in ((100, 0), (10, 1), (1, 2)) if min(values) >= edge), 3)
    if len(values) == 1:
        return f"{values[0]:,.{digits}f}"
    return f"{median(values):,.{digits}f} [{min(values):,.{digits}f}, {max(values):,.{digits}f}]"


def times(values: Sequence[float], others: Sequence[float]) -> str:
    """The ratio as a cell: x1.25."""
    return f"x{ratio(values, others)['median']:.2f}"
