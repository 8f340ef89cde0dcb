"""A slide of which only a part was scanned, as OpenSlide reads Leica's: it has bounds, to which QuPath crops it."""

import numpy as np
import tifffile

DESCRIPTION = """<?xml version="1.0"?>
<scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01">
<collection name="made up" sizeX="{width}" sizeY="{height}"><image name="scan">
<scanSettings><objectiveSettings><objective>20</objective></objectiveSettings>
<illuminationSettings><numericalAperture>0.4</numericalAperture>
<illuminationSource>brightfield</illuminationSource></illuminationSettings></scanSettings>
<pixels sizeX="{columns}" sizeY="{rows}"><dimension sizeX="{columns}" sizeY="{rows}" r="0" ifd="0"/></pixels>
<view sizeX="{across}" sizeY="{down}" offsetX="{left}" offsetY="{top}"/>
</image></collection></scn>"""


def write_bounded(path, pixels, *, canvas_px, corner_px, mpp=0.5):
    """Write a slide.

    Args:
        path: Best with the ending .scn.
        pixels: uint8 `[H, W, 3]`, what was scanned.
        canvas_px: (width, height) of the whole.
        corner_px: (x, y) of what was scanned on it.
    """
    nm = round(1000 * mpp)
    height, width = pixels.shape[:2]
    sizes = dict(width=canvas_px[0] * nm, height=canvas_px[1] * nm, left=corner_px[0] * nm, top=corner_px[1] * nm)
    text = DESCRIPTION.format(**sizes, columns=width, rows=height, across=width * nm, down=height * nm)
    options = dict(tile=(256, 256), photometric="rgb", compression="deflate", software="test", metadata=None)
    options |= dict(resolution=(1e4 / mpp, 1e4 / mpp), resolutionunit="CENTIMETER")
    tifffile.imwrite(path, np.ascontiguousarray(pixels), bigtiff=True, description=text, **options)
