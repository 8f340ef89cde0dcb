"""What the samples of a tif mean: light or ink, numbers or colours, alpha or something else. See `tif_pages` for which counts.

Extra samples that are not said to be alpha are left out.
"""

import io
from pathlib import Path

import numpy as np
from PIL import Image
from tifffile import COMPRESSION, PHOTOMETRIC, TiffPage

from csat.errors import SlideError
from csat.slides.mpp import Mpp, mpp_of_tags
from csat.slides.raster import check_size, grey_to_rgb, lossy_mask, on_white, one_number, to_8_bits, turned
from csat.slides.tif_pages import TifPicture, find_picture, opened_tif, orientation_of

MAGIC = (b"II*\0", b"II+\0", b"MM\0*", b"MM\0+")  # classic and BigTIFF, of both byte orders
COLOR_MAP, INK_SET = 320, 332  # tags
CMYK_INKS = 1  # of the tag InkSet
ASSOCIATED, UNASSOCIATED = 1, 2  # of the tag ExtraSamples: the kinds of alpha
JPEG = (COMPRESSION.JPEG, COMPRESSION.ALT_JPEG)  # their decoder turns YCbCr into RGB
LOSSY = (*JPEG, COMPRESSION.OJPEG, COMPRESSION.JPEG_LOSSY, COMPRESSION.JPEG_2000_LOSSY)  # always
# Samples of a pixel before the extra ones, of each photometric interpretation that is read, in pictures and in masks.
NUM_COLOURS = {
    PHOTOMETRIC.MINISWHITE: 1,
    PHOTOMETRIC.MINISBLACK: 1,
    PHOTOMETRIC.PALETTE: 1,
    PHOTOMETRIC.RGB: 3,
    PHOTOMETRIC.YCBCR: 3,
    PHOTOMETRIC.SEPARATED: 4,
}
LABEL_CHANNELS = {
    PHOTOMETRIC.MINISWHITE: 1,
    PHOTOMETRIC.MINISBLACK: 1,
    PHOTOMETRIC.PALETTE: 1,
    PHOTOMETRIC.MASK: 1,
    PHOTOMETRIC.RGB: 3,
}
GENERIC = "generic-tiff"  # OpenSlide's name of a tif of no vendor
FREE_VENDORS = (GENERIC, "aperio")  # what anybody's program writes; the others are written by scanners alone


def is_tif(head: bytes) -> bool:
    """Whether a file that begins with these bytes is a tif."""
    return head[:4] in MAGIC


def decode_tif(source: bytes | Path, name: str) -> tuple[np.ndarray, Mpp | None]:
    """See `csat.slides.pixels.decode_image`."""
    with opened_tif(source, name) as file:
        picture = find_picture(file, name)
        page = picture.page
        check_size(page.imagewidth, page.imagelength, name)
        mpp = mpp_of_tags(*page.resolution, int(page.resolutionunit))
        if page.photometric == PHOTOMETRIC.YCBCR and page.compression not in JPEG:
            return _by_pillow(source, page.index), mpp
        samples = np.concatenate([_samples(plane) for plane in picture.planes or (page,)], axis=2)
        return turned(_to_rgb(samples, picture, name), orientation_of(page)), mpp


def decode_tif_labels(source: bytes | Path, name: str) -> np.ndarray:
    """See `csat.slides.pixels.decode_labels`."""
    with opened_tif(source, name) as file:
        picture = find_picture(file, name)
        page = picture.page
        check_size(page.imagewidth, page.imagelength, name)
        num_channels = LABEL_CHANNELS.get(page.photometric, 0)
        if page.compression in LOSSY:
            raise lossy_mask(name)
        if picture.planes or num_channels == 0:
            what = "three planes" if picture.planes else _called(page)
            raise SlideError("unreadable", f"{name}: a mask in {what}; save it with one channel of 8 or 16 bits")
        labels = _samples(page)[..., :num_channels]
        if page.photometric == PHOTOMETRIC.MINISWHITE and not _keeps_numbers(page):
            labels = _inverted(labels, page.bitspersample, name)
        return turned(one_number(labels, name), orientation_of(page))


def why_not_openslide(path: Path, vendor: str, name: str) -> str | None:
    """Why OpenSlide would show a tif otherwise than `decode_image`; None where it may be trusted. No pixel is decoded.

    OpenSlide takes the first page as the full resolution and a fourth sample as alpha, mirrors tile by tile what is to be
    turned, and knows nothing of colours in planes or of bits that are not used.

    Args:
        path: A local file that OpenSlide detects.
        vendor: What it calls the format.
        name: Named in the errors.

    Raises:
        SlideError: "unreadable": as `find_picture`.
    """
    if vendor not in FREE_VENDORS:
        return None
    with opened_tif(path, name) as file:
        page = file.pages.first
        if vendor == GENERIC:
            picture = find_picture(file, name)
            page = picture.page
            if picture.planes:
                return "its colours are planes of their own"
            if page.index != 0:
                return f"its full resolution is page {page.index + 1}"
        if orientation_of(page) != 1:
            return f"its Orientation tag ({orientation_of(page)}) turns it"
        if page.dtype != np.uint8 or page.bitspersample != 8:
            return f"it holds {page.dtype} of {page.bitspersample} bits"
        num_extra = page.samplesperpixel - NUM_COLOURS.get(page.photometric, 0)
        is_alpha = num_extra == 1 and page.extrasamples in ((ASSOCIATED,), (UNASSOCIATED,))
        is_ink = page.photometric == PHOTOMETRIC.SEPARATED
        if page.photometric not in NUM_COLOURS or is_ink or not (num_extra == 0 or is_alpha):
            return f"it holds {page.samplesperpixel} samples of {_called(page)}"
        return None


def _samples(page: TiffPage) -> np.ndarray:
    """Of one page as they are stored, `[H, W, S]`."""
    samples = page.asarray(maxworkers=1)  # a worker has one CPU
    return np.moveaxis(samples, page.axes.index("S"), -1) if "S" in page.axes else samples[..., None]


def _to_rgb(samples: np.ndarray, picture: TifPicture, name: str) -> np.ndarray:
    """uint8 `[H, W, 3]` of samples `[H, W, S]` as they are stored."""
    page = picture.page
    num_colours = 3 if picture.planes else NUM_COLOURS.get(page.photometric, 0)
    colours, extra = samples[..., :num_colours], samples[..., num_colours:]
    if not 0 < num_colours <= samples.shape[2]:
        raise _not_rgb(samples, page, name)
    if page.photometric == PHOTOMETRIC.PALETTE:
        rgb = _palette(page)[colours[..., 0].astype(np.intp)]
    elif page.photometric == PHOTOMETRIC.SEPARATED:
        if samples.dtype != np.uint8 or page.tags.valueof(INK_SET, default=CMYK_INKS) != CMYK_INKS:
            raise _not_rgb(samples, page, name)
        rgb = np.array(Image.fromarray(np.ascontiguousarray(colours), "CMYK").convert("RGB"))
    else:
        if page.photometric == PHOTOMETRIC.MINISWHITE:
            colours = _inverted(colours, picture.bits, name)
        rgb = to_8_bits(colours, picture.bits, name)
        rgb = grey_to_rgb(np.ascontiguousarray(rgb)) if num_colours == 1 else rgb
    return np.ascontiguousarray(_without_extra(rgb, extra, page, name))


def _without_extra(rgb: np.ndarray, extra: np.ndarray, page: TiffPage, name: str) -> np.ndarray:
    """On white where an extra sample is alpha. Refused where it may be alpha, or the rest of the colours."""
    num_extra = extra.shape[2]
    if num_extra == 0:
        return rgb
    kinds = page.extrasamples[-num_extra:]
    alpha = next((index for index, kind in enumerate(kinds) if kind in (ASSOCIATED, UNASSOCIATED)), None)
    if alpha is not None:
        opacity = (extra[..., alpha] >> 8 * (extra.dtype.itemsize - 1)).astype(np.uint8)
        return on_white(np.dstack([rgb, opacity]), premultiplied=kinds[alpha] == ASSOCIATED)
    may_be_alpha = not kinds and extra.min() != extra.max()
    may_be_colour = num_extra >= 2 and NUM_COLOURS[page.photometric] == 1
    if may_be_alpha or may_be_colour:
        raise _not_rgb(extra, page, name)
    return rgb


def _palette(page: TiffPage) -> np.ndarray:
    """uint8 `[2**bits, 3]`."""
    colours = np.asarray(page.tags.valueof(COLOR_MAP)).reshape(3, -1).T
    return (colours >> 8 if colours.max() > 255 else colours).astype(np.uint8)  # some writers fill 8 of the 16 bits


def _inverted(samples: np.ndarray, bits: int, name: str) -> np.ndarray:
    """Of MinIsWhite, whose 0 is what MinIsBlack calls the maximum."""
    if samples.dtype == bool:
        return ~samples
    if samples.dtype.kind != "u":
        raise SlideError("unreadable", f"{name}: holds {samples.dtype} and says MinIsWhite; save it as MinIsBlack")
    return samples.dtype.type(2**bits - 1) - samples


def _keeps_numbers(page: TiffPage) -> bool:
    """Whether the program that wrote it says MinIsWhite and does not invert the numbers that its user works with.

    ImageJ: a mask with an inverting look-up table, which is its default. tifffile: an array of bool.
    """
    return page.is_imagej or (page.bitspersample == 1 and page.software.startswith("tifffile"))


def _by_pillow(source: bytes | Path, page_index: int) -> np.ndarray:
    """YCbCr without JPEG, which tifffile leaves as it is. Pillow turns it, too."""
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=("TIFF",)) as image:
        image.seek(page_index)
        return np.array(image.convert("RGB"))


def _not_rgb(samples: np.ndarray, page: TiffPage, name: str) -> SlideError:
    return SlideError(
        "unreadable",
        f"{name}: a tif with {page.samplesperpixel} samples of {_called(page)} in {samples.dtype}, of which nothing says that "
        "they are colours (or alpha); save it as 8-bit RGB",
    )


def _called(page: TiffPage) -> str:
    return PHOTOMETRIC(page.photometric).name if page.photometric in set(PHOTOMETRIC) else f"photometric {page.photometric}"
