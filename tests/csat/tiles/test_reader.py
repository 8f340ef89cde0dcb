"""Rows in, rows with pixels out: in the same order, none lost, the bad ones with their reason."""

import io
import pickle
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from csat.columns import FILTERED, OK, QUARANTINED, READ_S, REASON, STATUS, STUDENT_TILE, TILE
from csat.errors import StorageError
from csat.storage import files
from csat.storage.node_cache import SlideCache
from csat.tiles import reader as tile_reader
from csat.tiles.reader import TileReader, background_fraction
from tests.support.slide_textures import textured

NUM_SLIDES = 4


@pytest.fixture(scope="module")
def pixels():
    return [textured(512, 512, seed) for seed in range(NUM_SLIDES)]


@pytest.fixture(scope="module")
def slides(tmp_path_factory, write_slide, pixels):
    folder = tmp_path_factory.mktemp("slides")
    return [str(write_slide(folder / f"{index}.tif", pixels[index], shrinks=(1,))) for index in range(NUM_SLIDES)]


def rows(places, kind="wsi", read_px=128):
    """Manifest columns of (slide, x_px, y_px) or (slide, x_px, y_px, row)."""
    places = [(*place, 0)[:4] for place in places]
    return {
        "slide": np.array([place[0] for place in places], object),
        "kind": np.array([kind] * len(places), object),
        "x_px": np.array([place[1] for place in places], np.int32),
        "y_px": np.array([place[2] for place in places], np.int32),
        "row": np.array([place[3] for place in places], np.int32),
        "level": np.zeros(len(places), np.int8),
        "read_px": np.full(len(places), read_px, np.int32),
        "aspect": np.ones(len(places), np.float32),
        "tile_index": np.arange(len(places)) + 1000,
    }


@pytest.fixture
def opened(monkeypatch):
    """How often each slide is opened."""
    counts, open_slide = Counter(), tile_reader.open_slide

    def counted(uri, *args, **kwargs):
        counts[uri] += 1
        return open_slide(uri, *args, **kwargs)

    monkeypatch.setattr(tile_reader, "open_slide", counted)
    return counts


def shuffled_places(slides, seed=0):
    places = [(slide, x, y) for slide in slides for x in (0, 128, 384) for y in (0, 256)]
    np.random.default_rng(seed).shuffle(places)
    return [(slide, int(x), int(y)) for slide, x, y in places]


def test_tiles_come_back_in_the_order_of_their_rows(slides, pixels, opened):
    places = shuffled_places(slides)
    columns = rows(places)
    for column in columns.values():
        column.flags.writeable = False  # as batches from Ray's store are
    out = TileReader(tile_px=128)(columns)
    assert out[TILE].shape == (len(places), 128, 128, 3) and out[TILE].dtype == np.uint8
    for tile, (slide, x, y) in zip(out[TILE], places, strict=True):
        np.testing.assert_array_equal(tile, pixels[slides.index(slide)][y : y + 128, x : x + 128])
    assert (out[STATUS] == OK).all() and out[STATUS].dtype == np.uint8 and set(out[REASON]) == {""}
    assert out[READ_S].dtype == np.float32 and (out[READ_S] > 0).all()
    np.testing.assert_array_equal(out["tile_index"], columns["tile_index"])
    assert set(opened.values()) == {1}, "each slide once, though their tiles are mixed"


def test_slides_stay_open_between_batches_up_to_the_limit(slides, opened):
    reader = TileReader(tile_px=128, max_open_slides=2)
    for slide in (0, 1, 0, 1):
        reader(rows([(slides[slide], 0, 0)]))
    assert opened == {slides[0]: 1, slides[1]: 1}
    reader(rows([(slides[2], 0, 0)]))
    reader(rows([(slides[1], 0, 0)]))
    assert opened[slides[1]] == 1, "0 had to go, not 1"
    assert len(reader._readers) == 2
    reader(rows([(slides[0], 0, 0)]))
    assert opened[slides[0]] == 2


def test_decoded_images_are_bounded_by_their_bytes(tmp_path, monkeypatch, opened):
    paths = []
    for index in range(3):
        Image.fromarray(textured(128, 128, index)).save(tmp_path / f"{index}.png")
        paths.append(str(tmp_path / f"{index}.png"))
    monkeypatch.setattr(tile_reader, "MAX_HELD_BYTES", 2 * 128 * 128 * 3)
    reader = TileReader(tile_px=128, max_open_slides=100)
    reader(rows([(path, 0, 0) for path in paths], kind="image"))
    assert sum(open_.num_bytes for open_ in reader._readers.values()) == tile_reader.MAX_HELD_BYTES


def test_bad_slides_and_tiles_are_rows_with_a_reason_and_spoil_nothing(slides, pixels, tmp_path, opened):
    (tmp_path / "bad.svs").write_bytes(b"junk" * 100)
    bad, gone = str(tmp_path / "bad.svs"), str(tmp_path / "gone.svs")
    places = [(bad, 0, 0), (slides[0], 0, 0), (gone, 0, 0), (bad, 128, 0), (slides[1], 128, 128), (bad, 0, 128)]
    reader = TileReader(tile_px=128)
    for _ in range(2):
        out = reader(rows(places))
        np.testing.assert_array_equal(out[STATUS], [QUARANTINED, OK, QUARANTINED, QUARANTINED, OK, QUARANTINED])
        for index in (0, 3, 5):
            assert out[REASON][index].startswith(f"unreadable: {bad}") and not out[TILE][index].any()
        assert out[REASON][2].startswith(f"missing: {gone}")
        np.testing.assert_array_equal(out[TILE][4], pixels[1][128:256, 128:256])
    assert opened[bad] == 1 and opened[gone] == 1, "a slide that cannot be opened is not tried again for every tile"


def test_one_bad_tile_leaves_the_others_of_its_slide(slides, pixels, tmp_path, write_slide):
    import tifffile

    with tifffile.TiffFile(slides[0]) as file:
        offset, length = file.pages[0].dataoffsets[0], file.pages[0].databytecounts[0]
    with open(slides[0], "rb") as file:
        data = bytearray(file.read())
    data[offset : offset + length] = b"\xa5" * length
    (tmp_path / "a.tif").write_bytes(data)
    path = str(tmp_path / "a.tif")
    out = TileReader(tile_px=128)(rows([(path, 256, 256), (path, 128, 128), (path, 384, 0), (path, 0, 0)]))
    np.testing.assert_array_equal(out[STATUS], [OK, QUARANTINED, OK, QUARANTINED])
    assert "x_px=128, y_px=128" in out[REASON][1]
    np.testing.assert_array_equal(out[TILE][2], pixels[0][:128, 384:])


def test_a_fault_that_is_not_the_slides_is_raised(slides, monkeypatch):
    def out_of_reach(*args, **kwargs):
        raise StorageError("cannot download: no space left")

    monkeypatch.setattr(tile_reader, "open_slide", out_of_reach)
    with pytest.raises(StorageError, match="no space left"):
        TileReader(tile_px=128)(rows([(slides[0], 0, 0)]))


def test_background_is_filtered_when_asked(tmp_path):
    half = np.full((128, 128, 3), 240, np.uint8)
    half[:64] = (180, 90, 150)
    Image.fromarray(half).save(tmp_path / "half.png")
    Image.fromarray(np.full((128, 128, 3), 245, np.uint8)).save(tmp_path / "glass.png")
    columns = rows([(str(tmp_path / "half.png"), 0, 0), (str(tmp_path / "glass.png"), 0, 0)], kind="image")
    np.testing.assert_array_equal(TileReader(tile_px=128)(columns)[STATUS], [OK, OK])
    out = TileReader(tile_px=128, max_background=0.6)(columns)
    np.testing.assert_array_equal(out[STATUS], [OK, FILTERED])
    assert out[REASON][1].startswith("background: 1.000") and not out[TILE][1].any()


def test_background_is_bright_and_colourless():
    colours = np.array([[[255, 255, 255], [240, 235, 238], [230, 190, 220], [120, 120, 120]]], np.uint8)  # eosin, dust: not
    assert background_fraction(colours) == 0.5


def test_it_travels_without_its_open_slides(slides):
    reader = TileReader(tile_px=128, max_open_slides=3)
    reader(rows([(slides[0], 0, 0)]))
    copy = pickle.loads(pickle.dumps(reader))
    assert copy._readers == {} and copy.max_open_slides == 3
    np.testing.assert_array_equal(copy(rows([(slides[0], 0, 0)]))[TILE], reader(rows([(slides[0], 0, 0)]))[TILE])
    reader.close()
    assert (reader(rows([(slides[0], 0, 0)]))[STATUS] == OK).all()


def test_an_empty_batch():
    out = TileReader(tile_px=128)(rows([]))
    assert out[TILE].shape == (0, 128, 128, 3) and len(out[STATUS]) == 0


def test_slides_of_a_bucket_through_a_cache_that_holds_only_one(slides, pixels, tmp_path, s3):
    """The reader may keep handles, but pins one slide at a time: a cache of one slide is slow, and not a deadlock."""
    for index, slide in enumerate(slides):
        with open(slide, "rb") as file:
            files.write_bytes(f"{s3}/{index}.tif", file.read())
    budget = max(files.size(f"{s3}/{index}.tif") for index in range(NUM_SLIDES)) + 10
    remote = [f"{s3}/{index}.tif" for index in range(NUM_SLIDES)]
    reader = TileReader(tile_px=128, cache=SlideCache(tmp_path, budget), max_open_slides=10)
    places = shuffled_places(remote)
    for _ in range(2):
        out = reader(rows(places))
        assert set(out[REASON]) == {""}
        for tile, (slide, x, y) in zip(out[TILE], places, strict=True):
            np.testing.assert_array_equal(tile, pixels[remote.index(slide)][y : y + 128, x : x + 128])
        assert sum(file.stat().st_size for file in tmp_path.glob("*/**/*") if file.is_file()) <= budget
        assert len(reader._readers) == 1, "handles of evicted slides are closed, or their bytes stay on the disk"


def test_a_slide_that_stays_in_the_cache_stays_open(slides, tmp_path, s3, opened):
    with open(slides[0], "rb") as file:
        files.write_bytes(f"{s3}/a.tif", file.read())
    reader = TileReader(tile_px=128, cache=SlideCache(tmp_path, 10**8))
    for _ in range(3):
        assert (reader(rows([(f"{s3}/a.tif", 0, 0)]))[STATUS] == OK).all()
    assert opened == {f"{s3}/a.tif": 1}


def test_rows_of_a_parquet_are_tiles(tmp_path, pixels):
    cells = []
    for index in range(6):
        buffer = io.BytesIO()
        Image.fromarray(pixels[0][:128, index * 64 : index * 64 + 128]).save(buffer, "PNG")
        cells.append(buffer.getvalue())
    cells[4] = b"junk"
    pq.write_table(pa.table({"image": cells}), tmp_path / "a.parquet", row_group_size=2)
    path = str(tmp_path / "a.parquet")
    out = TileReader(tile_px=128)(rows([(path, 0, 0, row) for row in (5, 0, 4, 2)], kind="parquet"))
    np.testing.assert_array_equal(out[STATUS], [OK, OK, QUARANTINED, OK])
    assert "a.parquet, row 4" in out[REASON][2]
    np.testing.assert_array_equal(out[TILE][0], pixels[0][:128, 320:448])


def test_whole_images_come_at_their_own_size_on_glass(slides, pixels):
    columns = rows([(slides[0], 0, 0), (slides[1], 64, 32), ("missing.tif", 0, 0)])
    columns |= {"width_px": np.array([100, 64, 50]), "height_px": np.array([40, 96, 50]), "read_px": np.array([100, 96, 50])}
    out = TileReader(tile_px=32, whole=True, student_factor=4)(columns)
    assert [tile.shape for tile in out[TILE]] == [(64, 128, 3), (96, 64, 3), (32, 32, 3)]
    assert [tile.shape for tile in out[STUDENT_TILE]] == [(16, 32, 3), (24, 16, 3), (8, 8, 3)]
    assert list(out[STATUS]) == [OK, OK, QUARANTINED]
    first = out[TILE][0]
    np.testing.assert_array_equal(first[:40, :100], pixels[0][:40, :100])
    assert (first[40:] == 255).all() and (first[:, 100:] == 255).all()
    assert (out[STUDENT_TILE][0][10:] == 255).all() and (out[STUDENT_TILE][0][:, 25:] == 255).all()
    means = pixels[0][:40, :100].reshape(10, 4, 25, 4, 3).mean((1, 3))
    np.testing.assert_allclose(out[STUDENT_TILE][0][:10, :25], means, atol=0.51)
