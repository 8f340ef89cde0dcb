"""What decoded samples mean, whatever file they came from: orientation, bits, alpha, and one number per pixel in a mask."""

import numpy as np

from csat.errors import DatasetError, SlideError

MAX_IMAGE_PX = 80_000_000  # 240 MB decoded; more is a decompression bomb, or belongs into a pyramid. Below Pillow's own limit
# A 16-bit picture that stays below a quarter of white comes from a camera of 10 to 14 bits (or shows nothing): its high byte
# would be nearly black, and its true white is anybody's guess.
DARKEST_PEAK = 2**14


def check_size(width: int, height: int, name: str) -> None:
    """Refuse, before anything is decoded, what has more than `MAX_IMAGE_PX`. Raises SlideError "unreadable"."""
    if width * height > MAX_IMAGE_PX:
        raise SlideError(
            "unreadable",
            f"{name}: {width} x {height} px in one level are more than the {MAX_IMAGE_PX:,} that are decoded at once (a "
            "decompression bomb?); if it is a slide, save it as a tiled, pyramidal tif",
        )


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels as their Orientation tag (TIFF and EXIF, number 274) wants them to be seen.

    Args:
        pixels: `[H, W, …]`, rows and columns as they are stored.
        orientation: 1 to 8; another number says nothing, as every viewer holds.

    Returns:
        `[H, W, …]`, or `[W, H, …]` from 5 on; in C order.
    """
    if orientation not in range(2, 9):
        return pixels
    upright = np.swapaxes(pixels, 0, 1) if orientation >= 5 else pixels
    if orientation in (3, 4, 7, 8):  # the first row is seen at the bottom
        upright = upright[::-1]
    if orientation in (2, 3, 6, 7):  # the first column is seen on the right
        upright = upright[:, ::-1]
    return np.ascontiguousarray(upright)


def to_8_bits(samples: np.ndarray, bits: int, name: str) -> np.ndarray:
    """Samples of a picture, of any depth, as uint8: its upper 8 bits, or all of fewer spread over 0 to 255.

    Args:
        samples: Unsigned integers or bool, any shape, colours only (an alpha of 65535 would hide that they are dark).
        bits: That the file says to be in use, at most those of the dtype.
        name: Named in the errors.

    Raises:
        SlideError: "unreadable": floats, signed or 32-bit integers, or 16 bits of which the upper ones are not used.
    """
    if samples.dtype == bool:
        return samples.astype(np.uint8) * 255
    if samples.dtype.kind == "f":
        raise SlideError("unreadable", f"{name}: holds floats, whose range is anybody's guess; save it as 8-bit RGB")
    if samples.dtype.kind != "u" or samples.dtype.itemsize > 2:
        sign = "" if samples.dtype.kind == "u" else "signed "
        size = 8 * samples.dtype.itemsize
        raise SlideError("unreadable", f"{name}: holds {sign}{size}-bit integers ({samples.dtype}); save it as 8-bit RGB")
    if bits < 8:
        return (samples.astype(np.uint16) * 255 // (2**bits - 1)).astype(np.uint8)
    if samples.dtype == np.uint8:
        return samples
    peak = int(samples.max(initial=0))
    if bits == 16 and 0 < peak < DARKEST_PEAK:
        raise SlideError(
            "unreadable",
            f"{name}: its 16 bits reach only {peak:,} of 65,535: is it from a camera of {max(10, peak.bit_length())} bits? "
            "Save it as 8-bit RGB, scaled so that white is 255",
        )
    if peak >= 2**bits:
        raise SlideError("unreadable", f"{name}: states {bits} bits and holds {peak:,}; save it as 8-bit RGB")
    return (samples >> (bits - 8)).astype(np.uint8)


def on_white(rgba: np.ndarray, *, premultiplied: bool = False) -> np.ndarray:
    """RGBA composed on white.

    Args:
        rgba: uint8 `[H, W, 4]`.
        premultiplied: Whether the colours are already multiplied by alpha (TIFF: associated alpha).

    Returns:
        uint8 `[H, W, 3]`.
    """
    if rgba[..., 3].min(initial=255) == 255:
        rgb = np.empty((*rgba.shape[:2], 3), np.uint8)
        for channel in range(3):  # six times faster than a copy of [..., :3]
            rgb[..., channel] = rgba[..., channel]
        return rgb
    alpha = rgba[..., 3:].astype(np.uint16)
    if premultiplied:
        return np.minimum(rgba[..., :3] + (255 - alpha), 255).astype(np.uint8)
    return ((rgba[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def grey_to_rgb(grey: np.ndarray) -> np.ndarray:
    """uint8 `[H, W]` or `[H, W, 1]` → `[H, W, 3]`."""
    return np.repeat(grey.reshape(*grey.shape[:2], 1), 3, axis=2)


def lossy_mask(name: str) -> DatasetError:
    """The error of a mask in a format with loss. It is a fault of the set, not of the file."""
    return DatasetError(
        f"{name}: is stored with loss (as JPEG stores a picture), which changes a mask's numbers and leaves others between "
        "them: save it from its source as png"
    )


def one_number(pixels: np.ndarray, name: str) -> np.ndarray:
    """The numbers of a mask.

    Args:
        pixels: `[H, W]` or `[H, W, C]` without alpha; several channels are taken where all say the same.
        name: Named in the errors.

    Returns:
        Integers `[H, W]`; bool becomes uint8 of 0 and 1.

    Raises:
        SlideError: "unreadable": colours, floats.
    """
    numbers = pixels
    if numbers.ndim == 3 and numbers.shape[2] in (1, 3) and (numbers == numbers[..., :1]).all():
        numbers = numbers[..., 0]
    if numbers.ndim != 2 or numbers.dtype.kind not in "uib":
        shape = " x ".join(map(str, pixels.shape))
        raise SlideError(
            "unreadable",
            f"{name}: a mask holds one whole number per pixel, and this is {pixels.dtype} {shape}; save it with one channel "
            "of 8 or 16 bits",
        )
    return numbers.astype(np.uint8) if numbers.dtype == bool else np.ascontiguousarray(numbers)
