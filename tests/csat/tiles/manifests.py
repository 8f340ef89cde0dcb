"""Manifests of made-up slides, written without any pixel."""

import numpy as np
import pyarrow as pa

from csat.tiles.grid import TILE_SCHEMA, TilingConfig
from csat.tiles.manifest import ManifestConfig
from csat.tiles.manifest_writer import ManifestWriter
from csat.tiles.sources import SlideRow

PRINT = "f" * 64


def rows_of(count: int, *, patients: int | None = None) -> list[SlideRow]:
    patient = (lambda i: None) if patients is None else (lambda i: f"patient-{i % patients}")
    return [SlideRow(slide=f"/slides/{i:04d}.svs", kind="wsi", patient=patient(i)) for i in range(count)]


def table_of(
    row: SlideRow, count: int, *, columns: int = 20, step_px: int = 512, footprint_px: int = 512, aspect: float = 1.0
) -> pa.Table:
    """A grid of `count` tiles, as tile_slide gives it."""
    index = np.arange(count)
    values = dict(slide=np.full(count, row.slide), kind=np.full(count, row.kind), patient=[row.patient] * count)
    values |= dict(
        x_px=index % columns * step_px,
        y_px=index // columns * round(step_px * aspect),
        level=np.ones(count),
        read_px=np.full(count, 256),
    )
    values |= dict(width_px=np.full(count, 256), height_px=np.full(count, 256))
    values |= dict(aspect=np.full(count, aspect), mpp_source=["stated"] * count)
    values |= dict(
        footprint_px=np.full(count, footprint_px), mpp=np.full(count, 0.5), tissue=np.ones(count), row=np.zeros(count)
    )
    return pa.table({field.name: pa.array(values[field.name]).cast(field.type) for field in TILE_SCHEMA})


def write(uri, rows, sizes, config=None, *, bad=(), **layout):
    config = config or ManifestConfig()
    writer = ManifestWriter(str(uri), config, PRINT, TilingConfig(), rows)
    for index, (row, size) in enumerate(zip(rows, sizes, strict=True)):
        if index in bad:
            writer.quarantine(row, "no_mpp", f"{row.slide}: states no resolution")
        else:
            writer.add(row, table_of(row, size, **layout))
    return writer.close()


def read(manifest) -> list[dict]:
    tables = [manifest.read_chunk(*manifest.locate(index)) for index in range(len(manifest.chunks))]
    return [row for table in tables for row in table.to_pylist()]


def places(rows: list[dict]) -> set[tuple]:
    return {(row["slide"], row["x_px"], row["y_px"], row["row"]) for row in rows}
