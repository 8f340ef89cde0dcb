"""Tables for a terminal: aligned columns, figures with intervals, a dash where nothing is known."""

from collections.abc import Collection, Sequence

NOTHING = "-"


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


def figure(value: float | None, form: str = ".3f", unit: float = 1.0) -> str:
    return NOTHING if value is None else format(value / unit, form)


def limits(low: float | None, high: float | None, form: str = ".3f") -> str:
    return NOTHING if low is None or high is None else f"[{low:{form}}, {high:{form}}]"
