"""What is left of a sweep when its cells are done, or those asked for: one table that compares them, and the report."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from csat.evaluation.reports.sweep import write_sweep_report
from csat.evaluation.sweep_table import make_table, to_csv, to_json, to_markdown, to_text
from csat.runs.folder import RunFolder
from csat.sweeps.space import Dimension
from csat.sweeps.trial import CellResult
from workflows.shell import output
from workflows.shell.kept import INTERRUPTED


def finish(
    folder: RunFolder,
    results: list[CellResult],
    space: tuple[Dimension, ...],
    *,
    num_bootstraps: int,
    questions: Mapping[str, Sequence[str]] = MappingProxyType({}),
    first: str | None = None,
    later: Sequence[str] = (),
) -> int:
    """The table, in the terminal and in the run folder, and one for each question. Returns the exit code.

    Args:
        questions: Name → starts, which are compared with the first of them.
        first: Said before the table.
        later: Data sets of the sweep that are not done yet. They are not in the table.
    """
    shown = [result for result in results if result.seeds or result.error]  # not what was searched for others
    rows = make_table(shown, num_bootstraps=num_bootstraps)
    text = to_text(rows)
    for name, starts in questions.items():
        asked = [result for start in starts for result in shown if result.start == start]
        answer = to_markdown(make_table(asked, num_bootstraps=num_bootstraps))
        folder.write_text(f"{name}.md", f"{answer}\n")
        text += f"\n\n{name}\n\n{answer}"
    folder.write_text("table.txt", f"{text}\n")
    folder.write_text("table.csv", to_csv(rows))
    folder.write_json("table.json", to_json(rows))
    write_sweep_report(folder, results=results, rows=rows, space=space)
    folder.set_status(INTERRUPTED if later else "finished")
    report = folder.path("report.html")
    last = [f"not done yet: {', '.join(later)}; the same command without --only does all that is left"] if later else []
    text = "\n".join([*([first] if first else []), text, f"report: {report}", *last])
    output.result(text, run_folder=folder.uri, report=report, table=to_json(rows))
    return 1 if any(result.error and not result.seeds for result in results) else 0
