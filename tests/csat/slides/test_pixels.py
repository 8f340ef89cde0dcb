"""Every mode of image that people have becomes 8-bit RGB, masks keep their numbers, and what is neither says so."""

import io
import struct
import zlib

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps, TiffImagePlugin

from csat.errors import SlideError
from csat.slides import raster
from csat.slides.pixels import decode_image, decode_labels
from csat.slides.raster import on_white

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
COLOUR = np.stack([RAMP, RAMP.T, 255 - RAMP], axis=-1)


def encoded(image: Image.Image, format: str, **kwargs) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **kwargs)
    return buffer.getvalue()


def tif(pixels, **kwargs) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, **kwargs)
    return buffer.getvalue()


def pixels_of(data: bytes) -> np.ndarray:
    pixels, _ = decode_image(data, "x")
    assert pixels.dtype == np.uint8 and pixels.shape[2] == 3
    return pixels


def grey_as_rgb(grey):
    return np.repeat(grey[..., None], 3, axis=2)


@pytest.mark.parametrize("format", ["PNG", "TIFF", "BMP", "WEBP"])
def test_rgb_is_kept(format):
    lossless = {"lossless": True} if format == "WEBP" else {}
    np.testing.assert_array_equal(pixels_of(encoded(Image.fromarray(COLOUR), format, **lossless)), COLOUR)


def test_grey_and_bilevel():
    np.testing.assert_array_equal(pixels_of(encoded(Image.fromarray(RAMP), "PNG")), grey_as_rgb(RAMP))
    bilevel = pixels_of(encoded(Image.fromarray(RAMP).point(lambda v: 255 * (v > 99), "1"), "PNG"))
    np.testing.assert_array_equal(bilevel, grey_as_rgb(np.where(RAMP > 99, 255, 0).astype(np.uint8)))


@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_16_bit_grey_keeps_its_range(byteorder):
    deep = RAMP.astype(np.uint16) * 257
    np.testing.assert_array_equal(pixels_of(tif(deep, byteorder=byteorder)), grey_as_rgb(RAMP))
    np.testing.assert_array_equal(pixels_of(encoded(Image.fromarray(deep), "PNG")), grey_as_rgb(RAMP))


@pytest.mark.parametrize("kwargs", [{}, {"compression": "zlib"}, {"planarconfig": "separate"}, {"compression": "lzw"}])
def test_16_bit_colour_keeps_its_range(kwargs):
    deep = COLOUR.astype(np.uint16) * 257
    deep = np.moveaxis(deep, 2, 0) if "planarconfig" in kwargs else deep
    np.testing.assert_array_equal(pixels_of(tif(deep, photometric="rgb", **kwargs)), COLOUR)


def test_palette_and_transparent_palette():
    palette = Image.fromarray(COLOUR).quantize(16)
    np.testing.assert_array_equal(pixels_of(encoded(palette, "PNG")), np.asarray(palette.convert("RGB")))
    index = np.asarray(palette)
    clear = pixels_of(encoded(palette, "PNG", transparency=int(index[0, 0])))
    assert (clear[index == index[0, 0]] == 255).all()
    assert (clear[index != index[0, 0]] == np.asarray(palette.convert("RGB"))[index != index[0, 0]]).all()


def test_cmyk():
    ink = np.zeros((8, 8, 4), np.uint8)
    ink[:4, :, 0] = 255  # cyan above, paper below
    out = pixels_of(encoded(Image.fromarray(ink, "CMYK"), "TIFF"))
    np.testing.assert_array_equal(out[0, 0], [0, 255, 255])
    np.testing.assert_array_equal(out[7, 0], [255, 255, 255])
    assert (
        abs(pixels_of(encoded(Image.fromarray(ink, "CMYK"), "JPEG", quality=95))[0, 0].astype(int) - [0, 255, 255]).max() < 8
    )


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_composed_on_white(mode):
    rgba = np.dstack([grey_as_rgb(np.full((4, 4), 100, np.uint8)), np.full((4, 4), 255, np.uint8)])
    rgba[0, :, 3], rgba[1, :, 3] = 0, 51
    out = pixels_of(encoded(Image.fromarray(rgba).convert(mode), "PNG"))
    np.testing.assert_array_equal(out[:, 0, 0], [255, 224, 100, 100])  # 255 * 0.8 + 100 * 0.2 = 224


def test_on_white_by_hand():
    rgba = np.array([[[0, 100, 255, 128]]], np.uint8)
    np.testing.assert_array_equal(on_white(rgba), [[[127, 177, 255]]])


def test_what_pillow_cannot_decode_tifffile_can(tmp_path):
    odd = tif(COLOUR, photometric="rgb", compression="jpeg2000")
    np.testing.assert_array_equal(pixels_of(odd), COLOUR)
    (tmp_path / "x.tif").write_bytes(odd)
    np.testing.assert_array_equal(decode_image(tmp_path / "x.tif", "x")[0], COLOUR)


def bomb() -> bytes:
    """A PNG of a few bytes that claims 30000 x 30000 pixels."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "tile-7: is empty"),
        (b"no image at all", "tile-7: cannot be decoded: is no PNG, JPEG.* or TIFF"),
        (encoded(Image.fromarray(COLOUR), "PNG")[:-40], "tile-7: cannot be decoded"),
        (encoded(Image.fromarray(np.tile(COLOUR, (20, 20, 1))), "JPEG")[:2000], "tile-7: cannot be decoded.*truncated"),
        (tif(np.tile(COLOUR, (20, 20, 1)), photometric="rgb")[:9000], "tile-7: cannot be decoded"),
        (b"II*\x00\x08\x00\x00\x00", "tile-7: is a tif without a picture"),
        (tif(np.zeros((8, 8), np.float32)), "tile-7: holds floats"),
        (tif(np.full((8, 8), 2**20, np.int32)), "tile-7: holds signed 32-bit integers"),
        (tif(np.zeros((8, 8, 4), np.uint16), photometric="separated"), "tile-7: a tif with .*SEPARATED"),
        (bomb(), "tile-7:.*30000|tile-7:.*exceeds limit"),
    ],
)
def test_what_is_no_image_is_unreadable(data, message):
    with pytest.raises(SlideError, match=message) as caught:
        decode_image(data, "tile-7")
    assert caught.value.reason == "unreadable"


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_an_image_beyond_the_limit_is_refused_before_it_is_decoded(monkeypatch, format):
    monkeypatch.setattr(raster, "MAX_IMAGE_PX", 200)
    with pytest.raises(SlideError, match="16 x 16 px.*decompression bomb.*pyramidal tif"):
        decode_image(encoded(Image.fromarray(COLOUR), format), "x")
    with pytest.raises(SlideError, match="16 x 16 px"):
        decode_image(tif(COLOUR, photometric="rgb", compression="jpeg2000"), "x")


def test_only_a_microscopes_tif_resolution_is_believed():
    def stated(compression=None, **resolution):
        return decode_image(tif(COLOUR, photometric="rgb", compression=compression, **resolution), "x")[1]

    unequal = {"resolution": (20_000, 40_000), "resolutionunit": "CENTIMETER"}
    inch = {"resolution": (101_600, 101_600), "resolutionunit": "INCH"}
    for compression in (None, "jpeg2000"):  # decoded by Pillow, and by tifffile
        assert stated(compression, **unequal) == pytest.approx((0.5, 0.25, "stated"))
        assert stated(compression, **inch) == pytest.approx((0.25, 0.25, "stated"))
        assert stated(compression, resolution=(600, 600), resolutionunit="INCH") is None
    assert decode_image(encoded(Image.fromarray(COLOUR), "JPEG", dpi=(101_600, 101_600)), "x")[1] is None


def turned_by_tag(pixels, orientation, format) -> bytes:
    if format == "TIFF":
        photometric = "rgb" if pixels.ndim == 3 else "minisblack"
        return tif(pixels, photometric=photometric, extratags=[(274, "H", 1, orientation, True)])
    exif = Image.Exif()
    exif[274] = orientation
    lossless = {"lossless": True} if format == "WEBP" else {}
    return encoded(Image.fromarray(pixels), format, exif=exif, **lossless)


@pytest.mark.parametrize("format", ["TIFF", "PNG", "WEBP", "JPEG"])
@pytest.mark.parametrize("orientation", range(9))
def test_a_picture_and_its_mask_are_turned_alike_and_as_pillow_does(format, orientation):
    wide = np.full((32, 48, 3), 240, np.uint8)
    wide[:16, :16] = (120, 40, 140)  # whole blocks of a JPEG
    stored = Image.open(io.BytesIO(turned_by_tag(wide, orientation, "PNG")))
    expected = np.asarray(ImageOps.exif_transpose(stored)).astype(int)
    found = pixels_of(turned_by_tag(wide, orientation, format)).astype(int)
    assert found.shape == expected.shape and np.abs(found - expected).mean() <= (2 if format == "JPEG" else 0)
    mask = np.zeros((32, 48), np.uint8)
    mask[:16, :16] = 3
    labels = decode_labels(turned_by_tag(mask, orientation, "TIFF" if format == "JPEG" else format), "x")
    np.testing.assert_array_equal(labels == 3, np.abs(expected - (120, 40, 140)).sum(axis=2) == 0)


def test_malformed_camera_settings_refuse_no_good_pixels():
    np.testing.assert_array_equal(pixels_of(encoded(Image.fromarray(COLOUR), "PNG", exif=b"Exif\0\0no tif at all")), COLOUR)


def test_min_is_white_is_inverted_at_every_depth_in_pictures_and_masks():
    grey, white = np.maximum(RAMP, 64), {"photometric": "miniswhite", "software": "a scanner"}
    np.testing.assert_array_equal(pixels_of(tif(255 - grey, **white)), grey_as_rgb(grey))
    np.testing.assert_array_equal(pixels_of(tif(65535 - grey.astype(np.uint16) * 257, **white)), grey_as_rgb(grey))
    np.testing.assert_array_equal(pixels_of(tif(RAMP < 99, **white)), grey_as_rgb(np.where(RAMP < 99, 0, 255)))
    ids = (RAMP % 7).astype(np.uint16)
    np.testing.assert_array_equal(decode_labels(tif(255 - ids.astype(np.uint8), **white), "x"), ids)
    np.testing.assert_array_equal(decode_labels(tif(65535 - ids * 300, **white), "x"), ids * 300)
    np.testing.assert_array_equal(decode_labels(tif(ids == 0, **white), "x"), ids > 0)
    with pytest.raises(SlideError, match="holds int16 and says MinIsWhite"):
        decode_labels(tif(ids.astype(np.int16), **white), "x")


def test_programs_that_say_min_is_white_and_store_what_they_mean():
    ids = np.where(RAMP % 3 == 0, 255, 0).astype(np.uint8)
    np.testing.assert_array_equal(decode_labels(tif(ids, photometric="miniswhite", imagej=True), "x"), ids)
    np.testing.assert_array_equal(decode_labels(tif(ids > 0), "x"), ids > 0)  # tifffile's own way with bool


@pytest.mark.parametrize("extra", [["unspecified"], ["unspecified", "unspecified"]])
def test_an_extra_sample_that_is_no_alpha_is_left_out(extra):
    samples = np.dstack([COLOUR, *[RAMP] * len(extra)])
    np.testing.assert_array_equal(pixels_of(tif(samples, photometric="rgb", extrasamples=extra)), COLOUR)
    labels = np.dstack([RAMP, *[RAMP.T] * len(extra)])
    planes = {"photometric": "minisblack", "planarconfig": "contig", "extrasamples": extra}
    np.testing.assert_array_equal(decode_labels(tif(labels, **planes), "x"), RAMP)


def test_alpha_of_a_tif_is_composed_as_its_kind_wants():
    alpha = np.full((16, 16), 128, np.uint8)
    over = on_white(np.dstack([COLOUR, alpha]))
    straight = tif(np.dstack([COLOUR, alpha]), photometric="rgb", extrasamples=["unassalpha"])
    np.testing.assert_array_equal(pixels_of(straight), over)
    multiplied = (COLOUR.astype(float) * 128 / 255).round().astype(np.uint8)
    associated = tif(np.dstack([multiplied, alpha]), photometric="rgb", extrasamples=["assocalpha"])
    assert np.abs(pixels_of(associated).astype(int) - over).max() <= 1
    deep = tif(np.dstack([COLOUR, alpha]).astype(np.uint16) * 257, photometric="rgb", extrasamples=["unassalpha"])
    np.testing.assert_array_equal(pixels_of(deep), over)


def test_planes_of_one_page_and_a_palette_of_a_tif():
    planes = np.ascontiguousarray(np.moveaxis(COLOUR, 2, 0))
    np.testing.assert_array_equal(pixels_of(tif(planes, photometric="rgb", planarconfig="separate")), COLOUR)
    palette = Image.fromarray(COLOUR).quantize(16)
    data = encoded(palette, "TIFF")
    np.testing.assert_array_equal(pixels_of(data), np.asarray(palette.convert("RGB")))
    np.testing.assert_array_equal(decode_labels(data, "x"), np.asarray(palette))


def test_samples_that_may_be_colours_are_refused():
    with pytest.raises(SlideError, match="3 samples of MINISBLACK .* of which nothing says that they are colours"):
        decode_image(tif(COLOUR, photometric="minisblack", planarconfig="contig"), "x")
    with pytest.raises(SlideError, match="3 samples of CIELAB"):
        decode_image(tif(COLOUR, photometric="cielab"), "x")
    with pytest.raises(SlideError, match="a mask in SEPARATED"):
        decode_labels(tif(np.dstack([COLOUR, RAMP]), photometric="separated"), "x")


def deep_png(pixels) -> bytes:
    return imagecodecs.png_encode(pixels)


def test_16_bits_of_a_png_in_colour():
    deep = COLOUR.astype(np.uint16) * 257
    np.testing.assert_array_equal(pixels_of(deep_png(deep)), COLOUR)
    opaque = np.dstack([deep, np.full((16, 16), 65535, np.uint16)])
    np.testing.assert_array_equal(pixels_of(deep_png(opaque)), COLOUR)
    ids = RAMP.astype(np.uint16) * 200
    np.testing.assert_array_equal(decode_labels(deep_png(grey_as_rgb(ids)), "x"), ids)


def test_a_12_bit_camera_in_16_bits_is_scaled_where_the_file_says_so_and_refused_where_not():
    deep = RAMP.astype(np.uint16) * 16
    said = tif(deep, extratags=[(281, "H", 1, 4095, True)])
    np.testing.assert_array_equal(pixels_of(said), grey_as_rgb(RAMP))
    significant = tif(deep, ome=True, metadata={"axes": "YX", "SignificantBits": 12})
    np.testing.assert_array_equal(pixels_of(significant), grey_as_rgb(RAMP))
    for data in (tif(deep), deep_png(grey_as_rgb(deep)), encoded(Image.fromarray(deep), "PNG")):
        with pytest.raises(SlideError, match="16 bits reach only 4,080 of 65,535: is it from a camera of 12 bits"):
            decode_image(data, "x")
    np.testing.assert_array_equal(decode_labels(tif(deep), "x"), deep)
    assert (pixels_of(tif(np.zeros((8, 8), np.uint16))) == 0).all(), "black is black at any depth"


@pytest.mark.parametrize("bits", [2, 4])
def test_few_bits_are_spread_in_pictures_and_not_in_masks(bits):
    ids = RAMP % 2**bits
    packed = np.packbits(np.unpackbits(ids[..., None], axis=2)[..., -bits:].reshape(16, -1), axis=1)
    rows = b"".join(b"\0" + row.tobytes() for row in packed)

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 16, 16, bits, 0, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    np.testing.assert_array_equal(decode_labels(data, "x"), ids)
    np.testing.assert_array_equal(pixels_of(data), grey_as_rgb(ids * (255 // (2**bits - 1))))


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_an_animation_is_refused(format):
    frames = Image.fromarray(COLOUR), Image.fromarray(255 - COLOUR)
    data = encoded(frames[0], format, save_all=True, append_images=[frames[1]])
    for decode in (decode_image, decode_labels):
        with pytest.raises(SlideError, match="an animation of 2 frames"):
            decode(data, "x")


def test_the_preview_behind_a_cameras_jpeg_does_not_count():
    even = Image.new("RGB", (32, 32), (200, 30, 90))
    data = encoded(even, "MPO", save_all=True, append_images=[Image.new("RGB", (32, 32))], quality=95)
    assert np.abs(pixels_of(data).astype(int) - (200, 30, 90)).max() < 4


# Mean difference to the tile as a png, of what can be read; the others are refused.
ENCODED = {
    "JPEG_Baseline": 1.1,
    "JPEG_Lossless": 0,
    "JPEG_2000_Image_Compression-": 0.5,
    "JPEG_2000_Image_Compression__Lossless": 0,
}


def test_a_real_tile_in_the_encodings_of_dicom(shared_data):
    folder = shared_data("slides_mini") / "encoded"
    tile = np.asarray(Image.open(folder / "test_tile.png")).astype(int)
    grey = np.asarray(Image.open(folder / "test_tile.png").convert("L")).astype(int)
    num_read = 0
    for path in sorted(folder.iterdir()):
        limit = next((limit for start, limit in ENCODED.items() if path.name.startswith(start)), None)
        if path.suffix == ".png":
            continue
        if limit is None:
            with pytest.raises(SlideError, match=f"{path.name}: cannot be decoded: is no PNG, JPEG"):
                decode_image(path, path.name)
            continue
        pixels = decode_image(path, path.name)[0]
        truth = grey[..., None] if "GRAYSCALE" in path.name else tile
        assert np.abs(pixels - truth).mean() <= limit, path.name
        num_read += 1
    assert num_read == 12


def test_a_tif_of_luma_and_chroma_without_jpeg_is_read_in_colour_and_turned():
    seen = np.full((32, 48, 3), 240, np.uint8)
    seen[:16, :16] = (120, 40, 140)
    stored = Image.fromarray(np.ascontiguousarray(np.rot90(seen))).convert("YCbCr")
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[274] = 6
    assert np.abs(pixels_of(encoded(stored, "TIFF", tiffinfo=tags)).astype(int) - seen).max() <= 2
