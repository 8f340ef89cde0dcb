"""A manifest that lies in a folder: what it is made of, what it depends on, what earlier versions left."""

import json
import pickle
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from csat.errors import ConfigError, StorageError
from csat.tiles.grid import TILE_SCHEMA, TilingConfig
from csat.tiles.manifest import ManifestConfig, fingerprint, read_manifest
from csat.tiles.manifest_writer import ManifestWriter
from csat.tiles.resolutions import resolution_summary
from csat.tiles.sources import SlideRow
from tests.csat.tiles.manifests import PRINT, read, rows_of, table_of, write


def test_a_chunk_is_read_alone_and_with_the_schema(tmp_path):
    manifest = write(tmp_path, rows_of(3), [50, 70, 30], ManifestConfig(chunk_tiles=64))
    assert manifest.chunks["rows"].tolist() == [64, 64, 22]
    table = manifest.read_chunk(0, 1)
    assert table.schema == TILE_SCHEMA and table.num_rows == 64
    with pytest.raises(StorageError, match="chunk 7 of .*part-00000.parquet"):
        manifest.read_chunk(0, 7)


def test_a_committed_manifest_is_reused_and_an_unfinished_one_is_none(tmp_path):
    written = write(tmp_path / "m", rows_of(2), [10, 20])
    again = pickle.loads(pickle.dumps(read_manifest(str(tmp_path / "m"), PRINT)))
    assert again.num_tiles == 30 and np.array_equal(again.chunks, written.chunks) and read(again) == read(written)
    with pytest.raises(ConfigError, match="other slides or other data or manifest settings"):
        read_manifest(str(tmp_path / "m"), "0" * 64)

    ManifestWriter(str(tmp_path / "n"), ManifestConfig(slides_per_window=1), PRINT, TilingConfig(), rows_of(2)).add(
        rows_of(2)[0], table_of(rows_of(2)[0], 5)
    )
    assert (tmp_path / "n" / "part-00000.parquet").exists()
    assert read_manifest(str(tmp_path / "n"), missing_ok=True) is None
    with pytest.raises(StorageError, match="no finished tile manifest.*part-00000.parquet"):
        read_manifest(str(tmp_path / "n"))
    with pytest.raises(StorageError, match="it holds: nothing"):
        read_manifest(str(tmp_path / "nowhere"))


def test_a_part_that_went_away_is_named(tmp_path):
    manifest = write(tmp_path, rows_of(1), [10])
    (tmp_path / "part-00000.parquet").unlink()
    with pytest.raises(StorageError, match="part-00000.parquet.*run again"):
        manifest.read_chunk(0, 0)


def test_the_fingerprint_follows_everything_that_the_tiles_depend_on(tmp_path):
    rows, tiling, config = rows_of(2), TilingConfig(), ManifestConfig()
    base = fingerprint(rows, tiling, config, sizes=[1, 2])
    assert len(base) == 64 and base == fingerprint(rows_of(2), TilingConfig(), ManifestConfig(), sizes=[1, 2])
    others = [
        fingerprint(rows[:1], tiling, config, sizes=[1]),
        fingerprint(rows[::-1], tiling, config, sizes=[1, 2]),
        fingerprint(rows_of(2, patients=1), tiling, config, sizes=[1, 2]),
        fingerprint(rows, tiling, config, sizes=[1, 3]),
        fingerprint(rows, tiling, config, sizes=[1, None]),
        fingerprint(rows, TilingConfig(mpp=0.25), config, sizes=[1, 2]),
        fingerprint(rows, tiling, ManifestConfig(chunk_tiles=64), sizes=[1, 2]),
    ]
    assert len({base, *others}) == 8
    file = SlideRow(slide=str(tmp_path / "a.svs"), kind="wsi")
    absent = fingerprint([file], tiling, config)
    (tmp_path / "a.svs").write_bytes(b"12345")
    assert fingerprint([file], tiling, config) == fingerprint([file], tiling, config, sizes=[5]) != absent


@pytest.mark.parametrize("wrong", [dict(chunk_tiles=0), dict(holdout_fraction=1.0), dict(holdout_by="patient"), dict(seed=-1)])
def test_settings_that_cannot_work_are_refused_by_name(wrong):
    with pytest.raises(ConfigError, match=f"manifest.{next(iter(wrong))}"):
        ManifestConfig(**wrong)


def test_a_manifest_of_an_earlier_version_is_of_squares_and_of_square_pixels(tmp_path):
    manifest = write(tmp_path, rows_of(2), [5, 5])
    assert manifest.largest_px == ((256, 256),)
    shard, index = tmp_path / manifest.shards[0], tmp_path / "index.json"
    old = pq.read_table(shard).drop_columns(["width_px", "height_px", "aspect", "mpp_source"])
    pq.write_table(old, shard)
    index.write_text(
        json.dumps(
            {
                key: value
                for key, value in manifest.index.items()
                if key not in ("largest_px", "resolutions", "rows_quarantined")
            }
        )
    )
    earlier = read_manifest(str(tmp_path))
    assert earlier.largest_px == ((256, 256),)
    rows = read(replace(earlier, fingerprint="e" * 64))
    assert {(row["width_px"], row["height_px"], row["aspect"], row["mpp_source"]) for row in rows} == {(256, 256, 1.0, None)}
    assert resolution_summary(earlier.index.get("resolutions")) is None


def test_a_manifest_of_images_with_a_typed_resolution_is_still_the_same_one():
    """An earlier version wrote data.source_mpp into the rows of images."""
    now, earlier = (SlideRow(slide="/a.png", kind="image", **mpp) for mpp in (dict(source_mpp=0.25), dict(mpp=0.25)))
    tiling = TilingConfig(source_mpp=0.25)
    prints = [fingerprint([row], tiling, ManifestConfig(), sizes=[1]) for row in (now, earlier)]
    assert prints[0] == prints[1]
    assert prints[0].startswith("b209f9d4ec8e0400"), "as that version worked it out"


def test_settings_of_whole_images_are_no_part_of_what_a_manifest_of_tiles_depends_on():
    rows = rows_of(2)
    assert fingerprint(rows, TilingConfig(max_px=99), ManifestConfig(), sizes=[1, 1]) == fingerprint(
        rows, TilingConfig(), ManifestConfig(), sizes=[1, 1]
    )
    prints = {
        fingerprint(rows, TilingConfig(whole="image", max_px=max_px), ManifestConfig(), sizes=[1, 1]) for max_px in (99, 100)
    }
    assert len(prints) == 2
