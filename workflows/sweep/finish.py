"""What is left of a sweep when its cells are done: one table that compares them, and the report."""

from csat.evaluation.reports.sweep import write_sweep_report
from csat.evaluation.sweep_table import make_table, to_csv, to_json, to_text
from csat.runs.folder import RunFolder
from csat.sweeps.space import Dimension
from csat.sweeps.trial import CellResult
from workflows.shell import output


def finish(
    folder: RunFolder,
    results: list[CellResult],
    space: tuple[Dimension, ...],
    *,
    num_bootstraps: int,
    first: str | None = None,
) -> int:
    """The table, in the terminal and in the run folder. Returns the exit code.

    Args:
        first: Said before the table.
    """
    rows = make_table(results, num_bootstraps=num_bootstraps)
    text = to_text(rows)
    folder.write_text("table.txt", text + "\n")
    folder.write_text("table.csv", to_csv(rows))
    folder.write_json("table.json", to_json(rows))
    write_sweep_report(folder, results=results, rows=rows, space=space)
    folder.set_status("finished")
    report = folder.path("report.html")
    text = "\n".join([*([first] if first else []), text, f"report: {report}"])
    output.result(text, run_folder=folder.uri, report=report, table=to_json(rows))
    return 1 if any(not result.seeds for result in results) else 0
