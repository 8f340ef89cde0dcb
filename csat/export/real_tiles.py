"""Real tiles to try exported files with: of the run's own slides or images, or of those that a user names."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from csat.columns import OK, STATUS, TILE
from csat.errors import ConfigError, DatasetError, SlideError, StorageError
from csat.labels.augment import fit_tile
from csat.labels.decoded import SampleDecoder
from csat.labels.sets import LabelledConfig, assemble
from csat.runs.folder import RunFolder
from csat.runs.students import manifest_of
from csat.settings import read_settings
from csat.storage.node_cache import SlideCache
from csat.storage.uris import base_name
from csat.tiles.grid import TilingConfig
from csat.tiles.manifest import Manifest, read_manifest
from csat.tiles.reader import TileReader
from csat.tiles.sources import list_slides
from csat.tiles.tiling import tile_slide

LEAST = 7  # the largest batch that files are tried with
SPREAD = 8  # slides or chunks that tiles are taken from, at most


def tiles_of_run(uri: str, *, tile_px: int, number: int, cache: SlideCache | None = None) -> tuple[np.ndarray, str]:
    """Tiles that a run has read: of a pretraining those held out where there are any, of a fine-tuning its test images.

    Args:
        uri: Run folder.
        tile_px: Edge of the tiles.
        number: At most so many.
        cache: Of slides in buckets.

    Returns:
        uint8 `[N, tile_px, tile_px, 3]`, N >= 7, and where they are from, in words.

    Raises:
        ConfigError: no run folder, or its slides or images are not at hand any more.
    """
    folder = RunFolder(uri)
    config = folder.config()
    if config is None:
        raise ConfigError(
            f"{uri} is no run folder, so there are no tiles to try the files with: name some, as in tiles FOLDER"
        )
    try:
        if "slides" in config:
            manifest = read_manifest(manifest_of(folder.uri))
            held_out = manifest.holdout()
            is_held_out = held_out is not None and held_out.num_tiles >= LEAST
            found = _of_manifest(held_out if is_held_out else manifest, tile_px, number, cache)
            what = "of the run's slides, held out of its training" if is_held_out else "of the run's slides"
        else:
            found, what = _of_samples(config["data"], tile_px, number), "of the run's own images, those for testing first"
        return _enough(found, uri), what
    except (ConfigError, DatasetError, SlideError, StorageError) as error:
        raise ConfigError(
            f"the run's own tiles cannot be read ({error}): name others to try the files with, as in tiles FOLDER"
        ) from error


def tiles_of_slides(
    places: Sequence[str], *, tile_px: int, mpp: float | None, number: int, cache: SlideCache | None = None
) -> tuple[np.ndarray, str]:
    """Tiles with tissue of slides or images that a user names, at the model's resolution.

    What states no resolution is taken to have the model's.

    Args:
        places: As `list_slides` takes them.
        mpp: um/px; None: as they are.

    Raises:
        ConfigError, StorageError: there are none, or fewer than seven tiles in them.
    """
    reader = TileReader(tile_px=tile_px, cache=cache)
    found, reasons = [], []
    rows = list_slides(places, source_mpp=mpp)
    for row in rows:
        if len(found) >= number:
            break
        try:
            least = {} if row.kind == "wsi" else {"min_tissue": 0.0}  # an image is taken whole, glass and all
            table = tile_slide(row, TilingConfig(mpp=mpp, tile_px=tile_px, source_mpp=mpp, **least), cache)
        except SlideError as error:
            reasons.append(str(error))
            continue
        share = -(-number // min(len(rows), SPREAD))
        chosen = np.unique(np.linspace(0, table.num_rows - 1, min(share, table.num_rows)).astype(int))
        found += list(_read(reader, table.take(chosen)))
    reader.close()
    return _enough(found[:number], ", ".join(places), reasons), f"of {', '.join(map(base_name, places))}"


def _of_manifest(manifest: Manifest, tile_px: int, number: int, cache: SlideCache | None) -> list[np.ndarray]:
    if manifest.tile_px != tile_px:
        raise ConfigError(f"its manifest has tiles of {manifest.tile_px} px, and the model sees {tile_px}")
    chunks = np.unique(np.linspace(0, len(manifest.chunks) - 1, SPREAD).astype(int))
    share, reader, found = -(-number // len(chunks)), TileReader(tile_px=tile_px, cache=cache), []
    for chunk in chunks.tolist():
        found += list(_read(reader, manifest.read_chunk(*manifest.locate(chunk)).slice(0, share)))
    reader.close()
    return found[:number]


def _read(reader: TileReader, table) -> Iterator[np.ndarray]:
    rows = reader({name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names})
    return (tile for tile, status in zip(rows[TILE], rows[STATUS], strict=True) if status == OK)


def _of_samples(data: dict[str, Any], tile_px: int, number: int) -> list[np.ndarray]:
    config = read_settings(LabelledConfig, data, what="data of the run")
    labelled = assemble(config)
    samples = list(labelled.splits["test"]) + list(labelled.splits["train"])
    decoder = SampleDecoder(samples, mpp=config.mpp, whole_px=tile_px if config.fit == "resize" else None)
    found = []
    for index in range(len(samples)):
        if len(found) >= number:
            break
        try:
            found.append(fit_tile(decoder.get(index), tile_px=tile_px, fit=config.fit).image)
        except SlideError:
            continue  # it is one of the run's unreadable ones, which its data.json lists
    return found


def _enough(tiles: Sequence[np.ndarray], where: str, reasons: Sequence[str] = ()) -> np.ndarray:
    if len(tiles) < LEAST:
        why = f" ({reasons[0]})" if reasons else ""
        raise ConfigError(f"{where} holds {len(tiles)} tiles, and {LEAST} are needed to try the files with{why}: name more")
    return np.stack(tiles)
