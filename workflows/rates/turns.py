"""Candidates that take turns in this process: a machine that others use is as slow for each of them."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from workflows.rates.spread import cell, summary, times
from workflows.shell import output

NAME_WIDTH = 34


def compare(
    title: str, candidates: Mapping[str, Callable[[], object]], *, rounds: int, images: int, finish: Callable[[], object] = int
) -> dict[str, Any]:
    """Images/s of each candidate, in every round; prints the table, with ratios to the first.

    Args:
        candidates: Name → what is timed. Each is called once before anything counts.
        images: That one call computes.
        finish: Waits for a device to be done.
    """
    rates: dict[str, list[float]] = {name: [] for name in candidates}
    for round_index in range(rounds + 1):
        for name, run in candidates.items():
            started = time.perf_counter()
            run()
            finish()
            if round_index:
                rates[name].append(images / (time.perf_counter() - started))
    first = next(iter(rates.values()))
    lines = [f"\n{title}"]
    for name, values in rates.items():
        lines.append(f"  {name:{NAME_WIDTH}}{cell(values):28}{times(values, first)}")
    figures = {name: summary(values) for name, values in rates.items()}
    output.result("\n".join(lines), title=title, rates=figures)
    return figures
