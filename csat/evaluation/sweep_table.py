"""The table that a sweep ends in: data set x start, with intervals, what the model costs and what the search chose."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from csat.errors import DatasetError
from csat.evaluation import tables
from csat.evaluation.judged_run import JudgedRun, read_run
from csat.evaluation.metrics.bootstrap import NUM_BOOTSTRAPS
from csat.evaluation.scores import evaluate_all
from csat.evaluation.tables import NOTHING, Measured, align
from csat.runs.folder import RunFolder
from csat.storage import files
from csat.sweeps.trial import FAILED, PRUNED, CellResult

JUDGED_ON = ("test", "val")  # the first of these splits that the runs have predictions of
HEADER = ("data set", "start", "metric", "value", *tables.HEAD, "trials", "wall", "best setting")
CSV_HEADER = (
    *("data_set", "start", "metric", "part", *Measured.__dataclass_fields__),
    *("trials", "pruned", "failed", "params", "wall_s", "note"),
)
LEFT_ALIGNED = ("data set", "start", "metric", "best setting")


@dataclass(frozen=True, kw_only=True)
class Row(Measured):
    """One line of the table. Figures are None where there is no finished run.

    Attributes:
        metric: Name of the metric that chose the weights.
        part: The split that it was measured on: test, or val where there is no test split. So called in table.csv.
        params: The best setting.
    """

    data_set: str
    start: str
    metric: str | None = None
    part: str | None = None
    trials: int = 0
    pruned: int = 0
    failed: int = 0
    params: dict[str, Any] = field(default_factory=dict)
    wall_s: float = 0.0
    note: str | None = None


def make_table(cells: Sequence[CellResult], *, num_bootstraps: int = NUM_BOOTSTRAPS) -> list[Row]:
    """The table: cells of one data set are compared with the first of them that has finished runs.

    Args:
        cells: Data set by data set.
    """
    rows = []
    for data_set in dict.fromkeys(cell.data_set for cell in cells):
        mine = [cell for cell in cells if cell.data_set == data_set]
        split = next((_split_of(cell.seeds[0]) for cell in mine if cell.seeds), None)
        runs = {cell.start: [read_run(uri, split) for uri in cell.seeds] for cell in mine if cell.seeds}
        found, note = _compare(runs, num_bootstraps)
        rows += [_row(cell, runs.get(cell.start, []), split, found.get(cell.start), note) for cell in mine]
    return rows


def to_text(rows: Sequence[Row]) -> str:
    """For a terminal: aligned columns."""
    lines = [HEADER, *(_cells_of(row) for row in rows)]
    table = align(lines, left=[HEADER.index(name) for name in LEFT_ALIGNED])
    notes = [f"{row.data_set} x {row.start}: {row.note}" for row in rows if row.note]
    return "\n".join([table, *notes])


def to_markdown(rows: Sequence[Row]) -> str:
    """A line per data set, a column per start, and one per start after the first for what it differs by from the first."""
    starts = list(dict.fromkeys(row.start for row in rows))
    by_cell = {(row.data_set, row.start): row for row in rows}
    lines = [["", *starts, *(f"{start} minus {starts[0]}" for start in starts[1:])]]
    lines.append(["---"] * len(lines[0]))
    for data_set in dict.fromkeys(row.data_set for row in rows):
        mine = [by_cell.get((data_set, start)) for start in starts]
        metric = next((row.metric for row in mine if row and row.metric), None)
        values = [_in_markdown(row) for row in mine]
        differences = [_difference_in_markdown(row) for row in mine[1:]]
        lines.append([f"{data_set} ({metric})" if metric else data_set, *values, *differences])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def to_csv(rows: Sequence[Row]) -> str:
    """One line per row; the best setting as JSON in one column."""
    return tables.to_csv(CSV_HEADER, ({**asdict(row), "params": json.dumps(row.params)} for row in rows))


def to_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    return [asdict(row) for row in rows]


def _cells_of(row: Row) -> tuple[str, ...]:
    others = ", ".join(f"{count} {word}" for count, word in ((row.pruned, PRUNED), (row.failed, FAILED)) if count)
    return (
        row.data_set,
        row.start,
        NOTHING if row.metric is None else row.metric if row.part == "test" else f"{row.metric} ({row.part})",
        *row.cells(),
        f"{row.trials} ({others})" if others else str(row.trials),
        duration(row.wall_s),
        in_words(row.params) or NOTHING,
    )


def _in_markdown(row: Row | None) -> str:
    """Mean ± std over the seeds, and the interval."""
    if row is None or row.value is None:
        return NOTHING
    spread = "" if row.std is None else f" ± {row.std:.3f}"
    return f"{row.value:.3f}{spread} {tables.limits(row.low, row.high)}"


def _difference_in_markdown(row: Row | None) -> str:
    return NOTHING if row is None else tables.with_limits(row.difference, row.difference_low, row.difference_high, "+.3f")


def in_words(params: Mapping[str, Any]) -> str:
    """A setting in a few words: the last part of each name."""
    return ", ".join(
        f"{name.rpartition('.')[2]} {format(value, '.3g') if isinstance(value, float) else value}"
        for name, value in params.items()
    )


def duration(seconds: float) -> str:
    """As 1:02:03."""
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{second:02d}"


def _split_of(uri: str) -> str:
    """What the runs of a data set were judged on: the test split where there is one."""
    folder = RunFolder(uri)
    return next((split for split in JUDGED_ON if files.exists(folder.path("predictions", f"{split}.parquet"))), JUDGED_ON[0])


def _compare(runs: dict[str, list[JudgedRun]], num_bootstraps: int) -> tuple[dict[str, dict[str, Any]], str | None]:
    """Figures by start, each against the first; and why there is no comparison where there can be none."""
    if not runs:
        return {}, None
    predictions = {start: [run.predictions for run in members] for start, members in runs.items()}
    try:
        return evaluate_all(predictions, num_bootstraps=num_bootstraps), None
    except DatasetError as error:
        if len(runs) == 1:
            raise
        alone = {
            start: evaluate_all({start: members}, num_bootstraps=num_bootstraps)[start]
            for start, members in predictions.items()
        }
        return alone, f"not compared with the first start: {error}".partition("\n")[0]


def _row(cell: CellResult, runs: list[JudgedRun], split: str | None, found: dict[str, Any] | None, note: str | None) -> Row:
    states = [trial.state for trial in cell.trials]
    about = dict(
        data_set=cell.data_set,
        start=cell.start,
        trials=len(states),
        pruned=states.count(PRUNED),
        failed=states.count(FAILED),
        params=cell.params,
        wall_s=cell.wall_s,
        note=cell.error or note,
    )
    if found is None:
        return Row(**about)
    metric = runs[0].evaluation["metric"]
    cost = {**runs[0].evaluation["cost"], "images_per_s": max(run.evaluation["cost"]["images_per_s"] for run in runs)}
    return Row(**about, metric=metric, part=split, **tables.measured(found, metric, cost))
