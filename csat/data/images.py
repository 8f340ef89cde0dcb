"""Images with a single level: decoded to 8-bit RGB whatever their mode, and read as slides are."""

import io
import warnings
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import tifffile
from PIL import Image

from csat.data.mpp import Mpp, mpp_of_tags
from csat.errors import SlideError

MAX_IMAGE_PX = 80_000_000  # 240 MB decoded; more is a decompression bomb, or belongs into a pyramid. Below Pillow's own limit


class Level(NamedTuple):
    """One level of a slide's pyramid."""

    width_px: int
    height_px: int
    downsample: float  # level-0 pixels per pixel of this level


class ImageReader:
    """A decoded image behind the methods of `csat.data.slides.SlideReader`."""

    kind = "image"
    num_rows = 1

    def __init__(self, pixels: np.ndarray, resolution: Mpp | None):
        """
        Args:
            pixels: uint8 `[H, W, 3]`, RGB.
            resolution: None where not known.
        """
        self._pixels = pixels
        self.resolution = resolution
        self.mpp = resolution and resolution.mean
        self.levels = [Level(pixels.shape[1], pixels.shape[0], 1.0)]

    @property
    def num_bytes(self) -> int:
        return self._pixels.nbytes

    def read(self, x_px: int, y_px: int, level: int, size_px: int | tuple[int, int], *, row: int = 0) -> np.ndarray:
        """See `SlideReader.read`."""
        assert level == 0 and row == 0, (level, row)
        width_px, height_px = (size_px, size_px) if isinstance(size_px, int) else size_px
        height, width = self._pixels.shape[:2]
        left, right = np.clip([x_px, x_px + width_px], 0, width)
        top, bottom = np.clip([y_px, y_px + height_px], 0, height)
        if (right - left, bottom - top) == (width_px, height_px):
            return self._pixels[top:bottom, left:right].copy()
        out = np.full((height_px, width_px, 3), 255, np.uint8)
        out[top - y_px : bottom - y_px, left - x_px : right - x_px] = self._pixels[top:bottom, left:right]
        return out

    def thumbnail(self, max_px: int) -> np.ndarray:
        """See `SlideReader.thumbnail`."""
        height, width = self._pixels.shape[:2]
        scale = max_px / max(height, width)
        if scale >= 1:
            return self._pixels.copy()
        size = max(1, round(width * scale)), max(1, round(height * scale))
        return cv2.resize(self._pixels, size, interpolation=cv2.INTER_AREA)

    def close(self) -> None:
        """Nothing to close; the pixels go with the object."""


def decode_image(source: bytes | Path, name: str) -> tuple[np.ndarray, Mpp | None]:
    """Pixels of an encoded image, and what it says of its resolution.

    Grey, palette, CMYK and 16-bit images become 8-bit RGB (16 bits by their high byte: 65535 is white); alpha is composed on
    white. Of several pages or frames the first one counts. Only tif states a resolution, see `mpp_of_tags`.

    Args:
        source: The encoded bytes, or a local file.
        name: Named in the errors.

    Returns:
        uint8 `[H, W, 3]`, RGB; and what the file states of its resolution, or None.

    Raises:
        SlideError: "unreadable": empty, truncated, no image, too large to decode, floats, 32-bit integers.
    """
    num_bytes = len(source) if isinstance(source, bytes) else source.stat().st_size
    if num_bytes == 0:
        raise SlideError("unreadable", f"{name}: is empty (0 bytes)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own, lower limit follows
            image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
        with image:
            _check_size(*image.size, name)
            if image.format == "TIFF" and image.mode[0] in "RC" and max(image.tag_v2.get(258, (8,))) > 8:
                return _decode_tif(source, name)  # Pillow 13.0 mistakes planar 16-bit colour for 8-bit
            tags = getattr(image, "tag_v2", {})
            return _to_rgb(image, name), mpp_of_tags(tags.get(282), tags.get(283), tags.get(296, 2))
    except SlideError:
        raise
    except (
        Exception
    ) as error:  # Pillow's plugins raise whatever their format's parser meets: OSError, SyntaxError, struct.error
        head = source[:4] if isinstance(source, bytes) else _head(source)
        if head[:2] in (b"II", b"MM") and not isinstance(error, Image.DecompressionBombError):
            return _decode_tif(source, name)
        raise SlideError("unreadable", f"{name}: cannot be decoded: {type(error).__name__}: {error}") from error


def on_white(rgba: np.ndarray) -> np.ndarray:
    """RGBA composed on white.

    Args:
        rgba: uint8 `[H, W, 4]`, colours not premultiplied.

    Returns:
        uint8 `[H, W, 3]`.
    """
    if rgba[..., 3].min(initial=255) == 255:
        return cv2.cvtColor(rgba, cv2.COLOR_RGBA2RGB)
    alpha = rgba[..., 3:].astype(np.uint16)
    return ((rgba[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def _check_size(width: int, height: int, name: str) -> None:
    if width * height > MAX_IMAGE_PX:
        raise SlideError(
            "unreadable",
            f"{name}: {width} x {height} px in one level are more than the {MAX_IMAGE_PX:,} that are decoded at once (a "
            "decompression bomb?); if it is a slide, save it as a tiled, pyramidal tif",
        )


def _to_rgb(image: Image.Image, name: str) -> np.ndarray:
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _grey_to_rgb(np.asarray(image), name)
    if image.mode == "F":
        raise SlideError("unreadable", f"{name}: holds floats, whose range is anybody's guess; save it as 8-bit RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info:
        return on_white(np.asarray(image.convert("RGBA")))
    return np.array(image.convert("RGB"))


def _grey_to_rgb(grey: np.ndarray, name: str) -> np.ndarray:
    if grey.min() < 0 or grey.max() > 65535:
        raise SlideError("unreadable", f"{name}: holds 32-bit integers; save it as 8-bit RGB")
    return np.repeat((grey.astype(np.uint16) >> 8).astype(np.uint8)[..., None], 3, axis=2)


def _decode_tif(source: bytes | Path, name: str) -> tuple[np.ndarray, Mpp | None]:
    """What Pillow cannot decode tifffile often can: odd compressions, planar or 16-bit colour."""
    try:
        with tifffile.TiffFile(io.BytesIO(source) if isinstance(source, bytes) else source) as file:
            page = file.pages[0]
            _check_size(page.imagewidth, page.imagelength, name)
            if page.photometric not in (1, 2, 6):  # grey, RGB, YCbCr (which tifffile turns into RGB)
                raise SlideError(
                    "unreadable", f"{name}: a tif with {page.photometric!r} in {page.dtype}; save it as 8-bit RGB"
                )
            pixels, mpp = page.asarray(), mpp_of_tags(*page.resolution, int(page.resolutionunit))
    except SlideError:
        raise
    except Exception as error:  # as for Pillow
        raise SlideError("unreadable", f"{name}: cannot be decoded: {type(error).__name__}: {error}") from error
    if pixels.ndim == 3 and pixels.shape[0] in (3, 4) and pixels.shape[2] not in (3, 4):
        pixels = np.moveaxis(pixels, 0, 2)  # planar
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    if pixels.dtype != np.uint8 or pixels.shape[2:] not in ((), (1,), (3,), (4,)):
        raise SlideError("unreadable", f"{name}: holds {pixels.dtype} {pixels.shape}; save it as 8-bit RGB")
    if pixels.ndim == 2 or pixels.shape[2] == 1:
        pixels = np.repeat(pixels.reshape(*pixels.shape[:2], 1), 3, axis=2)
    return (on_white(pixels) if pixels.shape[2] == 4 else np.ascontiguousarray(pixels)), mpp


def _head(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(4)
