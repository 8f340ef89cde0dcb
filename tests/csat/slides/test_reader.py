"""Pixels at the right place and size, from small pyramids made here and from two real slides."""

import io

import numpy as np
import openslide
import pytest
import tifffile
from PIL import Image

from csat.errors import ConfigError, SlideError
from csat.slides import openslide_reader, raster
from csat.slides.reader import no_mpp_error, open_slide, read_tile
from csat.storage import files
from csat.storage.node_cache import SlideCache
from tests.support.slide_textures import textured

PIXELS = textured(1300, 1100)


@pytest.fixture(scope="module")
def pyramid(tmp_path_factory, write_slide):
    return str(write_slide(tmp_path_factory.mktemp("slides") / "pyramid.tif", PIXELS))


def test_levels_and_pixels(pyramid):
    slide = open_slide(pyramid, "wsi")
    assert (slide.kind, slide.mpp, slide.num_rows) == ("wsi", pytest.approx(0.5), 1)
    assert [level[:2] for level in slide.levels] == [(1100, 1300), (275, 325)]
    np.testing.assert_array_equal(slide.read(333, 444, 0, 256), PIXELS[444:700, 333:589])
    np.testing.assert_array_equal(slide.read(400, 800, 1, (50, 60)), PIXELS[::4, ::4][200:260, 100:150])
    slide.close()


def test_outside_the_slide_is_white(pyramid):
    slide = open_slide(pyramid, "wsi")
    out = slide.read(1100 - 100, 1300 - 30, 0, 256)
    np.testing.assert_array_equal(out[:30, :100], PIXELS[-30:, -100:])
    assert (out[30:] == 255).all() and (out[:, 100:] == 255).all()
    out = slide.read(-20, -10, 0, 64)
    assert (out[:10] == 255).all() and (out[:, :20] == 255).all()
    np.testing.assert_array_equal(out[10:, 20:], PIXELS[:54, :44])
    assert (slide.read(9000, 9000, 0, 16) == 255).all()


@pytest.mark.parametrize(("level", "step"), [(0, 1), (1, 4)])
def test_beyond_the_slide_is_its_mirror_image_where_that_is_asked(pyramid, level, step):
    slide, pixels = open_slide(pyramid, "wsi"), PIXELS[::step, ::step]
    padded = np.pad(pixels, ((64, 64), (64, 64), (0, 0)), mode="symmetric")
    height, width = pixels.shape[:2]
    for x, y in ((-20, -10), (width - 40, -32), (-1, height - 33), (width - 64, height - 40), (10, 10)):
        where = {"x_px": x * step, "y_px": y * step, "level": level, "read_px": 64, "tile_px": 64}
        expected = padded[64 + y : 128 + y, 64 + x : 128 + x]
        np.testing.assert_array_equal(read_tile(slide, **where, mirrored=True), expected)
    outside = {"x_px": 9000, "y_px": 0, "level": level, "read_px": 16, "tile_px": 16}
    assert (read_tile(slide, **outside, mirrored=True) == 255).all(), "there is nothing to be mirrored"


def test_a_tile_is_resized_by_area(pyramid):
    slide = open_slide(pyramid, "wsi")
    where = {"x_px": 512, "y_px": 256, "level": 0}
    expected = PIXELS[256:768, 512:1024].reshape(256, 2, 256, 2, 3).mean(axis=(1, 3))
    tile = read_tile(slide, **where, read_px=512, tile_px=256)
    assert tile.shape == (256, 256, 3) and np.abs(tile - expected).max() <= 0.5
    np.testing.assert_array_equal(read_tile(slide, **where, read_px=256, tile_px=256), PIXELS[256:512, 512:768])
    assert read_tile(slide, **where, read_px=128, tile_px=256).shape == (256, 256, 3)


@pytest.mark.parametrize("block_px", [100, 4096])
def test_a_thumbnail_in_blocks_is_the_thumbnail(pyramid, monkeypatch, block_px):
    monkeypatch.setattr(openslide_reader, "THUMBNAIL_BLOCK_PX", block_px)
    smooth = PIXELS[::4, ::4].astype(float)
    thumbnail = open_slide(pyramid, "wsi").thumbnail(65)
    assert thumbnail.shape == (65, 55, 3)
    np.testing.assert_allclose(thumbnail, smooth.reshape(65, 5, 55, 5, 3).mean(axis=(1, 3)), atol=1)
    assert open_slide(pyramid, "wsi").thumbnail(9999).shape == (1300, 1100, 3)


@pytest.mark.parametrize(
    ("written", "expected", "source"),
    [
        ({"mpp": 0.25}, 0.25, "stated"),
        ({"mpp": None}, None, None),
        ({"mpp": 352.8}, None, None),  # 72 dpi, a screen's
        ({"mpp": 25_400 / 600}, None, None),  # a printer's
        ({"mpp": None, "description": "Aperio Image Library v11\n1300x1100|AppMag = 20|MPP = 0.4990"}, 0.499, "stated"),
        ({"mpp": None, "description": "Aperio Image Library v11\n1300x1100|AppMag = 40"}, 0.25, "guessed"),
    ],
)
def test_what_the_slide_says_of_its_resolution(tmp_path, write_slide, written, expected, source):
    path = str(write_slide(tmp_path / "a.tif", PIXELS[:512, :512], shrinks=(1,), **written))
    found = open_slide(path, "wsi").resolution
    assert found == (None if expected is None else pytest.approx((expected, expected, source)))
    typed = open_slide(path, "wsi", source_mpp=0.3)
    assert typed.resolution.source == ("stated" if source == "stated" else "source_mpp"), "a typed number beats a guess"
    assert typed.mpp == pytest.approx(expected if source == "stated" else 0.3)
    assert open_slide(path, "wsi", mpp=0.4, source_mpp=0.3).resolution == (0.4, 0.4, "given")


def test_inches_count_too(tmp_path, write_slide):
    inches = {"resolution": (50_800, 50_800), "resolutionunit": "INCH"}
    path = write_slide(tmp_path / "a.tif", PIXELS[:512, :512], shrinks=(1,), mpp=None, **inches)
    assert open_slide(str(path), "wsi").mpp == pytest.approx(0.5)


def test_a_missing_resolution_says_how_to_give_it():
    error = no_mpp_error("/data/case-7.svs")
    assert error.reason == "no_mpp"
    for words in ("/data/case-7.svs", "data.source_mpp 0.25", "CSV", "mpp"):
        assert words in str(error)


def test_a_plain_tif_is_read_as_an_image(tmp_path):
    path = tmp_path / "tile.tif"
    Image.fromarray(PIXELS[:64, :96]).save(path)
    reader = open_slide(str(path), "wsi", source_mpp=0.5)
    assert (reader.kind, reader.levels, reader.mpp) == ("image", [(96, 64, 1.0)], 0.5)
    np.testing.assert_array_equal(reader.read(10, 20, 0, 32), PIXELS[20:52, 10:42])


def test_an_image_tile(tmp_path):
    Image.fromarray(PIXELS[:64, :64]).save(tmp_path / "tile.png")
    np.testing.assert_array_equal(open_slide(str(tmp_path / "tile.png"), "image").read(0, 0, 0, 64), PIXELS[:64, :64])


def test_slides_and_images_in_a_bucket(tmp_path, pyramid, s3):
    with open(pyramid, "rb") as file:
        files.write_bytes(f"{s3}/a slide.tif", file.read())
    cache = SlideCache(tmp_path, 10**8)
    slide = open_slide(f"{s3}/a slide.tif", "wsi", cache=cache)
    np.testing.assert_array_equal(slide.read(0, 0, 0, 256), PIXELS[:256, :256])
    slide.close()
    Image.fromarray(PIXELS[:64, :64]).save(tmp_path / "tile.png")
    files.write_bytes(f"{s3}/tile.png", (tmp_path / "tile.png").read_bytes())
    np.testing.assert_array_equal(open_slide(f"{s3}/tile.png", "image").read(0, 0, 0, 64), PIXELS[:64, :64])
    turned = generic(tmp_path / "turned.tif", *MISREAD["turned"])
    with open(turned, "rb") as file:
        files.write_bytes(f"{s3}/turned.tif", file.read())
    upright = open_slide(f"{s3}/turned.tif", "wsi", cache=cache)
    np.testing.assert_array_equal(upright.read(0, 0, 0, 256), PIXELS[:256, :256])
    with pytest.raises(ConfigError, match="needs a slide cache"):
        open_slide(f"{s3}/a slide.tif", "wsi")


def test_files_that_are_no_slides(tmp_path, pyramid):
    (tmp_path / "empty.svs").touch()
    (tmp_path / "text.svs").write_text("not a slide")
    (tmp_path / "text.tif").write_text("not a slide")
    with open(pyramid, "rb") as file:
        (tmp_path / "head.tif").write_bytes(file.read(5000))
    for name, kind in [
        ("empty.svs", "wsi"),
        ("text.svs", "wsi"),
        ("text.tif", "wsi"),
        ("head.tif", "wsi"),
        ("text.svs", "image"),
    ]:
        with pytest.raises(SlideError, match=name) as caught:
            open_slide(str(tmp_path / name), kind)
        assert caught.value.reason == "unreadable"
    for name, kind in [("gone.svs", "wsi"), ("gone.png", "image"), ("gone.parquet", "parquet")]:
        with pytest.raises(SlideError, match=name) as caught:
            open_slide(str(tmp_path / name), kind)
        assert caught.value.reason == "missing"


def spoil(source, target, x_px, y_px):
    """A copy of a one-level tif whose tile at (x_px, y_px) is overwritten."""
    import tifffile

    with tifffile.TiffFile(source) as file:
        page = file.pages[0]
        index = y_px // 256 * -(-page.imagewidth // 256) + x_px // 256
        offset, length = page.dataoffsets[index], page.databytecounts[index]
    with open(source, "rb") as file:
        data = bytearray(file.read())
    data[offset : offset + length] = b"\xa5" * length
    target.write_bytes(data)
    return str(target)


def test_one_bad_tile_does_not_spoil_the_others(tmp_path, write_slide):
    whole = write_slide(tmp_path / "whole.tif", PIXELS, shrinks=(1,))
    slide = open_slide(spoil(whole, tmp_path / "bad.tif", 256, 512), "wsi")
    with pytest.raises(SlideError, match=r"bad\.tif: cannot be read at x_px=256, y_px=512, level 0") as caught:
        slide.read(256, 512, 0, 256)
    assert caught.value.reason == "unreadable"
    np.testing.assert_array_equal(slide.read(512, 512, 0, 256), PIXELS[512:768, 512:768])
    raw = openslide.OpenSlide(str(tmp_path / "bad.tif"))  # why the reader reopens the slide: errors latch in OpenSlide
    with pytest.raises(openslide.OpenSlideError):
        raw.read_region((256, 512), 0, (256, 256))
    with pytest.raises(openslide.OpenSlideError):
        raw.read_region((512, 512), 0, (256, 256))


def test_what_a_thumbnail_cannot_read_counts_as_tissue(tmp_path, write_slide, monkeypatch):
    monkeypatch.setattr(openslide_reader, "THUMBNAIL_BLOCK_PX", 256)
    white = np.full((1024, 1024, 3), 250, np.uint8)
    whole = write_slide(tmp_path / "whole.tif", white, shrinks=(1,))
    thumbnail = open_slide(spoil(whole, tmp_path / "bad.tif", 256, 512), "wsi").thumbnail(128)
    painted = (thumbnail == openslide_reader.UNREADABLE_RGB).all(axis=-1)
    assert painted[64:96, 32:64].all() and painted.sum() == 32 * 32 and (thumbnail[~painted] == 250).all()


def test_a_truncated_tif_is_unreadable_in_part_or_as_a_whole(tmp_path, write_slide):
    data = write_slide(tmp_path / "whole.tif", PIXELS, shrinks=(1,)).read_bytes()
    (tmp_path / "cut.tif").write_bytes(data[: len(data) // 2])
    with pytest.raises(SlideError) as caught:
        slide = open_slide(str(tmp_path / "cut.tif"), "wsi")
        np.testing.assert_array_equal(slide.read(0, 0, 0, 256), PIXELS[:256, :256])
        slide.read(768, 1024, 0, 256)
    assert caught.value.reason == "unreadable"


def test_a_real_aperio_slide(shared_data):
    slide = open_slide(str(shared_data("slides") / "CMU-1-Small-Region.svs"), "wsi")
    assert slide.mpp == pytest.approx(0.499) and slide.levels == [(2220, 2967, 1.0)]
    assert slide.thumbnail(500).shape == (500, 374, 3)
    tile = read_tile(slide, x_px=600, y_px=900, level=0, read_px=513, tile_px=256)
    red, green, blue = tile.reshape(-1, 3).mean(axis=0)
    assert red > green and blue > green, "H&E is pink and violet"


def test_a_real_pyramid(shared_data):
    slide = open_slide(str(shared_data("slides") / "TCGA-V5-A7RE-11A_stitched_pyramid.tiff"), "wsi")
    assert slide.mpp == pytest.approx(0.2485, abs=1e-4)
    assert [level.downsample for level in slide.levels] == [1, 2, 4, 8, 16]
    fine = read_tile(slide, x_px=4096, y_px=4096, level=0, read_px=1024, tile_px=256).astype(float)
    coarse = read_tile(slide, x_px=4096, y_px=4096, level=2, read_px=256, tile_px=256).astype(float)
    assert np.abs(fine - coarse).mean() < 8, "the same place on both levels"


def generic(path, *written):
    """A tiled tif that OpenSlide would open as generic-tiff."""
    with tifffile.TiffWriter(path) as writer:
        for pixels, how in written:
            writer.write(pixels, **({"tile": (256, 256), "photometric": "rgb", "metadata": None} | how))
    assert openslide.OpenSlide.detect_format(str(path)) == "generic-tiff"
    return str(path)


GREY = np.ascontiguousarray(PIXELS[..., 1])
MISREAD = {
    "planes": [(np.moveaxis(PIXELS, 2, 0).copy(), {"photometric": "minisblack", "metadata": {"axes": "CYX"}})],
    "turned": [(np.rot90(PIXELS), {"extratags": [(274, "H", 1, 6, True)]})],
    "thumbnail first": [(PIXELS[::4, ::4], {"subfiletype": 1}), (PIXELS, {})],
    "12 bits": [(PIXELS.astype(np.uint16) << 4, {"extratags": [(281, "H", 3, (4095,) * 3, True)]})],
    "no alpha": [(np.dstack([PIXELS, GREY]), {"extrasamples": ["unspecified"]})],
}


@pytest.mark.parametrize("how", MISREAD)
def test_a_tiled_tif_that_openslide_would_misread_is_decoded_as_pictures_are(tmp_path, how):
    path = tmp_path / "slide.tif"
    if how == "planes":
        names = {"axes": "CYX", "Channel": {"Name": ["Red", "Green", "Blue"]}}
        tifffile.imwrite(path, MISREAD[how][0][0], tile=(256, 256), photometric="minisblack", metadata=names, ome=True)
    else:
        generic(path, *MISREAD[how])
    seen = np.asarray(openslide.OpenSlide(str(path)).read_region((0, 0), 0, PIXELS.shape[1::-1]))[..., :3]
    assert (seen != PIXELS).any(), "OpenSlide reads it well: take it from why_not_openslide"
    slide = open_slide(str(path), "wsi")
    assert (slide.kind, slide.levels) == ("image", [(1100, 1300, 1.0)])
    np.testing.assert_array_equal(slide.read(300, 700, 0, 256), PIXELS[700:956, 300:556])


def test_what_openslide_would_misread_and_is_too_large_to_decode_says_both(tmp_path, monkeypatch):
    monkeypatch.setattr(raster, "MAX_IMAGE_PX", 1_000_000)
    path = generic(tmp_path / "turned.tif", *MISREAD["turned"])
    with pytest.raises(SlideError, match=r"1300 x 1100 px in one level.*OpenSlide .*Orientation tag \(6\) turns it"):
        open_slide(path, "wsi")


def test_dyes_are_refused_as_a_slide(tmp_path):
    metadata = {"axes": "CYX", "Channel": {"Name": ["DAPI", "FITC", "Cy5"]}}
    planes = np.moveaxis(PIXELS, 2, 0).copy()
    path = tmp_path / "dyes.ome.tif"
    tifffile.imwrite(path, planes, tile=(256, 256), photometric="minisblack", metadata=metadata, ome=True)
    with pytest.raises(SlideError, match="a stack of planes .*DAPI, FITC, Cy5"):
        open_slide(str(path), "wsi")


@pytest.mark.parametrize("how", ["grey", "inverted grey", "planar", "alpha"])
def test_what_openslide_reads_well_stays_a_pyramid(tmp_path, how):
    grey = np.repeat(GREY[..., None], 3, axis=2)
    opaque = np.dstack([PIXELS, np.full_like(GREY, 255)])
    written, seen = {
        "grey": ((GREY, {"photometric": "minisblack"}), grey),
        "inverted grey": ((255 - GREY, {"photometric": "miniswhite"}), grey),
        "planar": ((np.moveaxis(PIXELS, 2, 0).copy(), {"planarconfig": "separate"}), PIXELS),
        "alpha": ((opaque, {"extrasamples": ["unassalpha"]}), PIXELS),
    }[how]
    slide = open_slide(generic(tmp_path / "slide.tif", written), "wsi")
    assert slide.kind == "wsi"
    np.testing.assert_array_equal(slide.read(300, 700, 0, 256), seen[700:956, 300:556])
    slide.close()


def test_real_slides_in_dicom(shared_data):
    path = shared_data("slides_mini") / "camelyon16_29um.dcm"
    slide = open_slide(str(path), "wsi", mpp=28.97)
    assert slide.levels == [(1152, 700, 1.0)] and slide.thumbnail(300).shape == (182, 300, 3)
    data = path.read_bytes()
    starts = [at for at in range(len(data) - 3) if data[at : at + 3] == b"\xff\xd8\xff"]
    for frame, (x_px, y_px) in ((0, (0, 0)), (7, (512, 256))):  # of 5 by 3, row by row
        tile = Image.open(io.BytesIO(data[starts[frame] :])).convert("RGB")
        difference = slide.read(x_px, y_px, 0, 256).astype(int) - np.asarray(tile)
        assert np.abs(difference).mean() < 1, "a frame is a tile, but for the decoder's rounding"
    tiny = open_slide(str(path.with_name("sm_image_tiny.dcm")), "wsi", mpp=1.0)
    assert tiny.read(0, 0, 0, 50).shape == (50, 50, 3) and tiny.read(0, 0, 0, 50).mean() > 240
