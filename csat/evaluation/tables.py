"""Result tables, of a comparison and of a sweep: for a terminal with a dash where nothing is known, and as CSV."""

import csv
import io
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

NOTHING = "-"
# Over the cells of `Measured.cells` but the first, which is the metric's.
HEAD = ("95% interval", "std", "seeds", "vs first", "95% interval", "M params", "GMAC", "images/s")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One metric of one way to train, and what its model costs. None: not known.

    Attributes:
        value: Mean over the seeds; low and high: 95% interval by group; std: over the seeds.
        difference: To the first way, paired by group, with its interval; None for the first itself.
        images_per_s: Of a forward pass where the runs were, the fastest seed.
    """

    value: float | None = None
    low: float | None = None
    high: float | None = None
    std: float | None = None
    seeds: int = 0
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None
    parameters: int | None = None
    macs: int | None = None
    images_per_s: float | None = None

    def cells(self) -> tuple[str, ...]:
        """For a terminal; see `HEAD`."""
        return (
            figure(self.value),
            limits(self.low, self.high),
            figure(self.std),
            str(self.seeds),
            figure(self.difference, "+.3f"),
            limits(self.difference_low, self.difference_high, "+.3f"),
            figure(self.parameters, ".3f", 1e6),
            figure(self.macs, ".3f", 1e9),
            figure(self.images_per_s, ".1f"),
        )


def measured(found: Mapping[str, Any], metric: str, cost: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a `Measured`.

    Args:
        found: `figures` and `against_first`, as `scores.evaluate_all` gives them.
        cost: params, macs and images_per_s.
    """
    difference = (found["against_first"] or {}).get(metric, {})
    return {
        **{name: found["figures"][metric][name] for name in ("value", "low", "high", "std", "seeds")},
        "difference": difference.get("difference"),
        "difference_low": difference.get("low"),
        "difference_high": difference.get("high"),
        "parameters": cost["params"],
        "macs": cost["macs"],
        "images_per_s": cost["images_per_s"],
    }


def align(lines: Sequence[Sequence[str]], *, left: Collection[int] = (0,)) -> str:
    """Lines of cells as text; columns in `left` begin together, the others end together."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if index in left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def to_csv(header: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """A line per row; empty where nothing is known."""
    table = io.StringIO()
    writer = csv.DictWriter(table, header, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return table.getvalue()


def figure(value: float | None, form: str = ".3f", unit: float = 1.0) -> str:
    return NOTHING if value is None else format(value / unit, form)


def with_limits(value: float | None, low: float | None, high: float | None, form: str = ".3f") -> str:
    return NOTHING if value is None else f"{value:{form}} {limits(low, high, form)}"


def limits(low: float | None, high: float | None, form: str = ".3f") -> str:
    return NOTHING if low is None or high is None else f"[{low:{form}}, {high:{form}}]"
