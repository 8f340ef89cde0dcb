"""Writing a manifest: what is written is what was given, byte for byte the same again, in bounded memory."""

import tracemalloc

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csat.errors import ConfigError, SlideError
from csat.runs.plan import Plan
from csat.storage import files
from csat.tiles.grid import TILE_SCHEMA, TilingConfig
from csat.tiles.manifest import CHUNK_DTYPE, ManifestConfig, fingerprint, read_manifest
from csat.tiles.manifest_writer import PARQUET_RUN_TILES, ManifestWriter
from csat.tiles.resolutions import resolution_summary
from csat.tiles.sources import SlideRow
from csat.words import printable
from tests.csat.tiles.manifests import PRINT, read, rows_of, table_of, write


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=9),
    slides_per_window=st.integers(1, 4),
    chunk_tiles=st.integers(1, 40),
    max_window_tiles=st.integers(1, 200),
)
def test_every_tile_comes_back_once_in_its_shard(tmp_path_factory, sizes, slides_per_window, chunk_tiles, max_window_tiles):
    rows = rows_of(len(sizes), patients=3)
    options = dict(slides_per_window=slides_per_window, chunk_tiles=chunk_tiles, max_window_tiles=max_window_tiles)
    manifest = write(tmp_path_factory.mktemp("m"), rows, sizes, ManifestConfig(**options))
    given_rows = [r for row, size in zip(rows, sizes, strict=True) for r in table_of(row, size).to_pylist()]
    read_rows = read(manifest)
    assert len(read_rows) == manifest.num_tiles == sum(sizes)
    key = lambda row: (row["slide"], row["y_px"], row["x_px"])  # noqa: E731
    assert sorted(read_rows, key=key) == sorted(given_rows, key=key)

    chunks = manifest.chunks
    assert chunks.dtype == CHUNK_DTYPE and chunks["rows"].sum() == manifest.num_tiles and chunks["rows"].max() <= chunk_tiles
    assert chunks["first_tile_index"].tolist() == [0, *np.cumsum(chunks["rows"])[:-1].tolist()]
    assert (np.diff(chunks["shard"]) >= 0).all() and chunks["shard"][-1] == len(manifest.shards) - 1
    slides_of_shard = [set() for _ in manifest.shards]
    for index, first in enumerate(chunks["first_tile_index"]):
        slides_of_shard[chunks["shard"][index]] |= {row["slide"] for row in read_rows[first : first + chunks["rows"][index]]}
    assert all(len(slides) <= slides_per_window for slides in slides_of_shard)
    assert [slide for slides in slides_of_shard for slide in sorted(slides)] == [row.slide for row in rows]  # shards in order
    Plan(chunks["rows"], chunks["shard"], num_epochs=2, seed=0)  # the plan takes the table as it is


def test_the_shuffle_mixes_the_shard_and_follows_the_seed(tmp_path):
    first = [r["slide"] for r in read(write(tmp_path / "a", rows_of(4), [50] * 4))]
    assert len(set(first[:50])) == 4  # all slides of the shard among the first tiles
    other = [r["slide"] for r in read(write(tmp_path / "b", rows_of(4), [50] * 4, ManifestConfig(seed=1)))]
    assert first != other and sorted(first) == sorted(other)
    config = ManifestConfig(slides_per_window=1)
    by_shard = read(write(tmp_path / "c", rows_of(2), [50, 50], config))
    orders = [[(r["x_px"], r["y_px"]) for r in rows] for rows in (by_shard[:50], by_shard[50:])]
    assert orders[0] != orders[1]  # each shard has its own order


def test_rows_of_a_parquet_are_shuffled_in_runs_that_are_read_together(tmp_path):
    rows = [SlideRow(slide="/tiles.parquet", kind="parquet"), SlideRow(slide="/a.svs", kind="wsi")]
    writer = ManifestWriter(str(tmp_path), ManifestConfig(chunk_tiles=128), PRINT, TilingConfig(), rows)
    table = table_of(rows[0], 640)
    writer.add(rows[0], table.set_column(table.schema.get_field_index("row"), "row", pa.array(np.arange(640), pa.int32())))
    writer.add(rows[1], table_of(rows[1], 640))
    manifest = writer.close()
    of_parquet = [row for row in read(manifest) if row["kind"] == "parquet"]
    assert sorted(row["row"] for row in of_parquet) == list(range(640))
    runs = [row["row"] // PARQUET_RUN_TILES for row in of_parquet]
    assert sum(a != b for a, b in zip(runs, runs[1:], strict=False)) == 9, "ten runs, each in one piece"
    assert runs != sorted(runs)
    assert [row["row"] for row in of_parquet[:64]] != sorted(row["row"] for row in of_parquet[:64])


def test_the_same_inputs_give_the_same_bytes(tmp_path):
    config = ManifestConfig(slides_per_window=2, chunk_tiles=16, holdout_fraction=0.3, max_holdout_tiles=10)
    for name in ("a", "b"):
        write(tmp_path / name, rows_of(6), [30, 5, 77, 8, 1, 12], config, bad=[3])
    paths = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert len(paths) >= 6
    for file in paths:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


def test_writing_anew_takes_the_earlier_manifest_away_first(tmp_path):
    config = ManifestConfig(slides_per_window=1, holdout_fraction=0.5)
    write(tmp_path, rows_of(8), [10] * 8, config)
    writer = ManifestWriter(str(tmp_path), ManifestConfig(), PRINT, TilingConfig(), rows_of(1))
    assert read_manifest(str(tmp_path), missing_ok=True) is None
    assert read_manifest(str(tmp_path / "holdout"), missing_ok=True) is None
    writer.add(rows_of(1)[0], table_of(rows_of(1)[0], 7))
    manifest = writer.close()
    assert sorted(path.name for path in tmp_path.glob("part-*")) == list(manifest.shards) == ["part-00000.parquet"]
    assert manifest.num_tiles == 7 and manifest.holdout() is None


def test_a_manifest_in_a_bucket(s3):
    config = ManifestConfig(slides_per_window=2, chunk_tiles=16, holdout_fraction=0.3)
    manifest = write(f"{s3}/run/manifest", rows_of(6), [30, 5, 77, 8, 1, 12], config, bad=[3])
    assert len(read(manifest)) == manifest.num_tiles == 125 - manifest.holdout().num_tiles
    assert manifest.quarantine().num_rows == 1
    again = write(f"{s3}/run/manifest", rows_of(1), [30])
    names = [files.base_name(name) for name in files.list_files(f"{s3}/run")]
    assert names == ["index.json", "part-00000.parquet", "quarantine.parquet"] and again.num_tiles == 30


def test_where_resolutions_come_from_is_counted_and_said(tmp_path):
    def table(row, **values):
        made = table_of(row, 2)
        for name, cells in values.items():
            cells = cells if isinstance(cells, list) else [cells] * 2
            made = made.set_column(
                made.schema.get_field_index(name), TILE_SCHEMA.field(name), pa.array(cells, TILE_SCHEMA.field(name).type)
            )
        return made

    rows = rows_of(8)
    tables = [
        dict(),
        dict(read_px=243),  # 5% enlarged
        dict(read_px=286, mpp_source="source_mpp"),  # 12% shrunk
        dict(read_px=512, mpp_source="given"),
        dict(read_px=128, mpp_source="guessed"),
        dict(read_px=256, aspect=0.95),
        dict(mpp_source=["stated", "source_mpp"]),  # rows of a parquet: by the least certain
        dict(mpp_source=[None, None]),
    ]
    writer = ManifestWriter(str(tmp_path), ManifestConfig(), PRINT, TilingConfig(), rows)
    refused = pa.table([[7], ["no_mpp"], ["row 7, column mpp: why"]], names=["row", "reason", "message"])
    for row, values in zip(rows, tables, strict=True):
        writer.add(row, table(row, **values), refused if values == {} else None)
    index = writer.close().index
    sources = {"stated": 3, "source_mpp": 2, "given": 1, "guessed": 1, "unknown": 1}
    assert index["resolutions"] == {"sources": sources, "resampled_slightly": 3, "enlarged": 1}
    assert resolution_summary(index["resolutions"]) == (
        "resolution of the slides: 3 stated by their files, 1 given slide by slide, 2 as given for all that state "
        "none, 1 guessed (10 / objective power), 1 not known; resampled by 12% or less: 3; enlarged by more: 1"
    )
    assert (index["slides"], index["rows_quarantined"]) == ({"given": 8, "tiled": 8, "quarantined": 0}, 1)
    quarantined = read_manifest(str(tmp_path)).quarantine().to_pylist()
    assert [(each["slide"], each["message"]) for each in quarantined] == [(rows[0].slide, "row 7, column mpp: why")]


def test_slides_without_tiles_are_rows_and_counts(tmp_path):
    manifest = write(tmp_path, rows_of(5), [10] * 5, bad=[1, 4])
    assert manifest.slides == {"given": 5, "tiled": 3, "quarantined": 2}
    assert manifest.index["quarantine_reasons"] == {"no_mpp": 2} and manifest.num_tiles == 30
    rows = manifest.quarantine().to_pylist()
    message = "/slides/0001.svs: states no resolution"
    place = dict(position=None, slide="/slides/0001.svs", x_px=None, y_px=None)
    assert rows[0] == dict(**place, status="quarantined", reason="no_mpp", message=message)
    assert write(tmp_path, rows_of(1), [3]).quarantine().num_rows == 0


@pytest.mark.parametrize(
    "odd", ["lone \ud800 surrogate", "raw \udce4 byte", "\0", b"\xff\0bytes", None, 7, "\x1b[31m"], ids=repr
)
def test_nothing_in_a_row_stops_the_quarantine_from_being_written(tmp_path, odd):
    rows = [*rows_of(1), SlideRow(slide=f"/slides/{odd}.svs", kind="wsi")]
    writer = ManifestWriter(
        str(tmp_path), ManifestConfig(), fingerprint(rows, TilingConfig(), ManifestConfig()), TilingConfig(), rows
    )
    writer.add(rows[0], table_of(rows[0], 3))
    writer.quarantine(rows[1], "unreadable", odd)
    found = writer.close().quarantine().to_pylist()
    assert len(found) == 1 and found[0]["message"] == printable(odd) and found[0]["slide"] == printable(rows[1].slide)
    assert str(SlideError("unreadable", odd)) == printable(odd)


def test_a_manifest_without_any_tile_is_an_error_with_the_reasons(tmp_path):
    rows = rows_of(9)
    writer = ManifestWriter(str(tmp_path), ManifestConfig(), PRINT, TilingConfig(), rows)
    for row in rows[:7]:
        writer.quarantine(row, "no_tissue", f"{row.slide}: glass")
    for row in rows[7:]:
        writer.quarantine(row, "unreadable", f"{row.slide}: broken")
    with pytest.raises(ConfigError, match=r"no slide gave a tile: 9 given.*7 no_tissue, 2 unreadable") as caught:
        writer.close()
    lines = str(caught.value).splitlines()[1:]
    assert len(lines) == 5 and lines[0].strip() == "no_tissue: /slides/0000.svs: glass" and "broken" in lines[1]
    assert files.exists(str(tmp_path / "quarantine.parquet")) and read_manifest(str(tmp_path), missing_ok=True) is None


def test_a_slide_that_was_forgotten_is_our_bug(tmp_path):
    writer = ManifestWriter(str(tmp_path), ManifestConfig(), PRINT, TilingConfig(), rows_of(2))
    writer.add(rows_of(2)[0], table_of(rows_of(2)[0], 5))
    with pytest.raises(AssertionError):
        writer.close()


def test_memory_is_flat_at_any_number_of_slides(tmp_path):
    """A million tiles of 2,000 slides: what is held is one shard (32,000 tiles), not the slides gone by."""

    def peaks(num_slides: int) -> tuple[int, int]:
        rows = rows_of(num_slides)
        template = table_of(rows[0], 500)
        config = ManifestConfig(holdout_fraction=0.1, slides_per_window=64, chunk_tiles=1024)  # large chunks: quicker
        writer = ManifestWriter(str(tmp_path / str(num_slides)), config, PRINT, TilingConfig(), rows)
        arrow_peak = 0
        tracemalloc.start()
        for row in rows:
            writer.add(row, template.set_column(0, "slide", pa.repeat(row.slide, 500)))
            arrow_peak = max(arrow_peak, pa.total_allocated_bytes())
        python_peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert writer.close().num_tiles > 0.85 * num_slides * 500
        return python_peak, arrow_peak

    few, many = peaks(150), peaks(2000)
    assert many[0] < few[0] + 2**20 and many[1] < few[1] + 2**20, (few, many)
    assert many[0] + many[1] < 40 * 2**20  # bytes, for 1,000,000 tiles


def test_the_largest_images_are_known_whatever_they_are_padded_to(tmp_path):
    sizes = [(150, 70), (90, 120), (90, 100), (150, 40), (16, 16)]
    rows = rows_of(len(sizes))
    writer = ManifestWriter(str(tmp_path), ManifestConfig(), PRINT, TilingConfig(whole="image"), rows)
    for row, size in zip(rows, sizes, strict=True):
        table = table_of(row, 1)
        for name, edge in zip(("width_px", "height_px"), size, strict=True):
            table = table.set_column(table.schema.get_field_index(name), TILE_SCHEMA.field(name), pa.array([edge], pa.int32()))
        writer.add(row, table)
    manifest = writer.close()
    assert manifest.largest_px == ((150, 70), (90, 120))
    assert sorted((row["width_px"], row["height_px"]) for row in read(manifest)) == sorted(sizes)


def test_without_a_shuffle_the_slides_follow_each_other_as_they_were_cut(tmp_path):
    rows, sizes = rows_of(5), [30, 7, 41, 16, 3]
    config = ManifestConfig(shuffle=False, slides_per_window=2, chunk_tiles=16)
    manifest = write(tmp_path / "m", rows, sizes, config, bad={1})
    good = [0, 2, 3, 4]
    assert read(manifest) == [tile for index in good for tile in table_of(rows[index], sizes[index]).to_pylist()]
    slides = manifest.slides_in_order()
    assert [(each.slide, each.kind, each.num_tiles) for each in slides] == [(rows[i].slide, "wsi", sizes[i]) for i in good]
    assert [each.first for each in slides] == [0, 30, 71, 87] and slides[-1].stop == manifest.num_tiles
    assert manifest.chunks["rows"].tolist() == [16, 14, 16, 16, 9, 16, 3], "no chunk has tiles of two slides"
    assert len(manifest.shards) == 2
    for each, index in zip(slides, good, strict=True):
        assert manifest.read_slide(each).to_pylist() == table_of(rows[index], sizes[index]).to_pylist()
    with pytest.raises(ConfigError, match="holdout_fraction 0"):
        ManifestConfig(shuffle=False, holdout_fraction=0.1)
