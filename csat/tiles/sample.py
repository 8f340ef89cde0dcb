"""A few tiles of a manifest, spread over it: what a run looks at before it begins."""

from collections.abc import Mapping

import numpy as np

from csat.tiles.manifest import Manifest
from csat.tiles.planned_reader import columns_of

MAX_CHUNKS = 4  # that the tiles come from
SLIDE = "wsi"  # the kind of rows whose file is large: of these one for each chunk, since a bucket sends it whole

Rows = dict[str, np.ndarray]


def sample_rows(manifest: Manifest, num_tiles: int) -> Rows:
    """Rows without pixels: at most `num_tiles`, evenly from the beginning to the end.

    Raises:
        StorageError: the store is out of reach.
    """
    num_chunks = len(manifest.chunks)
    chosen = np.unique(np.linspace(0, num_chunks - 1, min(MAX_CHUNKS, num_chunks)).round().astype(int))
    chunks = [columns_of(manifest.read_chunk(*manifest.locate(index))) for index in chosen.tolist()]
    shares = np.array_split(np.arange(num_tiles), len(chunks))
    return joined([spread(_of_one_slide(rows), len(share)) for rows, share in zip(chunks, shares, strict=True)])


def spread(rows: Mapping[str, np.ndarray], num_rows: int) -> Rows:
    """At most so many of some rows, evenly from the first to the last."""
    have = len(rows["slide"])
    taken = np.unique(np.linspace(0, have - 1, min(num_rows, have)).round().astype(int))
    return {name: column[taken] for name, column in rows.items()}


def joined(parts: list[Rows]) -> Rows:
    """Rows of several tables with the same columns, one after the other."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _of_one_slide(rows: Rows) -> Rows:
    """Those of the first row's slide, and those that are no part of a slide."""
    kept = (rows["slide"] == rows["slide"][0]) | (rows["kind"] != SLIDE)
    return {name: column[kept] for name, column in rows.items()}
