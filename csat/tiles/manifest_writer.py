"""Writes a tile manifest, slide by slide. What it looks like: `csat.tiles.manifest`.

The rows of a shard are metadata, so the shuffle costs a few bytes a tile, and writing never holds more than one shard,
whatever the number of slides. The same slides and settings give the same bytes.
"""

import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from csat.errors import ConfigError
from csat.runs.quarantine import PARQUET_OPTIONS, QuarantineBuffer
from csat.storage import files
from csat.tiles.grid import TILE_SCHEMA, TilingConfig
from csat.tiles.holdout import HELD_OUT, LEFT_OUT, TRAIN, BlockHoldout, HoldoutError, SlideHoldout, TileSample
from csat.tiles.manifest import HOLDOUT, INDEX, QUARANTINE, VERSION, Manifest, ManifestConfig, read_manifest
from csat.tiles.resolutions import ResolutionCounts
from csat.tiles.sources import SlideRow

logger = logging.getLogger(__name__)

PARQUET_RUN_TILES = 64  # rows of a parquet that stay together: single rows would decode a whole row group each
REPEATED = ("slide", "kind", "patient", "mpp_source")  # columns of few values: held as dictionaries until they are written


def holdout_choices(config: ManifestConfig, *, whole: bool) -> list[ManifestConfig]:
    """The ways to hold out tiles that may be tried, the best first: what the user said, or, where they left it open, whole
    slides, blocks of slides, and none.

    Args:
        config: As given.
        whole: The rows are images, not tiles of a grid: there are no blocks.
    """
    if config.holdout_by is not None or not config.holdout_fraction:
        return [config]
    none = replace(config, holdout_by="tile", holdout_fraction=0.0)
    return [replace(config, holdout_by="slide"), *([] if whole else [replace(config, holdout_by="tile")]), none]


def as_begun(config: ManifestConfig, recorded: Mapping[str, Any], *, whole: bool) -> ManifestConfig:
    """The settings of a rerun: where they leave open what is held out, with what the run is on record to have done.

    Args:
        config: As given now.
        recorded: The earlier attempt's settings; {} where there was none.
        whole: See `holdout_choices`.
    """
    done = (recorded.get("holdout_by"), recorded.get("holdout_fraction"))
    choices = holdout_choices(config, whole=whole)
    return next((choice for choice in choices if (choice.holdout_by, choice.holdout_fraction) == done), config)


def write_as_held_out(
    write: Callable[[ManifestConfig], Manifest], config: ManifestConfig, *, whole: bool
) -> tuple[Manifest, ManifestConfig]:
    """The manifest by the first of the `holdout_choices` that leaves something to train on, and that choice.

    Raises:
        HoldoutError: what was asked for by name does not.
    """
    *likely, last = holdout_choices(config, whole=whole)
    for choice in likely:
        try:
            return write(choice), choice
        except HoldoutError as error:
            logger.info("held out in another way: %s", error)
    return write(last), last


class ManifestWriter:
    """Writes a manifest, slide by slide, in the order of the slides. An earlier one in that folder is undone first.

    Args:
        uri: Folder of the manifest.
        config: Order, chunks, holdout.
        fingerprint: See `fingerprint`; kept in the index.
        tiling: How the slides are cut; kept in the index.
        slides: Every slide that will come to `add` or `quarantine`: which of them are held out is settled now.

    Raises:
        HoldoutError: the holdout asked for would leave nothing to train on.
    """

    def __init__(self, uri: str, config: ManifestConfig, fingerprint: str, tiling: TilingConfig, slides: Sequence[SlideRow]):
        self.uri, self.config, self.fingerprint, self.tiling = uri, config, fingerprint, tiling
        self._slides = Counter(given=len(slides), tiled=0, quarantined=0)
        self._num_rows_refused = 0
        self._resolutions = ResolutionCounts()
        self._choose = None
        if config.holdout_fraction > 0 and config.holdout_by == "tile":
            self._choose = BlockHoldout(config.holdout_fraction, config.seed, config.holdout_block_tiles, slides)
        elif config.holdout_fraction > 0:
            self._choose = SlideHoldout(config.holdout_fraction, config.seed, slides)
        self._open: list[pa.Table] = []
        self._shards: list[dict] = []
        self._held = TileSample(config.max_holdout_tiles, config.seed)
        self._num_between = 0
        self._largest_px: list[tuple[int, int]] = []
        self._quarantine = QuarantineBuffer()
        for folder in (uri, files.join(uri, HOLDOUT)):
            _clear(folder)

    def add(self, slide_row: SlideRow, table: pa.Table, refused: pa.Table | None = None) -> None:
        """The tiles of the next slide: a table of TILE_SCHEMA; and its rows that gave none, see `csat.tiles.tiling.Cut`."""
        assert table.schema.equals(TILE_SCHEMA), table.schema
        assert not table.num_rows or table["slide"][0].as_py() == slide_row.slide, slide_row
        self._slides["tiled"] += 1
        self._resolutions.add(table)
        for row in [] if refused is None else refused.to_pylist():
            self._num_rows_refused += 1
            self._quarantine.add(slide_row.slide, row["reason"], row["message"])
        sizes = np.stack([table[name].to_numpy() for name in ("width_px", "height_px")], axis=1)
        self._largest_px = _largest([*self._largest_px, *map(tuple, np.unique(sizes, axis=0).tolist())])
        if self._choose is not None and table.num_rows:
            side = self._choose(table)
            self._held.add(table.filter(pa.array(side == HELD_OUT)))
            self._num_between += int((side == LEFT_OUT).sum())
            table = table.filter(pa.array(side == TRAIN))
        if not table.num_rows:
            return
        self._open.append(_compact(table))
        num_tiles = sum(held.num_rows for held in self._open)
        if len(self._open) >= self.config.slides_per_window or num_tiles >= self.config.max_window_tiles:
            self._close_shard()

    def quarantine(self, slide_row: SlideRow, reason: str, message: str) -> None:
        """The next slide gives no tiles, and why: a code of `csat.errors.QUARANTINE_REASONS` and a sentence."""
        self._slides["quarantined"] += 1
        self._quarantine.add(slide_row.slide, reason, message)

    def close(self) -> Manifest:
        """Write what is left, and then the index that commits it.

        Raises:
            HoldoutError: no tile is left to train on, or none held out although some were asked for.
            ConfigError: no slide gave a tile.
        """
        assert self._slides["tiled"] + self._slides["quarantined"] == self._slides["given"], self._slides
        if self._open:
            self._close_shard()
        files.write_bytes(files.join(self.uri, QUARANTINE), self._quarantine.to_bytes())
        self._check_not_empty()
        holdout = {}
        if self._choose is not None:
            holdout = {"num_tiles": self._held.num_kept, "not_kept": self._held.num_seen - self._held.num_kept}
            holdout["on_the_border"] = self._num_between
            folder = files.join(self.uri, HOLDOUT)
            shard = _write_shard(folder, 0, [_compact(self._held.table)], self.config.chunk_tiles)
            self._write_index(folder, [shard], holdout={})
        self._write_index(self.uri, self._shards, holdout=holdout)
        return read_manifest(self.uri)

    def _close_shard(self) -> None:
        number = len(self._shards)
        tables, self._open = self._open, []
        if self.config.shuffle:
            table = pa.concat_tables(tables).combine_chunks()
            rng = np.random.Generator(np.random.PCG64([self.config.seed, number]))
            self._shards.append(_write_shard(self.uri, number, [table.take(_shuffled(table, rng))], self.config.chunk_tiles))
            return
        shard = _write_shard(self.uri, number, tables, self.config.chunk_tiles)
        firsts = [{name: table[name][0].as_py() for name in ("slide", "kind")} for table in tables]
        slides = [first | {"tiles": table.num_rows} for first, table in zip(firsts, tables, strict=True)]
        self._shards.append(shard | {"slides": slides})

    def _check_not_empty(self) -> None:
        if self._choose is not None and not self._held.num_seen and self._shards:
            raise HoldoutError(
                f"manifest.holdout_fraction {self.config.holdout_fraction} of these slides holds out no tile at all: use "
                "manifest.holdout_by tile, a smaller manifest.holdout_block_tiles or a larger fraction"
            )
        if self._shards:
            return
        if self._held.num_seen:
            raise HoldoutError(
                f"all {self._held.num_seen} tiles are held out (manifest.holdout_fraction {self.config.holdout_fraction}, "
                f"manifest.holdout_by {self.config.holdout_by or 'slide'}) and none is left to train on: use "
                "manifest.holdout_by tile with a smaller manifest.holdout_block_tiles, more slides or a smaller fraction"
            )
        raise ConfigError(
            f"no slide gave a tile: {self._slides['given']} given, {self._slides['quarantined']} quarantined "
            f"({self._quarantine.summary()}); all of them in {files.join(self.uri, QUARANTINE)}. The first reasons:\n  "
            + "\n  ".join(self._quarantine.examples())
        )

    def _write_index(self, folder: str, shards: list[dict], *, holdout: dict) -> None:
        index = {
            "version": VERSION,
            "fingerprint": self.fingerprint,
            "num_tiles": sum(sum(shard["chunks"]) for shard in shards),
            "tile_px": self.tiling.tile_px,
            "largest_px": self._largest_px,
            "mpp": self.tiling.mpp,
            "slides": dict(self._slides),
            "rows_quarantined": self._num_rows_refused,
            "resolutions": self._resolutions.to_dict(),
            "quarantine_reasons": dict(sorted(self._quarantine.counts.items())),
            "holdout": holdout,
            "parts": shards,
        }
        files.write_bytes(files.join(folder, INDEX), json.dumps(index, indent=1).encode())


def _largest(sizes: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Those (width, height) that no other exceeds in one edge without being less in the other, the widest first."""
    kept: list[tuple[int, int]] = []
    for width, height in sorted(sizes, reverse=True):
        if not kept or height > kept[-1][1]:
            kept.append((width, height))
    return kept


def _compact(table: pa.Table) -> pa.Table:
    """The same rows with repeated strings held once."""
    for name in REPEATED:
        place = table.schema.get_field_index(name)
        table = table.set_column(place, name, table[name].dictionary_encode())
    return table


def _shuffled(table: pa.Table, rng: np.random.Generator) -> np.ndarray:
    """A random order of the rows; those of parquet files stay in short runs of neighbours, which a reader decodes together."""
    is_parquet = np.asarray(table["kind"].cast(pa.string()).to_pylist()) == "parquet"
    if not is_parquet.any():
        return rng.permutation(table.num_rows)
    _, file = np.unique(np.asarray(table["slide"].cast(pa.string()).to_pylist()), return_inverse=True)
    run = table["row"].to_numpy() // PARQUET_RUN_TILES
    place = np.where(is_parquet, -1, np.arange(table.num_rows))  # every other tile is a run of its own
    _, run_of = np.unique(np.stack([file, np.where(is_parquet, run, 0), place], axis=1), axis=0, return_inverse=True)
    return np.lexsort((rng.random(table.num_rows), rng.permutation(run_of.max() + 1)[run_of]))


def _write_shard(folder: str, number: int, tables: Sequence[pa.Table], chunk_tiles: int) -> dict:
    """Write a shard; its entry in the index. No chunk has rows of two of the tables."""
    file, chunks = f"part-{number:05d}.parquet", []
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, tables[0].schema, **PARQUET_OPTIONS) as writer:
        for table in tables:
            writer.write_table(table, row_group_size=chunk_tiles)
            whole, rest = divmod(table.num_rows, chunk_tiles)
            chunks += [chunk_tiles] * whole + ([rest] if rest else [])
    files.write_bytes(files.join(folder, file), sink.getvalue().to_pybytes())
    return {"file": file, "chunks": chunks}


def _clear(folder: str) -> None:
    """Take away an earlier manifest, the commit mark first, so that no half of two is ever taken for a whole."""
    files.delete(files.join(folder, INDEX))
    for file in files.list_dir(folder):
        name = files.base_name(file)
        if name == QUARANTINE or (name.startswith("part-") and name.endswith(".parquet")):
            files.delete(file)
