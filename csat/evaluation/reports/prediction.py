"""report.html of a prediction: what was found on each slide, pictures of fields, where every tile went, what it cost."""

from collections.abc import Mapping, Sequence
from typing import Any

from csat.evaluation.reports.page import image_uri, render
from csat.runs.folder import RunFolder

MOST_ROWS = 500  # slides in the table; summary.parquet has all


def write_prediction_report(
    folder: RunFolder,
    *,
    model: Mapping[str, Any],
    accounts: Mapping[str, Any],
    throughput: Mapping[str, Any],
    records: Sequence[Mapping[str, Any]],
    pictures: Sequence[Mapping[str, Any]],
) -> None:
    """Write `report.html` into the output.

    Args:
        model: name, source, licence, sha256, mpp, tile_px, classes.
        accounts: As in accounting.json.
        throughput: As in throughput.json.
        records: Of the slides, in order.
        pictures: Fields: `image` uint8 [H, W, 3], `kind` typical or odd, `slide`, `x_px`, `y_px`, `told` (which figure), `odd`
            (robust standard deviations).
    """
    columns = list(dict.fromkeys(name for record in records for name in record["summary"] if _is_shown(name)))
    shown = [dict(picture, uri=image_uri(picture["image"])) for picture in pictures]
    page = render(
        "prediction.html",
        output=folder.uri,
        model=model,
        accounts=accounts,
        throughput=throughput,
        records=records[:MOST_ROWS],
        num_more=max(0, len(records) - MOST_ROWS),
        columns=columns,
        kinds=[(kind, [picture for picture in shown if picture["kind"] == kind]) for kind in ("typical", "odd")],
    )
    folder.write_text("report.html", page)


def _is_shown(column: str) -> bool:
    """Of the summary: counts and shares of classes, but not what the table has in columns of its own."""
    return column in ("nuclei", "per_mm2") or column.startswith(("nuclei_", "tiles_", "mm2_")) and column != "tiles_answered"
