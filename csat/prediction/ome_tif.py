"""Maps as OME-TIFF: what QuPath, OMERO and napari open as a pyramid, and tifffile and OpenSlide open, too.

BigTIFF, tiles of 512 px, deflate, levels in SubIFDs, resolution in the XML and in the tags. A heatmap has one channel per
class, 0 to 255 for probabilities 0 to 1, which can be read back. A mask has labels with a colour table: they are seen, and
read back as numbers.
"""

import uuid
from collections.abc import Sequence

import numpy as np
import tifffile

from csat.prediction.palette import Colour, colours_of
from csat.prediction.slide_maps import UNSEEN, SlideMap
from csat.storage import files

TILE_PX = 512
LEVEL = 6  # zlib's
UNSEEN_NAME, UNSEEN_COLOUR = "not seen", (255, 255, 255)


def write_heatmap(uri: str, heatmap: SlideMap, classes: Sequence[str]) -> None:
    """heatmap.ome.tif: one uint8 channel per class, round(255 · probability); 0 also where nothing was seen."""
    colours = colours_of(classes)
    channel = {"Name": list(classes), "Color": [_ome_colour(colours[name]) for name in classes]}
    description = "round(255 * probability) per class; 0 also where nothing was seen"
    _write(uri, heatmap, {"axes": "CYX", "Channel": channel, "Description": description}, photometric="minisblack")


def write_mask(uri: str, mask: SlideMap, classes: Sequence[str]) -> None:
    """mask.ome.tif: one uint8 channel, label i + 1 for class i and 0 where nothing was seen, with a colour table."""
    assert mask.labels and mask.levels[0][0] == 1
    names = [UNSEEN_NAME, *classes]
    table = np.zeros((3, 256), np.uint16)
    table[:, UNSEEN] = UNSEEN_COLOUR
    for label, colour in enumerate(colours_of(classes).values(), 1):
        table[:, label] = colour
    about = "; ".join(f"{label} {name}" for label, name in enumerate(names))
    metadata = {"axes": "CYX", "Channel": {"Name": ["label"]}, "Description": about}
    _write(uri, mask, metadata, photometric="palette", colormap=table * 257)


def _write(uri: str, slide_map: SlideMap, metadata: dict, **options) -> None:
    slide_map.build_pyramid()
    metadata = {**metadata, "UUID": str(uuid.uuid5(slide_map.grid.frame.ids, metadata["Description"]))}  # same on a rerun
    options |= dict(tile=(TILE_PX, TILE_PX), dtype=np.uint8, compression="deflate", compressionargs={"level": LEVEL})
    options |= dict(maxworkers=1, software="csat")
    mpp = slide_map.grid.mpp
    if mpp:
        sizes = {f"PhysicalSize{axis}": value for axis, value in zip("XY", mpp, strict=True)}
        metadata = {**metadata, **sizes, "PhysicalSizeXUnit": "µm", "PhysicalSizeYUnit": "µm"}
    with files.open_output(uri) as file, tifffile.TiffWriter(file, bigtiff=True, ome=True) as tiff:
        for level, shape in enumerate(slide_map.levels):
            tags = {}
            if mpp:
                shrunk = slide_map.levels[0][2] / shape[2], slide_map.levels[0][1] / shape[1]
                per_cm = tuple(1e4 / (size * factor) for size, factor in zip(mpp, shrunk, strict=True))
                tags = dict(resolution=per_cm, resolutionunit="CENTIMETER")
            kind = dict(subifds=len(slide_map.levels) - 1, metadata=metadata) if level == 0 else dict(subfiletype=1)
            tiff.write(slide_map.tiles(level, TILE_PX), shape=shape, **kind, **tags, **options)


def _ome_colour(colour: Colour) -> int:
    """RGBA as OME has it: a signed 32-bit number."""
    red, green, blue = colour
    value = red << 24 | green << 16 | blue << 8 | 255
    return value - 2**32 if value >= 2**31 else value
