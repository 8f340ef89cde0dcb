"""One row of each slide: how much was seen of it, how many nuclei of each type per mm² of tissue, how much of each class."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from csat.prediction.slide_frame import Place, SlideFrame
from csat.prediction.slide_maps import UNSEEN, SlideMap
from csat.prediction.table import read_about
from csat.storage import files
from csat.words import printable


def seen_areas(frame: SlideFrame, places: Sequence[Place], tissue: np.ndarray) -> tuple[float, float]:
    """(mm² that were seen, mm² of tissue in them); NaN where the slide's resolution is not known.

    Where tiles overlap the area counts once, with the mean of their shares; what lies beyond the slide's edge does not count.

    Args:
        places: Of the tiles that were answered.
        tissue: float `[n]`, share of each tile that is tissue; NaN (not known) counts as 1.
    """
    edges = np.array(places, np.float64).reshape(-1, 4).clip(0, [frame.width_px, frame.height_px] * 2)
    x, y = np.unique(edges[:, ::2]), np.unique(edges[:, 1::2])
    if len(x) < 2 or len(y) < 2:
        return (0.0, 0.0) if frame.mpp_x else (float("nan"), float("nan"))
    count, share = np.zeros((len(y), len(x))), np.zeros((len(y), len(x)))
    left, right = (np.searchsorted(x, edges[:, column]) for column in (0, 2))
    top, bottom = (np.searchsorted(y, edges[:, row]) for row in (1, 3))
    weight = np.nan_to_num(np.asarray(tissue, np.float64), nan=1.0)
    for rows, columns, sign in ((top, left, 1), (top, right, -1), (bottom, left, -1), (bottom, right, 1)):
        np.add.at(count, (rows, columns), sign)
        np.add.at(share, (rows, columns), sign * weight)
    count, share = (each.cumsum(0).cumsum(1)[:-1, :-1] for each in (count, share))  # of each cell between the edges
    mm2 = np.diff(y)[:, None] * np.diff(x) * (frame.um2_per_px2 / 1e6)
    return float(mm2[count > 0.5].sum()), float((mm2 * share / np.maximum(count, 1))[count > 0.5].sum())


def nuclei_summary(nuclei_uri: str, tissue_mm2: float) -> dict[str, Any]:
    """Of the table of a slide's nuclei: nuclei, nuclei_cut, per_mm2 (of tissue), and for each class nuclei_CLASS,
    per_mm2_CLASS, area_um2_CLASS (mean)."""
    with files.open_native(nuclei_uri) as native:
        table = pq.read_table(native, columns=["class", "area_um2", "is_cut"])
    grouped = table.group_by("class").aggregate([("class", "count"), ("area_um2", "mean")]).to_pylist()
    by_class = {row["class"]: row for row in grouped}
    row = {"nuclei": len(table), "nuclei_cut": pc.sum(table["is_cut"]).as_py() or 0, "per_mm2": _ratio(len(table), tissue_mm2)}
    for name in read_about(nuclei_uri)["classes"]:
        found = by_class.get(name, {"class_count": 0, "area_um2_mean": None})
        row[f"nuclei_{name}"] = found["class_count"]
        row[f"per_mm2_{name}"] = _ratio(found["class_count"], tissue_mm2)
        row[f"area_um2_{name}"] = found["area_um2_mean"]
    return row


def mask_summary(mask: SlideMap, classes: Sequence[str]) -> dict[str, Any]:
    """Of a map of labels: mm2_CLASS, counted on the finest level, a strip at a time."""
    counts = np.zeros(256, np.int64)
    for tile in mask.tiles(0, 512):
        counts += np.bincount(tile.ravel(), minlength=256)  # padding counts as not seen
    assert UNSEEN == 0
    mm2 = float("nan") if mask.grid.mpp is None else np.prod(mask.grid.mpp) / 1e6
    return {f"mm2_{name}": float(counts[label] * mm2) for label, name in enumerate(classes, 1)}


def tiles_summary(tiles_uri: str) -> dict[str, Any]:
    """Of the table of a slide's tiles: tiles_CLASS, how many are most probably of each class, and mean_CLASS."""
    classes = read_about(tiles_uri)["classes"]
    with files.open_native(tiles_uri) as native:
        table = pq.read_table(native, columns=[f"prob_{name}" for name in classes])
    said = np.stack([column.to_numpy() for column in table.columns], 1) if len(table) else np.zeros((0, len(classes)))
    best = np.bincount(np.nan_to_num(said, nan=-1).argmax(1), minlength=len(classes))
    means = said.mean(0) if len(said) else np.full(len(classes), np.nan)
    counts = {f"tiles_{name}": int(count) for name, count in zip(classes, best, strict=True)}
    return counts | {f"mean_{name}": float(mean) for name, mean in zip(classes, means, strict=True)}


def slide_row(
    frame: SlideFrame, *, tiles: int, answered: int, seen_mm2: float, tissue_mm2: float, **more: Mapping[str, Any]
) -> dict[str, Any]:
    """The row of a slide: what is the same for all models, then what `more` has."""
    mpp = None if frame.mpp_x is None else (frame.mpp_x + frame.mpp_y) / 2
    row = dict(slide=printable(frame.slide), width_px=frame.width_px, height_px=frame.height_px, mpp=mpp)
    return row | dict(tiles=tiles, tiles_answered=answered, seen_mm2=seen_mm2, tissue_mm2=tissue_mm2) | more


def write_summary(uri: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """summary.parquet, a row per slide in the order given; a column that a row lacks is null there, and so is NaN."""
    names = dict.fromkeys(name for row in rows for name in row)
    cells = {name: [_known(row.get(name)) for row in rows] for name in names}
    buffer = io.BytesIO()
    pq.write_table(pa.table(cells), buffer)
    files.write_bytes(uri, buffer.getvalue())


def _ratio(count: int, mm2: float) -> float | None:
    return count / mm2 if mm2 > 0 else None


def _known(value: Any) -> Any:
    return None if isinstance(value, float) and value != value else value
