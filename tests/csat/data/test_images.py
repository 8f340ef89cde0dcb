"""Every mode of image that people have becomes 8-bit RGB, and what is no image says so."""

import io
import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from csat.data import images
from csat.data.images import ImageReader, decode_image, on_white
from csat.errors import SlideError

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
        (b"no image at all", "tile-7: cannot be decoded: UnidentifiedImageError"),
        (encoded(Image.fromarray(COLOUR), "PNG")[:-40], "tile-7: cannot be decoded"),
        (encoded(Image.fromarray(np.tile(COLOUR, (20, 20, 1))), "JPEG")[:2000], "tile-7: cannot be decoded.*truncated"),
        (tif(np.tile(COLOUR, (20, 20, 1)), photometric="rgb")[:9000], "tile-7: cannot be decoded"),
        (b"II*\x00\x08\x00\x00\x00", "tile-7: cannot be decoded"),
        (tif(np.zeros((8, 8), np.float32)), "tile-7: holds floats"),
        (tif(np.full((8, 8), 2**20, np.int32)), "tile-7: holds 32-bit integers"),
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
    monkeypatch.setattr(images, "MAX_IMAGE_PX", 200)
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


def test_reading_over_the_border_gives_white():
    reader = ImageReader(COLOUR, None)
    out = reader.read(-4, 10, 0, 12)
    assert (out[:, :4] == 255).all() and (out[6:] == 255).all()
    np.testing.assert_array_equal(out[:6, 4:], COLOUR[10:, :8])
    assert (reader.read(100, -100, 0, (3, 2)) == 255).all() and reader.read(0, 0, 0, (3, 2)).shape == (2, 3, 3)


def test_a_tile_is_not_a_view_of_the_image():
    reader = ImageReader(COLOUR.copy(), None)
    reader.read(0, 0, 0, 16)[:] = 0
    np.testing.assert_array_equal(reader.read(0, 0, 0, 16), COLOUR)


def test_thumbnail_keeps_the_aspect_and_never_enlarges():
    reader = ImageReader(np.full((100, 400, 3), 77, np.uint8), None)
    assert reader.thumbnail(40).shape == (10, 40, 3) and (reader.thumbnail(40) == 77).all()
    assert reader.thumbnail(4000).shape == (100, 400, 3)
