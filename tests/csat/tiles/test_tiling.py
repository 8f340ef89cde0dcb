"""The tiles of slides: which have enough tissue, what they show, why a slide has none, and real slides."""

import io
import math
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile

from csat.columns import OK, STATUS, TILE
from csat.errors import SlideError
from csat.slides.crashes import CrashLog
from csat.slides.pyramid import read_shrunk
from csat.slides.reader import open_slide, read_tile
from csat.slides.synthetic import paint
from csat.tiles.grid import TILE_SCHEMA, TilingConfig
from csat.tiles.reader import TileReader
from csat.tiles.sources import SlideRow, list_slides
from csat.tiles.tiling import tile_slide
from tests.csat.tiles.pictures import png_of, save_image


def test_tiles_of_a_slide_hold_the_tissue_that_they_say(slide):
    every = tile_slide(slide, TilingConfig(min_tissue=0.0))
    kept = tile_slide(slide, TilingConfig(min_tissue=0.5))
    assert every.schema == TILE_SCHEMA and every.num_rows == 36 and 0 < kept.num_rows < 36
    assert kept.equals(every.filter(pa.array(every["tissue"].to_numpy() >= 0.5)))
    order = list(zip(every["y_px"].to_pylist(), every["x_px"].to_pylist(), strict=True))
    assert order == sorted(order)
    image, _ = paint(1536, seed=2)
    coloured = np.ptp(image.astype(int), axis=2) > 20
    for row in every.to_pylist():
        x, y = row["x_px"], row["y_px"]
        assert row["tissue"] == pytest.approx(coloured[y : y + 256, x : x + 256].mean(), abs=0.08)
        assert (row["slide"], row["kind"], row["patient"], row["row"]) == (slide.slide, "wsi", "p1", 0)


def test_tiles_read_at_another_resolution_show_the_same_place(slide):
    table = tile_slide(slide, TilingConfig(mpp=1.0, tile_px=128, min_tissue=0.9))
    first = table.to_pylist()[0]
    assert (first["level"], first["read_px"], first["footprint_px"], first["mpp"]) == (0, 256, 256, 1.0)
    reader = open_slide(slide.slide, slide.kind)
    tile = read_tile(reader, **{k: first[k] for k in ("x_px", "y_px", "level", "read_px")}, tile_px=128)
    reader.close()
    image, _ = paint(1536, seed=2)
    area = image[first["y_px"] :, first["x_px"] :][:256, :256].reshape(128, 2, 128, 2, 3).mean(axis=(1, 3))
    assert tile.shape == (128, 128, 3) and np.abs(tile - area).mean() < 4


def test_glass_alone_is_no_tissue(tmp_path):
    row = save_image(tmp_path / "glass.png", np.full((600, 600, 3), 243, np.uint8))
    with pytest.raises(SlideError, match=r"glass\.png.*none of its 4 tiles.*50%.*data\.min_tissue") as caught:
        tile_slide(row, TilingConfig(mpp=None))
    assert caught.value.reason == "no_tissue"
    assert tile_slide(row, TilingConfig(mpp=None, min_tissue=0.0)).num_rows == 4


def test_an_image_that_is_all_tissue_is_kept_whole(tmp_path):
    image, _ = paint(1024, seed=1)
    row = save_image(tmp_path / "tile.png", np.ascontiguousarray(image[384:640, 384:640]))
    table = tile_slide(row, TilingConfig(source_mpp=0.5))
    assert table.num_rows == 1 and table["tissue"][0].as_py() > 0.9
    with pytest.raises(SlideError, match="source_mpp") as caught:
        tile_slide(row, TilingConfig())
    assert caught.value.reason == "no_mpp"
    assert math.isnan(tile_slide(row, TilingConfig(mpp=None))["mpp"][0].as_py())


def test_a_slide_that_cannot_be_opened_says_why(tmp_path):
    (tmp_path / "broken.svs").write_bytes(b"not a slide")
    for name, reason in (("broken.svs", "unreadable"), ("absent.svs", "missing")):
        with pytest.raises(SlideError, match=name) as caught:
            tile_slide(SlideRow(slide=str(tmp_path / name), kind="wsi"), TilingConfig())
        assert caught.value.reason == reason


def _disc(width: int, height: int) -> np.ndarray:
    """An ellipse that fills the picture: round, where pixels have its aspect."""
    y, x = np.mgrid[:height, :width]
    pixels = np.full((height, width, 3), 245, np.uint8)
    pixels[((x + 0.5) / width - 0.5) ** 2 + ((y + 0.5) / height - 0.5) ** 2 < 0.16] = (160, 70, 150)
    return pixels


@pytest.mark.parametrize("kind", ["plain", "tiled"])
@pytest.mark.parametrize("whole", [None, "image"])
def test_pixels_that_are_not_square_are_seen_as_square_ones(tmp_path, kind, whole):
    """A disc is round to the teacher, in a plain tif as in a tiled one."""
    path = tmp_path / "a.tif"
    tiled = dict(tile=(256, 256)) if kind == "tiled" else {}
    resolution = dict(resolution=(40_000, 20_000), resolutionunit="CENTIMETER")  # 0.25 um/px across, 0.5 down
    tifffile.imwrite(path, _disc(1024, 512), photometric="rgb", compression="zlib", metadata=None, **tiled, **resolution)
    row = SlideRow(slide=str(path), kind="wsi")
    reader = open_slide(row.slide, row.kind)
    assert reader.kind == ("wsi" if kind == "tiled" else "image") and reader.resolution == (0.25, 0.5, "stated")
    (tile,) = tile_slide(row, TilingConfig(mpp=1.0, tile_px=256, min_tissue=0, whole=whole)).to_pylist()
    assert (tile["read_px"], tile["aspect"], tile["footprint_px"]) == (1024, 0.5, 1024)
    assert (tile["width_px"], tile["height_px"], tile["mpp"], tile["tissue"]) == (256, 256, 1.0, pytest.approx(0.5, abs=0.01))
    where = {name: tile[name] for name in ("x_px", "y_px", "level", "read_px", "row", "aspect")}
    seen = read_tile(reader, **where, tile_px=256)
    assert np.abs(seen.astype(int) - _disc(256, 256)).mean() < 2
    shrunk = read_shrunk(reader, seen, **where, factor=4)
    assert shrunk.shape == (64, 64, 3) and np.abs(shrunk.astype(int) - _disc(64, 64)).mean() < 6
    quarters = tile_slide(row, TilingConfig(mpp=0.5, tile_px=256, min_tissue=0))
    assert list(zip(quarters["x_px"].to_pylist(), quarters["y_px"].to_pylist(), strict=True)) == [
        (0, 0),
        (512, 0),
        (0, 256),
        (512, 256),
    ]
    assert quarters["tissue"].to_pylist() == pytest.approx([0.5] * 4, abs=0.02)


def test_a_low_power_scan_is_what_it_states(shared_data):
    row = SlideRow(slide=str(shared_data("slides_mini") / "camelyon16_29um.dcm"), kind="wsi")
    table = tile_slide(row, TilingConfig(mpp=28.97, tile_px=64, min_tissue=0.1))
    assert set(table["read_px"].to_pylist()) == {64} and set(table["mpp_source"].to_pylist()) == {"stated"}


def test_real_slides(shared_data):
    folder = shared_data("slides")
    aperio = SlideRow(slide=str(folder / "CMU-1-Small-Region.svs"), kind="wsi")
    table = tile_slide(aperio, TilingConfig(mpp=0.5))
    assert 25 < table.num_rows < 45 and set(table["read_px"].to_pylist()) == {256}  # 0.499 um/px: as it is
    assert table["mpp"][0].as_py() == pytest.approx(0.499)
    with pytest.raises(SlideError) as caught:
        tile_slide(aperio, TilingConfig(mpp=0.25))
    assert caught.value.reason == "needs_upsampling"

    pyramid = SlideRow(slide=str(folder / "TCGA-V5-A7RE-11A_stitched_pyramid.tiff"), kind="wsi")
    table = tile_slide(pyramid, TilingConfig(mpp=0.5))  # 0.2485 um/px, levels at 1/2/4/8/16
    assert set(table["level"].to_pylist()) == {1} and set(table["footprint_px"].to_pylist()) == {512}
    assert 80 < table.num_rows < 220  # of 22 x 15; about a third is tissue
    dense = tile_slide(pyramid, TilingConfig(mpp=0.5, overlap_px=128))
    assert 3 < dense.num_rows / table.num_rows < 5
    coarse = tile_slide(pyramid, TilingConfig(mpp=3.0, tile_px=64))
    assert set(coarse["level"].to_pylist()) == {3} and set(coarse["read_px"].to_pylist()) == {97}


def test_what_has_no_utf8_name_is_read_all_the_same(tmp_path, slide):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/Sch\xe4den"))
    folder.mkdir()
    pixels = np.full((64, 64, 3), 90, np.uint8)
    (folder / os.fsdecode(b"Pr\xe4parat.png")).write_bytes(png_of(pixels))
    pq.write_table(pa.table({"image": [png_of(pixels)], "patient": ["P"]}), sink := io.BytesIO())
    (folder / os.fsdecode(b"T\xfcten.parquet")).write_bytes(sink.getvalue())
    shutil.copy(slide.slide, folder / os.fsdecode(b"Sch\xf6n.svs"))
    tables = [tile_slide(row, TilingConfig(mpp=None, tile_px=64)) for row in list_slides([str(tmp_path)])]
    names = [rf"{tmp_path}/Sch\xe4den/{name}" for name in (r"Pr\xe4parat.png", r"Sch\xf6n.svs", r"T\xfcten.parquet")]
    assert [set(table["slide"].to_pylist()) for table in tables] == [{name} for name in names]
    first = pa.concat_tables([table.slice(0, 1) for table in tables])
    columns = {name: first[name].to_numpy(zero_copy_only=False) for name in first.column_names}
    read = TileReader(tile_px=64, crashes=CrashLog("r", str(tmp_path / "crashes")))(columns)
    assert read[STATUS].tolist() == [OK] * 3 and (read[TILE][[0, 2]] == 90).all()
