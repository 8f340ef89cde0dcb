"""The manifest: what is written is what was given, byte for byte the same again, in bounded memory; and what is held out."""

import json
import math
import pickle
import tracemalloc
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csat.data import storage
from csat.data.holdout import short_names
from csat.data.manifest import CHUNK_DTYPE, PARQUET_RUN_TILES, ManifestConfig, ManifestWriter, fingerprint, read_manifest
from csat.data.plan import Plan
from csat.data.sources import SlideRow
from csat.data.tiling import TILE_SCHEMA, TilingConfig
from csat.errors import ConfigError, StorageError

PRINT = "f" * 64


def _rows(count: int, *, patients: int | None = None) -> list[SlideRow]:
    patient = (lambda i: None) if patients is None else (lambda i: f"patient-{i % patients}")
    return [SlideRow(slide=f"/slides/{i:04d}.svs", kind="wsi", patient=patient(i)) for i in range(count)]


def _table(row: SlideRow, count: int, *, columns: int = 20, step_px: int = 512, footprint_px: int = 512) -> pa.Table:
    """A grid of `count` tiles, as tile_slide gives it."""
    index = np.arange(count)
    values = dict(slide=np.full(count, row.slide), kind=np.full(count, row.kind), patient=[row.patient] * count)
    values |= dict(
        x_px=index % columns * step_px, y_px=index // columns * step_px, level=np.ones(count), read_px=np.full(count, 256)
    )
    values |= dict(width_px=np.full(count, 256), height_px=np.full(count, 256))
    values |= dict(
        footprint_px=np.full(count, footprint_px), mpp=np.full(count, 0.5), tissue=np.ones(count), row=np.zeros(count)
    )
    return pa.table({field.name: pa.array(values[field.name]).cast(field.type) for field in TILE_SCHEMA})


def _write(uri, rows, sizes, config=None, *, bad=(), **layout):
    config = config or ManifestConfig()
    writer = ManifestWriter(str(uri), config, PRINT, TilingConfig(), rows)
    for index, (row, size) in enumerate(zip(rows, sizes, strict=True)):
        if index in bad:
            writer.quarantine(row, "no_mpp", f"{row.slide}: states no resolution")
        else:
            writer.add(row, _table(row, size, **layout))
    return writer.close()


def _read(manifest) -> list[dict]:
    tables = [manifest.read_chunk(*manifest.locate(index)) for index in range(len(manifest.chunks))]
    return [row for table in tables for row in table.to_pylist()]


def _places(rows: list[dict]) -> set[tuple]:
    return {(row["slide"], row["x_px"], row["y_px"], row["row"]) for row in rows}


# --------------------------------------------------------------------------------------------------- writing and reading


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=9),
    slides_per_window=st.integers(1, 4),
    chunk_tiles=st.integers(1, 40),
    max_window_tiles=st.integers(1, 200),
)
def test_every_tile_comes_back_once_in_its_window(tmp_path_factory, sizes, slides_per_window, chunk_tiles, max_window_tiles):
    rows = _rows(len(sizes), patients=3)
    options = dict(slides_per_window=slides_per_window, chunk_tiles=chunk_tiles, max_window_tiles=max_window_tiles)
    manifest = _write(tmp_path_factory.mktemp("m"), rows, sizes, ManifestConfig(**options))
    given_rows = [r for row, size in zip(rows, sizes, strict=True) for r in _table(row, size).to_pylist()]
    read_rows = _read(manifest)
    assert len(read_rows) == manifest.num_tiles == sum(sizes)
    key = lambda row: (row["slide"], row["y_px"], row["x_px"])  # noqa: E731
    assert sorted(read_rows, key=key) == sorted(given_rows, key=key)

    chunks = manifest.chunks
    assert chunks.dtype == CHUNK_DTYPE and chunks["rows"].sum() == manifest.num_tiles and chunks["rows"].max() <= chunk_tiles
    assert chunks["first_tile_index"].tolist() == [0, *np.cumsum(chunks["rows"])[:-1].tolist()]
    assert (np.diff(chunks["part"]) >= 0).all() and chunks["part"][-1] == len(manifest.parts) - 1
    slides_of_part = [set() for _ in manifest.parts]
    for index, first in enumerate(chunks["first_tile_index"]):
        slides_of_part[chunks["part"][index]] |= {row["slide"] for row in read_rows[first : first + chunks["rows"][index]]}
    assert all(len(slides) <= slides_per_window for slides in slides_of_part)
    assert [slide for slides in slides_of_part for slide in sorted(slides)] == [row.slide for row in rows]  # windows in order
    Plan(chunks["rows"], chunks["part"], num_epochs=2, seed=0)  # the plan takes the table as it is


def test_a_chunk_is_read_alone_and_with_the_schema(tmp_path):
    manifest = _write(tmp_path, _rows(3), [50, 70, 30], ManifestConfig(chunk_tiles=64))
    assert manifest.chunks["rows"].tolist() == [64, 64, 22]
    table = manifest.read_chunk(0, 1)
    assert table.schema == TILE_SCHEMA and table.num_rows == 64
    with pytest.raises(StorageError, match="chunk 7 of .*part-00000.parquet"):
        manifest.read_chunk(0, 7)


def test_the_shuffle_mixes_the_window_and_follows_the_seed(tmp_path):
    first = [r["slide"] for r in _read(_write(tmp_path / "a", _rows(4), [50] * 4))]
    assert len(set(first[:50])) == 4  # all slides of the window among the first tiles
    other = [r["slide"] for r in _read(_write(tmp_path / "b", _rows(4), [50] * 4, ManifestConfig(seed=1)))]
    assert first != other and sorted(first) == sorted(other)
    config = ManifestConfig(slides_per_window=1)
    by_window = _read(_write(tmp_path / "c", _rows(2), [50, 50], config))
    orders = [[(r["x_px"], r["y_px"]) for r in rows] for rows in (by_window[:50], by_window[50:])]
    assert orders[0] != orders[1]  # each window has its own order


def test_rows_of_a_parquet_are_shuffled_in_runs_that_are_read_together(tmp_path):
    rows = [SlideRow(slide="/tiles.parquet", kind="parquet"), SlideRow(slide="/a.svs", kind="wsi")]
    writer = ManifestWriter(str(tmp_path), ManifestConfig(chunk_tiles=128), PRINT, TilingConfig(), rows)
    table = _table(rows[0], 640)
    writer.add(rows[0], table.set_column(table.schema.get_field_index("row"), "row", pa.array(np.arange(640), pa.int32())))
    writer.add(rows[1], _table(rows[1], 640))
    manifest = writer.close()
    read = [row for row in _read(manifest) if row["kind"] == "parquet"]
    assert sorted(row["row"] for row in read) == list(range(640))
    runs = [row["row"] // PARQUET_RUN_TILES for row in read]
    assert sum(a != b for a, b in zip(runs, runs[1:], strict=False)) == 9, "ten runs, each in one piece"
    assert runs != sorted(runs)
    assert [row["row"] for row in read[:64]] != sorted(row["row"] for row in read[:64])


def test_the_same_inputs_give_the_same_bytes(tmp_path):
    config = ManifestConfig(slides_per_window=2, chunk_tiles=16, holdout_fraction=0.3, max_holdout_tiles=10)
    for name in ("a", "b"):
        _write(tmp_path / name, _rows(6), [30, 5, 77, 8, 1, 12], config, bad=[3])
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert len(files) >= 6
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


def test_a_committed_manifest_is_reused_and_an_unfinished_one_is_none(tmp_path):
    written = _write(tmp_path / "m", _rows(2), [10, 20])
    again = pickle.loads(pickle.dumps(read_manifest(str(tmp_path / "m"), PRINT)))
    assert again.num_tiles == 30 and np.array_equal(again.chunks, written.chunks) and _read(again) == _read(written)
    with pytest.raises(ConfigError, match="other slides or other --data or --manifest settings"):
        read_manifest(str(tmp_path / "m"), "0" * 64)

    ManifestWriter(str(tmp_path / "n"), ManifestConfig(slides_per_window=1), PRINT, TilingConfig(), _rows(2)).add(
        _rows(2)[0], _table(_rows(2)[0], 5)
    )
    assert (tmp_path / "n" / "part-00000.parquet").exists()
    assert read_manifest(str(tmp_path / "n"), missing_ok=True) is None
    with pytest.raises(StorageError, match="no finished tile manifest.*part-00000.parquet"):
        read_manifest(str(tmp_path / "n"))
    with pytest.raises(StorageError, match="it holds: nothing"):
        read_manifest(str(tmp_path / "nowhere"))


def test_writing_anew_takes_the_earlier_manifest_away_first(tmp_path):
    config = ManifestConfig(slides_per_window=1, holdout_fraction=0.5)
    _write(tmp_path, _rows(8), [10] * 8, config)
    writer = ManifestWriter(str(tmp_path), ManifestConfig(), PRINT, TilingConfig(), _rows(1))
    assert read_manifest(str(tmp_path), missing_ok=True) is None
    assert read_manifest(str(tmp_path / "holdout"), missing_ok=True) is None
    writer.add(_rows(1)[0], _table(_rows(1)[0], 7))
    manifest = writer.close()
    assert sorted(path.name for path in tmp_path.glob("part-*")) == list(manifest.parts) == ["part-00000.parquet"]
    assert manifest.num_tiles == 7 and manifest.holdout() is None


def test_a_manifest_in_a_bucket(s3):
    config = ManifestConfig(slides_per_window=2, chunk_tiles=16, holdout_fraction=0.3)
    manifest = _write(f"{s3}/run/manifest", _rows(6), [30, 5, 77, 8, 1, 12], config, bad=[3])
    assert len(_read(manifest)) == manifest.num_tiles == 125 - manifest.holdout().num_tiles
    assert manifest.quarantine().num_rows == 1
    again = _write(f"{s3}/run/manifest", _rows(1), [30])
    names = [storage.base_name(name) for name in storage.list_files(f"{s3}/run")]
    assert names == ["index.json", "part-00000.parquet", "quarantine.parquet"] and again.num_tiles == 30


def test_a_part_that_went_away_is_named(tmp_path):
    manifest = _write(tmp_path, _rows(1), [10])
    (tmp_path / "part-00000.parquet").unlink()
    with pytest.raises(StorageError, match="part-00000.parquet.*run again"):
        manifest.read_chunk(0, 0)


# ------------------------------------------------------------------------------------------------------------ quarantine


def test_slides_without_tiles_are_rows_and_counts(tmp_path):
    manifest = _write(tmp_path, _rows(5), [10] * 5, bad=[1, 4])
    assert manifest.slides == {"given": 5, "tiled": 3, "quarantined": 2}
    assert manifest.index["quarantine_reasons"] == {"no_mpp": 2} and manifest.num_tiles == 30
    rows = manifest.quarantine().to_pylist()
    message = "/slides/0001.svs: states no resolution"
    assert rows[0] == dict(slide="/slides/0001.svs", x_px=None, y_px=None, reason="no_mpp", message=message)
    assert _write(tmp_path, _rows(1), [3]).quarantine().num_rows == 0


def test_a_manifest_without_any_tile_is_an_error_with_the_reasons(tmp_path):
    rows = _rows(9)
    writer = ManifestWriter(str(tmp_path), ManifestConfig(), PRINT, TilingConfig(), rows)
    for row in rows[:7]:
        writer.quarantine(row, "no_tissue", f"{row.slide}: glass")
    for row in rows[7:]:
        writer.quarantine(row, "unreadable", f"{row.slide}: broken")
    with pytest.raises(ConfigError, match=r"no slide gave a tile: 9 given.*7 no_tissue, 2 unreadable") as caught:
        writer.close()
    lines = str(caught.value).splitlines()[1:]
    assert len(lines) == 5 and lines[0].strip() == "no_tissue: /slides/0000.svs: glass" and "broken" in lines[1]
    assert storage.exists(str(tmp_path / "quarantine.parquet")) and read_manifest(str(tmp_path), missing_ok=True) is None


def test_a_slide_that_was_forgotten_is_our_bug(tmp_path):
    writer = ManifestWriter(str(tmp_path), ManifestConfig(), PRINT, TilingConfig(), _rows(2))
    writer.add(_rows(2)[0], _table(_rows(2)[0], 5))
    with pytest.raises(AssertionError):
        writer.close()


# --------------------------------------------------------------------------------------------------------------- holdout


def test_whole_patients_are_held_out(tmp_path):
    rows = _rows(20, patients=10)
    config = ManifestConfig(holdout_fraction=0.2, max_holdout_tiles=1000)
    manifest = _write(tmp_path / "a", rows, [10] * 20, config)
    train, held = _read(manifest), _read(manifest.holdout())
    assert len({row["patient"] for row in held}) == 2 and len(held) == 40 and len(train) == 160
    assert not {row["patient"] for row in held} & {row["patient"] for row in train}
    assert manifest.index["holdout"] == {"num_tiles": 40, "not_kept": 0, "on_the_border": 0}
    assert manifest.holdout().chunks["rows"].sum() == 40

    other = _write(tmp_path / "b", rows, [10] * 20, ManifestConfig(holdout_fraction=0.2, seed=3))
    assert {row["patient"] for row in _read(other.holdout())} != {row["patient"] for row in held}


@pytest.mark.parametrize("count", [2, 3, 7])
def test_few_slides_still_give_one_to_hold_out(tmp_path, count):
    manifest = _write(tmp_path, _rows(count), [10] * count, ManifestConfig(holdout_fraction=0.05))
    assert len({row["slide"] for row in _read(manifest.holdout())}) == 1
    assert len({row["slide"] for row in _read(manifest)}) == count - 1


def test_no_more_held_out_tiles_are_kept_than_asked(tmp_path):
    config = ManifestConfig(holdout_fraction=0.5, max_holdout_tiles=30, chunk_tiles=16)
    manifest = _write(tmp_path, _rows(6), [100] * 6, config)
    held = _read(manifest.holdout())
    assert len(held) == 30 and manifest.num_tiles == 300 and manifest.index["holdout"]["not_kept"] == 270
    assert len({row["slide"] for row in held}) == 3  # a sample of all, not the first that came


@pytest.mark.parametrize("by", ["slide", "tile"])
def test_the_same_slides_in_another_folder_hold_out_the_same_tiles(tmp_path, by):
    def held_in(folder: str) -> set[tuple]:
        rows = [SlideRow(slide=f"{folder}/{name}.svs", kind="wsi") for name in ("a/1", "b/1", *"23456789")]
        config = ManifestConfig(holdout_fraction=0.3, holdout_by=by, max_holdout_tiles=1000)
        held = _read(_write(tmp_path / folder.replace("/", "_"), rows, [100] * len(rows), config).holdout())
        return {(row["slide"].removeprefix(folder), row["x_px"], row["y_px"]) for row in held}

    assert held_in("/slides") == held_in("s3://bucket/other/place")


def test_a_name_is_as_long_as_it_takes_to_be_unique():
    slides = ["/data/a/x.svs", "/data/b/x.svs", "/data/b/y.svs", "/z/b/x.svs"]
    assert dict(short_names(slides)) == {
        "/data/a/x.svs": "a/x.svs",
        "/data/b/x.svs": "data/b/x.svs",
        "/data/b/y.svs": "y.svs",
        "/z/b/x.svs": "z/b/x.svs",
    }


def test_one_slide_cannot_be_held_out_whole(tmp_path):
    with pytest.raises(ConfigError, match="only 1.*--manifest.holdout_by tile"):
        ManifestWriter(str(tmp_path), ManifestConfig(holdout_fraction=0.1), PRINT, TilingConfig(), _rows(1))
    with pytest.raises(ConfigError, match="only 1"):
        ManifestWriter(str(tmp_path), ManifestConfig(holdout_fraction=0.1), PRINT, TilingConfig(), _rows(4, patients=1))
    config = ManifestConfig(holdout_fraction=0.1, holdout_by="tile")
    manifest = _write(tmp_path, _rows(1), [400], config)
    assert manifest.num_tiles + manifest.holdout().num_tiles == 400


def test_when_only_held_out_slides_have_tiles_the_cure_is_named(tmp_path):
    rows, config = _rows(2), ManifestConfig(holdout_fraction=0.1)
    held = _read(_write(tmp_path / "a", rows, [5, 5], config).holdout())[0]["slide"]
    other = next(index for index, row in enumerate(rows) if row.slide != held)
    with pytest.raises(ConfigError, match="all 5 tiles are held out.*--manifest.holdout_by tile"):
        _write(tmp_path / "b", rows, [5, 5], config, bad=[other])
    with pytest.raises(ConfigError, match="holds out no tile at all.*--manifest.holdout_by tile"):
        _write(tmp_path / "c", rows, [5, 5], config, bad=[1 - other])


@settings(max_examples=25, deadline=None)
@given(
    overlap=st.sampled_from([0.0, 0.25, 0.5, 0.75]),
    fraction=st.floats(0.05, 0.5),
    seed=st.integers(0, 50),
    block_tiles=st.integers(1, 5),
    footprint_px=st.sampled_from([256, 515, 1024]),
)
def test_no_pixel_is_on_both_sides(tmp_path_factory, overlap, fraction, seed, block_tiles, footprint_px):
    step_px = math.ceil(footprint_px * (1 - overlap))
    options = dict(holdout_fraction=fraction, holdout_by="tile", seed=seed, holdout_block_tiles=block_tiles)
    config = ManifestConfig(**options, max_holdout_tiles=10_000)
    layout = dict(columns=20, step_px=step_px, footprint_px=footprint_px)
    try:
        manifest = _write(tmp_path_factory.mktemp("m"), _rows(1), [400], config, **layout)
    except ConfigError as error:  # few blocks hold a whole tile, or every tile reaches into a held-out one
        assert overlap > 0 and ("left to train on" in str(error) or "holds out no tile" in str(error))
        return
    train, held = _read(manifest), _read(manifest.holdout())
    corners = [np.array([(row["x_px"], row["y_px"]) for row in rows]) for rows in (train, held)]
    distance = np.abs(corners[0][:, None] - corners[1][None]).max(axis=2)
    assert distance.min() >= footprint_px
    assert len(train) + len(held) + manifest.index["holdout"]["on_the_border"] == 400
    if not overlap:
        assert manifest.index["holdout"]["on_the_border"] == 0
        num_blocks = math.ceil(20 / block_tiles) ** 2
        assert len(held) <= (fraction * num_blocks + 1) * block_tiles**2


def test_held_out_blocks_are_squares_of_neighbours(tmp_path):
    config = ManifestConfig(holdout_fraction=0.2, holdout_by="tile", max_holdout_tiles=10_000)
    held = _read(_write(tmp_path, _rows(1), [400], config).holdout())
    blocks = {}
    for row in held:
        blocks.setdefault((row["x_px"] // 2048, row["y_px"] // 2048), []).append(row)
    assert len(blocks) == 5 and all(len(rows) == 16 for rows in blocks.values())  # 20 x 20 tiles: 25 blocks of 4 x 4


def test_rows_of_a_parquet_are_held_out_by_patient_or_in_runs(tmp_path):
    row = SlideRow(slide="/tiles.parquet", kind="parquet")
    table = _table(row, 320).drop_columns(["x_px", "y_px", "row", "patient"])
    zeros, index = pa.array(np.zeros(320, np.int32)), np.arange(320, dtype=np.int32)
    given_columns = dict(x_px=zeros, y_px=zeros, row=pa.array(index), patient=pa.array([f"p{i // 16}" for i in index]))
    table = pa.table(
        {name: given_columns.get(name, table[name] if name in table.column_names else None) for name in TILE_SCHEMA.names}
    )
    for by in ("tile", "slide"):
        config = ManifestConfig(holdout_fraction=0.3, holdout_by=by, max_holdout_tiles=1000, seed=1)
        writer = ManifestWriter(str(tmp_path / by), config, PRINT, TilingConfig(), [row])
        writer.add(row, table.cast(TILE_SCHEMA))
        manifest = writer.close()
        held = {r["row"] // 16 for r in _read(manifest.holdout())}
        assert held and not held & {r["row"] // 16 for r in _read(manifest)}
        assert manifest.num_tiles + manifest.holdout().num_tiles == 320


def test_single_tile_images_are_held_out_one_by_one(tmp_path):
    config = ManifestConfig(holdout_fraction=0.25, holdout_by="tile", max_holdout_tiles=1000)
    manifest = _write(tmp_path, _rows(200), [1] * 200, config)
    assert 30 <= manifest.holdout().num_tiles <= 70 and manifest.num_tiles + manifest.holdout().num_tiles == 200


# ------------------------------------------------------------------------------------------------ fingerprint and memory


def test_the_fingerprint_follows_everything_that_the_tiles_depend_on(tmp_path):
    rows, tiling, config = _rows(2), TilingConfig(), ManifestConfig()
    base = fingerprint(rows, tiling, config, sizes=[1, 2])
    assert len(base) == 64 and base == fingerprint(_rows(2), TilingConfig(), ManifestConfig(), sizes=[1, 2])
    others = [
        fingerprint(rows[:1], tiling, config, sizes=[1]),
        fingerprint(rows[::-1], tiling, config, sizes=[1, 2]),
        fingerprint(_rows(2, patients=1), tiling, config, sizes=[1, 2]),
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
    with pytest.raises(ConfigError, match=f"--manifest.{next(iter(wrong))}"):
        ManifestConfig(**wrong)


def test_memory_is_flat_at_any_number_of_slides(tmp_path):
    """A million tiles of 2,000 slides: what is held is one window (32,000 tiles), not the slides gone by."""

    def peaks(num_slides: int) -> tuple[int, int]:
        rows = _rows(num_slides)
        template = _table(rows[0], 500)
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


# ---------------------------------------------------------------------------------------------------------- whole images


def test_the_largest_images_are_known_whatever_they_are_padded_to(tmp_path):
    sizes = [(150, 70), (90, 120), (90, 100), (150, 40), (16, 16)]
    rows = _rows(len(sizes))
    writer = ManifestWriter(str(tmp_path), ManifestConfig(), PRINT, TilingConfig(whole="image"), rows)
    for row, size in zip(rows, sizes, strict=True):
        table = _table(row, 1)
        for name, edge in zip(("width_px", "height_px"), size, strict=True):
            table = table.set_column(table.schema.get_field_index(name), TILE_SCHEMA.field(name), pa.array([edge], pa.int32()))
        writer.add(row, table)
    manifest = writer.close()
    assert manifest.largest_px == ((150, 70), (90, 120))
    assert sorted((row["width_px"], row["height_px"]) for row in _read(manifest)) == sorted(sizes)


def test_a_manifest_of_an_earlier_version_is_of_squares(tmp_path):
    manifest = _write(tmp_path, _rows(2), [5, 5])
    assert manifest.largest_px == ((256, 256),)
    part, index = tmp_path / manifest.parts[0], tmp_path / "index.json"
    old = pq.read_table(part).drop_columns(["width_px", "height_px"])
    pq.write_table(old, part)
    index.write_text(json.dumps({key: value for key, value in manifest.index.items() if key != "largest_px"}))
    read = read_manifest(str(tmp_path))
    assert read.largest_px == ((256, 256),)
    assert {(row["width_px"], row["height_px"]) for row in _read(replace(read, fingerprint="e" * 64))} == {(256, 256)}


def test_settings_of_whole_images_are_no_part_of_what_a_manifest_of_tiles_depends_on():
    rows = _rows(2)
    assert fingerprint(rows, TilingConfig(max_px=99), ManifestConfig(), sizes=[1, 1]) == fingerprint(
        rows, TilingConfig(), ManifestConfig(), sizes=[1, 1]
    )
    prints = {
        fingerprint(rows, TilingConfig(whole="image", max_px=max_px), ManifestConfig(), sizes=[1, 1]) for max_px in (99, 100)
    }
    assert len(prints) == 2
