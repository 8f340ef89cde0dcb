"""The one door to pixels: whoever opens a picture or a mask calls `decode_image` or `decode_labels`.

Both follow the same tags, so that what turns, mirrors or inverts a picture does the same to its mask. What a file leaves open
(a stack of planes, an animation, floats, a 12-bit camera's picture in 16 bits) is refused with the reason, never guessed.
"""

import io
import warnings
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path

import imagecodecs
import numpy as np
from PIL import ExifTags, Image

from csat.errors import DatasetError, SlideError
from csat.slides.mpp import Mpp
from csat.slides.raster import check_size, grey_to_rgb, lossy_mask, on_white, one_number, to_8_bits, turned
from csat.slides.tifs import decode_tif, decode_tif_labels, is_tif

# What Pillow is asked to recognise; a tif goes to `csat.slides.tifs`.
PICTURES = ("PNG", "JPEG", "BMP", "DIB", "GIF", "WEBP", "JPEG2000", "AVIF", "PPM")
LABELS = ("PNG", "JPEG", "BMP", "DIB", "GIF", "WEBP")  # without those whose numbers Pillow scales to their depth
EXIF_PLACES = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")  # where Pillow's getexif looks for an orientation
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
HEAD_BYTES = 26  # up to a PNG's bit depth and colour type
PNG_GREY, PNG_COLOUR, PNG_GREY_ALPHA, PNG_COLOUR_ALPHA = 0, 2, 4, 6  # colour types


def decode_image(source: bytes | Path, name: str) -> tuple[np.ndarray, Mpp | None]:
    """Pixels of an encoded picture as it is meant to be seen, and what it says of its resolution.

    Turned by its Orientation (TIFF, EXIF). Grey, palette and CMYK become RGB; of 16 bits the upper 8 count; alpha is composed
    on white. In a tif with several pages it is the full resolution, as `csat.slides.tifs` finds it. Only a tif states a
    resolution, see `mpp_of_tags`.

    Args:
        source: The encoded bytes, or a local file.
        name: Named in the errors.

    Returns:
        uint8 `[H, W, 3]`, RGB; and what the file states of its resolution, or None.

    Raises:
        SlideError: "unreadable": empty, truncated, no picture, too large to decode, or its meaning is open.
    """
    head = _head(source, name)
    if is_tif(head):
        return decode_tif(source, name)
    with _opened(source, name, PICTURES) as image:
        # Pillow decodes 16-bit colour as its high bytes, and says nothing of a camera that used only 12 of them.
        pixels = _deep_rgb(_deep_png(source), name) if _is_deep_colour_png(head) else _to_rgb(image, name)
        return turned(pixels, _orientation(image)), None


def decode_labels(source: bytes | Path, name: str) -> np.ndarray:
    """The numbers of a mask as they stand in the file, turned and inverted by the tags that turn and invert a picture.

    A palette gives its indices, not its colours; 16 bits stay 16 bits, 1 to 4 bits are not spread; alpha is no label. A mask
    that was saved in colour is taken where its three channels say the same.

    Args:
        source: The encoded bytes, or a local file: png, bmp, gif, tif or lossless webp.
        name: Named in the errors.

    Returns:
        Integers `[H, W]` (a 1-bit mask becomes uint8 of 0 and 1).

    Raises:
        SlideError: "unreadable": as `decode_image`; also colours.
        DatasetError: a format with loss.
    """
    head = _head(source, name)
    if is_tif(head):
        return decode_tif_labels(source, name)
    with _opened(source, name, LABELS) as image:
        if image.format in ("JPEG", "MPO") or (image.format == "WEBP" and _is_lossy_webp(source)):
            raise lossy_mask(name)
        if image.mode not in ("1", "L", "LA", "P", "PA", "I;16", "RGB", "RGBA"):
            raise SlideError("unreadable", f"{name}: a mask in {image.mode}; save it with one channel of 8 or 16 bits")
        pixels = _deep_png(source) if _is_deep_colour_png(head) else np.array(image)
        if pixels.ndim == 3 and pixels.shape[2] in (2, 4):
            pixels = pixels[..., :-1]
        return turned(one_number(_not_spread(pixels, head), name), _orientation(image))


@contextmanager
def _opened(source: bytes | Path, name: str, formats: Sequence[str]):
    """A picture that Pillow reads, of a size that may be decoded, and of one frame. Whatever goes wrong is a SlideError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own, lower limit follows
            image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=formats)
        with image:
            check_size(*image.size, name)
            if image.format != "MPO" and getattr(image, "is_animated", False):  # MPO: a JPEG with a preview behind it
                raise SlideError("unreadable", f"{name}: is an animation of {image.n_frames} frames; save the one that counts")
            yield image
    except (SlideError, DatasetError):
        raise
    except Image.UnidentifiedImageError as error:
        raise SlideError("unreadable", f"{name}: cannot be decoded: is no {', '.join(formats)} or TIFF") from error
    except Exception as error:  # Pillow's plugins raise whatever their parser meets: OSError, SyntaxError, struct.error
        raise SlideError("unreadable", f"{name}: cannot be decoded: {type(error).__name__}: {error}") from error


def _orientation(image: Image.Image) -> int:
    image.load()  # a PNG may say it behind its pixels
    if not any(name in image.info for name in EXIF_PLACES):
        return 1  # nearly every tile: not worth an empty Exif object
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of malformed settings of a camera, which are no reason to refuse good pixels
            return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # as for Pillow's plugins
        return 1


def _to_rgb(image: Image.Image, name: str) -> np.ndarray:
    if image.mode == "I" or image.mode.startswith("I;16"):
        grey = np.asarray(image)
        if image.format == "PPM":  # scaled to 16 bits by its own maximum
            grey = grey.astype(np.uint16)
        return grey_to_rgb(to_8_bits(grey, 16, name))
    if image.mode == "F":
        return to_8_bits(np.asarray(image), 32, name)  # refused
    if image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info:
        return on_white(np.asarray(image.convert("RGBA")))
    return np.array(image.convert("RGB"))


def _is_deep_colour_png(head: bytes) -> bool:
    return head.startswith(PNG_SIGNATURE) and head[24] == 16 and head[25] in (PNG_COLOUR, PNG_GREY_ALPHA, PNG_COLOUR_ALPHA)


def _is_lossy_webp(source: bytes | Path) -> bool:
    return b"VP8 " in _whole(source)[12:]  # a lossless one has VP8L


def _deep_png(source: bytes | Path) -> np.ndarray:
    """uint16 `[H, W, C]`."""
    return imagecodecs.png_decode(_whole(source))


def _deep_rgb(samples: np.ndarray, name: str) -> np.ndarray:
    num_colours = 3 if samples.shape[2] >= 3 else 1
    colours = to_8_bits(samples[..., :num_colours], 16, name)
    rgb = grey_to_rgb(colours) if num_colours == 1 else colours
    if samples.shape[2] == num_colours:
        return np.ascontiguousarray(rgb)
    return on_white(np.dstack([rgb, (samples[..., -1] >> 8).astype(np.uint8)]))


def _not_spread(numbers: np.ndarray, head: bytes) -> np.ndarray:
    """Pillow spreads the 2 or 4 bits of a grey PNG over 0 to 255."""
    if head.startswith(PNG_SIGNATURE) and head[24] in (2, 4) and head[25] == PNG_GREY:
        return numbers // (255 // (2 ** head[24] - 1))
    return numbers


def _whole(source: bytes | Path) -> bytes:
    return source if isinstance(source, bytes) else source.read_bytes()


def _head(source: bytes | Path, name: str) -> bytes:
    if isinstance(source, bytes):
        head = source[:HEAD_BYTES]
    else:
        with open(source, "rb") as file:
            head = file.read(HEAD_BYTES)
    if not head:
        raise SlideError("unreadable", f"{name}: is empty (0 bytes)")
    return head
