"""The tiles of a parquet of encoded images. Each row is tiled by itself: one that does not fit is refused by itself."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from csat.errors import SlideError
from csat.slides.mpp import MPP_RANGE, choose_mpp, stated_mpp
from csat.slides.reader import SlideReader
from csat.storage.tables import ids_of, numbers_of
from csat.tiles.grid import TilingConfig, plan_grid, table_of
from csat.tiles.sources import SlideRow

REFUSED_SCHEMA = pa.schema([("row", pa.int32()), ("reason", pa.string()), ("message", pa.string())])


@dataclass(frozen=True)
class Cut:
    """What became of one slide."""

    tiles: pa.Table  # of TILE_SCHEMA, at least one row
    refused: pa.Table  # rows of a parquet that gave no tile, of REFUSED_SCHEMA: the reason is a code of QUARANTINE_REASONS


def cut_parquet(row: SlideRow, config: TilingConfig, reader: SlideReader, source_mpp: float | None) -> Cut:
    """Tiles of a parquet of encoded images: the same grid in every row of one resolution."""
    if config.whole:
        raise SlideError("unreadable", f"{row.slide}: a parquet holds tiles, and data.whole wants images: leave it out")
    facts = reader.metadata()
    patients = _row_patients(row, facts)
    stated, misfits = _row_mpps(row, config, facts)
    tables, refused = [], [_refused(row.slide, "no_mpp", misfits)]
    fitting = np.flatnonzero(~np.isin(np.arange(len(stated)), list(misfits)))
    values, value_of = np.unique(stated[fitting], return_inverse=True)  # NaN, which states nothing, counts as one value
    for index, mpp in enumerate(values.tolist()):
        rows = fitting[value_of == index]
        try:
            resolution = choose_mpp(given=row.mpp, stated=stated_mpp(mpp), source_mpp=source_mpp)
            grid = plan_grid(row.slide, reader.levels, resolution, config)
        except SlideError as error:
            if len(rows) == reader.num_rows:
                raise
            text = str(error).removeprefix(f"{row.slide}: ")
            refused.append(_refused(row.slide, error.reason, dict.fromkeys(rows.tolist(), text)))
            continue
        per_row = len(grid.x_px)
        columns = dict(x_px=np.tile(grid.x_px, len(rows)), y_px=np.tile(grid.y_px, len(rows)), row=np.repeat(rows, per_row))
        tissue = np.full(per_row * len(rows), np.nan, dtype=np.float32)
        columns |= dict(patient=np.repeat(patients[rows], per_row), tissue=tissue, tile_px=config.tile_px)
        tables.append(table_of(row, grid, **columns))
    rest = pa.concat_tables(refused).sort_by("row")
    if not tables:
        first = rest.slice(0, 1).to_pylist()[0]
        raise SlideError(first["reason"], f"{row.slide}: none of its {rest.num_rows} rows fits; the first: {first['message']}")
    table = pa.concat_tables(tables)
    return Cut(table.take(np.argsort(table["row"].to_numpy(), kind="stable")), rest)


def _row_patients(row: SlideRow, facts: pa.Table) -> np.ndarray:
    """object `[rows]`: the patient of each row, else the slide that it came from, which groups tiles as well; else None."""
    patients = np.full(facts.num_rows, row.patient, dtype=object)
    if row.patient is None:
        for name in ("slide", "patient"):
            if name in facts.column_names:
                ids = np.array(ids_of(facts[name]), dtype=object)
                patients = np.where(ids == None, patients, ids)  # noqa: E711 (by element)
    return patients


def _row_mpps(row: SlideRow, config: TilingConfig, facts: pa.Table) -> tuple[np.ndarray, dict[int, str]]:
    """um/px that each row states, float64 `[rows]`, NaN for nothing; and row → why, of those that hold no resolution."""
    if row.mpp is not None or "mpp" not in facts.column_names:
        return np.full(facts.num_rows, np.nan), {}
    stated, others = numbers_of(facts["mpp"])
    is_wrong = ~np.isnan(stated) & ~((stated >= MPP_RANGE[0]) & (stated <= MPP_RANGE[1]))
    others |= {index: float(stated[index]) for index in np.flatnonzero(is_wrong).tolist()}
    stated[is_wrong] = np.nan
    if config.mpp is None:  # pixels as they are: nobody asks for their resolution
        return stated, {}
    expected = f"expected micrometres per pixel, {MPP_RANGE[0]} to {MPP_RANGE[1]}, or nothing where it is not known"
    return stated, {index: f"{cell!r} is no resolution: {expected}" for index, cell in others.items()}


def _refused(slide: str, reason: str, texts: dict[int, str]) -> pa.Table:
    """Rows of a parquet that give no tile: row → why."""
    messages = [f"{slide}, row {row}, column mpp: {text}" for row, text in texts.items()]
    return pa.table([list(texts), [reason] * len(texts), messages], schema=REFUSED_SCHEMA)
