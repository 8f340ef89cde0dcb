"""Which picture of a tif counts: it may hold a thumbnail before it, a pyramid behind it, a label beside it, or its planes.

- Pages that say to be reduced or a transparency mask don't count, and neither do those of at most half the width and height
  (thumbnail, label, levels of a pyramid). Any other picture beside it is refused: which one is meant?
- Planes on top of each other make one picture where OME-XML or ImageJ names them red, green and blue. Dyes, depths, times and
  planes without a name are refused.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
from tifffile import TiffFile, TiffPage, TiffPageSeries

from csat.errors import DatasetError, SlideError

ORIENTATION, MAX_SAMPLE_VALUE = 274, 281  # tags
REDUCED_OR_MASK = 0b101  # of the tag NewSubfileType
CHANNELS = {"red": 0, "r": 0, "green": 1, "g": 1, "blue": 2, "b": 2}


class TifPicture(NamedTuple):
    """The picture of a tif that counts."""

    page: TiffPage  # that it is, or the first of its planes, which describes all of them
    planes: tuple[TiffPage, ...]  # its red, green and blue, where these are pages of their own; else empty
    bits: int  # of each sample that are in use, as far as the file says it


@contextmanager
def opened_tif(source: bytes | Path, name: str) -> Iterator[TiffFile]:
    """The file, for the context; whatever goes wrong within it is a SlideError "unreadable" that names `name`."""
    try:
        with TiffFile(io.BytesIO(source) if isinstance(source, bytes) else source) as file:
            yield file
    except (SlideError, DatasetError):
        raise
    except Exception as error:  # tifffile and its decoders raise whatever they meet
        raise SlideError("unreadable", f"{name}: cannot be decoded: {type(error).__name__}: {error}") from error


def find_picture(file: TiffFile, name: str) -> TifPicture:
    """The picture that counts, by the rules above. Nothing is decoded.

    Raises:
        SlideError: "unreadable": several pictures, a stack of planes that are no colours, or planes in other files.
    """
    series = _largest(file.series, name)
    stacked = {axis: size for axis, size in zip(series.axes, series.shape, strict=True) if axis not in "YXS" and size > 1}
    page = series.keyframe
    return TifPicture(page, _colour_planes(file, series, stacked, name) if stacked else (), _bits(file, page))


def orientation_of(page: TiffPage) -> int:
    """By its tag; 1 where there is none."""
    return page.tags.valueof(ORIENTATION, default=1)


def _largest(all_series: list[TiffPageSeries], name: str) -> TiffPageSeries:
    """The one picture among those of a file (tifffile's series: a picture with its planes and its pyramid)."""
    candidates = [each for each in all_series if not each.keyframe.subfiletype & REDUCED_OR_MASK] or all_series
    if not candidates:
        raise SlideError("unreadable", f"{name}: is a tif without a picture")
    largest = max(candidates, key=lambda each: each.keyframe.imagewidth * each.keyframe.imagelength)
    width, height = largest.keyframe.imagewidth, largest.keyframe.imagelength
    for other in (each.keyframe for each in candidates if each is not largest):
        if 2 * other.imagewidth > width + 1 or 2 * other.imagelength > height + 1:
            sizes = f"{width} x {height} and {other.imagewidth} x {other.imagelength} px"
            raise SlideError("unreadable", f"{name}: holds several pictures, of {sizes}; save the one that counts")
    return largest


def _colour_planes(file: TiffFile, series: TiffPageSeries, stacked: dict[str, int], name: str) -> tuple[TiffPage, ...]:
    """Red, green and blue of a series that has more than one plane. stacked: axis → planes along it."""
    names = _plane_names(file, series.keyframe)
    colours = [CHANNELS.get(plane.strip().lower(), -1) for plane in names]
    if list(stacked.values()) != [3] or sorted(colours) != [0, 1, 2] or series.keyframe.samplesperpixel != 1:
        sizes = ", ".join(f"{size} along {axis}" for axis, size in stacked.items())
        named = f", named {', '.join(names)}" if names else ""
        raise SlideError(
            "unreadable",
            f"{name}: is a stack of planes ({sizes}{named}), and only three that are named red, green and blue make a "
            "picture; save the plane that counts, or the colours together as RGB",
        )
    if any(plane is None or plane.parent is not file for plane in series.pages):
        raise SlideError("unreadable", f"{name}: some of its colours are in other files; save them together as RGB")
    return tuple(series.pages[colours.index(colour)] for colour in range(3))


def _plane_names(file: TiffFile, page: TiffPage) -> list[str]:
    """Of a picture's planes as OME-XML or ImageJ names them: dyes, where it says so; empty where nothing names them."""
    if file.ome_metadata:
        pictures = _ome_pixels(file, page)
        channels = pictures[0].findall("{*}Channel") if len(pictures) == 1 else []
        dyes = [dye for channel in channels if (dye := channel.get("Fluor"))]
        return dyes or [plane for channel in channels if (plane := channel.get("Name"))]
    labels = (file.imagej_metadata or {}).get("Labels", [])
    return [labels] if isinstance(labels, str) else list(labels)


def _ome_pixels(file: TiffFile, page: TiffPage) -> list[ElementTree.Element]:
    """What OME-XML says of pictures of this size."""
    size = str(page.imagewidth), str(page.imagelength)
    pictures = ElementTree.fromstring(file.ome_metadata).findall(".//{*}Pixels")
    return [picture for picture in pictures if (picture.get("SizeX"), picture.get("SizeY")) == size]


def _bits(file: TiffFile, page: TiffPage) -> int:
    """BitsPerSample; of more than 8 those in use, where MaxSampleValue or OME's SignificantBits say so."""
    bits = page.bitspersample
    if bits <= 8:
        return bits
    stated = [int(np.max(page.tags.valueof(MAX_SAMPLE_VALUE, default=2**bits - 1))).bit_length()]
    if file.ome_metadata:
        stated += [int(picture.get("SignificantBits", bits)) for picture in _ome_pixels(file, page)]
    return max(8, min(bits, *stated))
