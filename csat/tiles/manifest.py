"""The tile manifest: all that exists before pixels are read. A folder, local or in a bucket, written once and streamed.

    part-00000.parquet …   a *shard* each: the tiles of `slides_per_window` slides, shuffled among themselves (or not)
    quarantine.parquet     slides, and rows of a parquet, that gave no tiles, each with its reason
    holdout/               tiles kept from training, laid out the same way
    index.json             written last: a folder without it is no manifest

A shard's row groups are *chunks*: the unit that the plan orders and a reader opens. `csat.tiles.manifest_writer` writes one.
"""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from hashlib import sha256
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from csat.errors import ConfigError, StorageError
from csat.runs.quarantine import read_quarantine
from csat.storage import files
from csat.tiles.grid import TILE_SCHEMA, TilingConfig
from csat.tiles.sources import SlideRow
from csat.words import some

VERSION = 1  # of the layout: another version is another manifest
INDEX, QUARANTINE, HOLDOUT = "index.json", "quarantine.parquet", "holdout"

CHUNK_DTYPE = np.dtype([("shard", np.int32), ("chunk", np.int32), ("first_tile_index", np.int64), ("rows", np.int32)])


@dataclass(frozen=True, kw_only=True)
class ManifestConfig:
    """How tiles are ordered, grouped and held out: the settings manifest.NAME."""

    seed: int = 0  # of the shuffle and of the choice of held-out tiles
    shuffle: bool = True  # mix the tiles of a window; false: slide after slide, each from its upper left, as predict.py needs
    slides_per_window: int = 64  # slides whose tiles are mixed; also how many are open at a time while training
    max_window_tiles: int = 262_144  # a window is closed early beyond this: bounds the memory of writing
    chunk_tiles: int = 128  # tiles of one chunk, the unit of reading and of resuming
    holdout_fraction: float = 0.0  # share kept from training, to measure the student on; 0: none
    holdout_by: Literal["slide", "tile"] | None = None  # whole slides (patients), or blocks of each; null: slide, else tile
    holdout_block_tiles: int = 4  # edge of such a block, in tiles
    max_holdout_tiles: int = 256  # at most so many are kept; the others of a held-out slide are used for nothing

    def __post_init__(self):
        for name in ("slides_per_window", "max_window_tiles", "chunk_tiles", "holdout_block_tiles", "max_holdout_tiles"):
            if getattr(self, name) < 1:
                raise ConfigError(f"manifest.{name} must be at least 1, not {getattr(self, name)}")
        if self.seed < 0:
            raise ConfigError(f"manifest.seed must not be negative: {self.seed}")
        if not 0 <= self.holdout_fraction < 1:
            raise ConfigError(f"manifest.holdout_fraction is a share, 0 to less than 1, not {self.holdout_fraction}")
        if self.holdout_by not in ("slide", "tile", None):
            raise ConfigError(f"manifest.holdout_by is slide, tile or null, not {self.holdout_by!r}")
        if not self.shuffle and self.holdout_fraction:
            raise ConfigError("manifest.shuffle false keeps the order of all tiles: set manifest.holdout_fraction 0")


@dataclass(frozen=True, slots=True)
class SlideTiles:
    """One slide of a manifest that is not shuffled: its tiles follow each other."""

    slide: str
    kind: str
    first: int  # running number of its first tile
    stop: int  # of the last one, plus 1

    @property
    def num_tiles(self) -> int:
        return self.stop - self.first


@dataclass(frozen=True)
class Manifest:
    """A committed manifest. Small, picklable, holds no open files.

    Attributes:
        chunks: structured array of CHUNK_DTYPE, one entry per chunk in manifest order: number of the shard, number of the
            chunk in that shard, running number of its first tile, rows (tiles).
        slides: how many were "given", "tiled" and "quarantined".
        largest_px: (width, height) of the tiles as the teacher sees them that no other exceeds in both: the largest is one of
            these, whatever they are padded to; (tile_px, tile_px) alone where all are squares.
        index: all of index.json.
    """

    uri: str
    fingerprint: str
    num_tiles: int
    tile_px: int
    mpp: float | None
    shards: tuple[str, ...]
    chunks: np.ndarray
    slides: dict[str, int]
    largest_px: tuple[tuple[int, int], ...]
    index: dict

    def locate(self, chunk_index: int) -> tuple[int, int]:
        """(shard, chunk in that shard) of the chunk at this place of `chunks`."""
        return int(self.chunks["shard"][chunk_index]), int(self.chunks["chunk"][chunk_index])

    def read_chunk(self, shard: int, chunk: int) -> pa.Table:
        """The rows of one chunk, and no others: a table of TILE_SCHEMA.

        Raises:
            StorageError: the shard is not there any more, or cannot be read.
        """
        return self._read_chunks(shard, [chunk])

    def read_slide(self, slide: SlideTiles) -> pa.Table:
        """The tiles of one slide of a manifest that is not shuffled: a table of TILE_SCHEMA. Raises StorageError."""
        first = self.chunks["first_tile_index"]
        chunks = self.chunks[(slide.first <= first) & (first < slide.stop)]
        return self._read_chunks(int(chunks["shard"][0]), chunks["chunk"].tolist())

    def _read_chunks(self, shard: int, chunks: list[int]) -> pa.Table:
        uri = files.join(self.uri, self.shards[shard])
        store, path = files.arrow_filesystem(uri)
        try:
            footer = _footer(uri, self.fingerprint)
            with store.open_input_file(path) as file:
                table = pq.ParquetFile(file, metadata=footer, pre_buffer=True).read_row_groups(chunks, use_threads=False)
        except (OSError, pa.ArrowInvalid) as error:
            raise StorageError(
                f"cannot read chunk {chunks[0]} of {uri}: {error}. Was the manifest changed while in use? Delete {self.uri} "
                "and run again: it is recreated"
            ) from error
        # Earlier versions wrote squares only, then square pixels only, and did not say where a resolution comes from.
        missing = dict(width_px=self.tile_px, height_px=self.tile_px, aspect=1.0, mpp_source=None)
        for name, value in missing.items():
            if name not in table.column_names:
                column = pa.repeat(pa.scalar(value, TILE_SCHEMA.field(name).type), table.num_rows)
                table = table.append_column(name, column)
        return table.cast(TILE_SCHEMA)

    def slides_in_order(self) -> list[SlideTiles]:
        """The slides that have tiles, of a manifest that is not shuffled."""
        rows = [row for shard in self.index["parts"] for row in shard["slides"]]
        stops = np.cumsum([row["tiles"] for row in rows], dtype=np.int64).tolist()
        return [
            SlideTiles(row["slide"], row["kind"], stop - row["tiles"], stop) for row, stop in zip(rows, stops, strict=True)
        ]

    def holdout(self) -> "Manifest | None":
        """The held-out tiles as a manifest of their own; None where nothing was to be held out."""
        return read_manifest(files.join(self.uri, HOLDOUT)) if self.index["holdout"] else None

    def quarantine(self) -> pa.Table:
        """The slides, and rows of a parquet, that gave no tiles: see `csat.runs.quarantine`."""
        data = files.insist(lambda: files.read_bytes(files.join(self.uri, QUARANTINE)))
        return read_quarantine(data)


def read_manifest(uri: str, fingerprint: str | None = None, *, missing_ok: bool = False) -> Manifest | None:
    """Open a committed manifest.

    Args:
        uri: Its folder.
        fingerprint: When given, the manifest must have been made from just these slides and settings.
        missing_ok: None instead of an error where there is no finished manifest.

    Raises:
        StorageError: there is none, or it was not finished, or it is of another version.
        ConfigError: it was made from other slides or settings.
    """
    place = files.join(uri, INDEX)
    if not files.exists(place):
        if missing_ok:
            return None
        found = some(map(files.base_name, files.list_dir(uri)))
        raise StorageError(f"{uri} is no finished tile manifest: it has no {INDEX} (it holds: {found})")
    index = json.loads(files.read_bytes(place))
    if index.get("version") != VERSION:
        raise StorageError(f"{uri}: a manifest of version {index.get('version')}, expected {VERSION}: create it elsewhere")
    if fingerprint not in (None, index["fingerprint"]):
        raise ConfigError(
            f"{uri} was made from other slides or other data or manifest settings, or by an earlier version (fingerprint "
            f"{index['fingerprint'][:12]}, now {fingerprint[:12]}): choose another folder, or delete this one"
        )
    shards = index["parts"]
    counts = [count for shard in shards for count in shard["chunks"]]
    chunks = np.zeros(len(counts), dtype=CHUNK_DTYPE)
    chunks["shard"] = np.repeat(np.arange(len(shards)), [len(shard["chunks"]) for shard in shards])
    chunks["chunk"] = [number for shard in shards for number in range(len(shard["chunks"]))]
    chunks["rows"] = counts
    chunks["first_tile_index"] = np.cumsum(counts, dtype=np.int64) - counts
    return Manifest(
        uri=uri,
        shards=tuple(shard["file"] for shard in shards),
        chunks=chunks,
        largest_px=tuple(tuple(size) for size in index.get("largest_px", [[index["tile_px"]] * 2])),
        index=index,
        **{name: index[name] for name in ("fingerprint", "num_tiles", "tile_px", "mpp", "slides")},
    )


def fingerprint(
    slides: Sequence[SlideRow], tiling: TilingConfig, config: ManifestConfig, *, sizes: Sequence[int | None] | None = None
) -> str:
    """What a manifest depends on, as 64 hexadecimal digits.

    Args:
        slides: In order.
        tiling: How they are cut.
        config: How the tiles are ordered.
        sizes: Bytes of every slide's file; when not given, the store is asked (None counts as missing).
    """
    if sizes is None:
        with ThreadPoolExecutor(16) as pool:
            sizes = [found and found.size_bytes for found in pool.map(files.info, (row.slide for row in slides))]
    how = asdict(tiling)
    if not tiling.whole:  # an earlier version's manifest of tiles stays the same one: it knew neither
        del how["whole"], how["max_px"]
    if tiling.max_upsampling == TilingConfig.max_upsampling:  # nor this
        del how["max_upsampling"]
    if not tiling.cover_edges:
        del how["cover_edges"]
    if not tiling.margin_px:
        del how["margin_px"]
    order = asdict(config)
    if config.shuffle:
        del order["shuffle"]
    order["holdout_by"] = config.holdout_by or "slide"  # an earlier version's manifest stays the same one: it knew no null
    digest = sha256(json.dumps([VERSION, how, order], sort_keys=True).encode())
    for row, size in zip(slides, sizes, strict=True):
        # An earlier version wrote down the default resolution as an image's own.
        mpp = row.source_mpp if row.mpp is None and row.kind != "wsi" else row.mpp
        digest.update(json.dumps([row.slide, row.kind, row.patient, mpp, row.num_tiles, size]).encode() + b"\n")
    return digest.hexdigest()


@lru_cache(maxsize=8)
def _footer(uri: str, fingerprint: str) -> pq.FileMetaData:
    """A shard's footer, kept because every chunk of the shard needs it. Another manifest at that place has another key."""
    store, path = files.arrow_filesystem(uri)
    with store.open_input_file(path) as file:
        return pq.read_metadata(file)
