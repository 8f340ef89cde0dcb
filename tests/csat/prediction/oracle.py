"""A slide whose nuclei are known, and an answerer that is always right: what is left is the fault of putting together."""

from functools import lru_cache

import numpy as np
import pyarrow as pa

from csat.instances import hv_targets, relabel
from csat.prediction.nuclei import NUCLEI_SCHEMA, nuclei_of_instances, nuclei_of_tile
from csat.prediction.seams import Seams
from csat.prediction.slide_frame import SlideFrame
from csat.slides.images import Level
from csat.slides.mpp import Mpp
from csat.slides.synthetic import paint
from csat.tiles.grid import TilingConfig, plan_grid

TILE_PX, OVERLAP_PX, MPP = 128, 40, 0.5  # tiles overlap by 20 um


@lru_cache(maxsize=2)
def painted(size_px=768, seed=1):
    """int32 `[size_px, size_px]`: the nuclei of a synthetic slide."""
    return relabel(paint(size_px, mpp=MPP, seed=seed)[1].astype(np.int32))


def frame_for(labels, *, scale=1, **more):
    """A slide of these labels, of which level 0 has `scale` pixels for each."""
    height, width = labels.shape
    resolution = dict(mpp_x=MPP / scale, mpp_y=MPP / scale)
    return SlideFrame(
        **{"slide": "/slides/a.svs", "width_px": width * scale, "height_px": height * scale, **resolution, **more}
    )


def places_on(frame, *, tile_px=TILE_PX, overlap_px=OVERLAP_PX):
    """The tiles of the manifest's grid, to the slide's edges."""
    levels = [Level(frame.width_px, frame.height_px, 1.0)]
    config = TilingConfig(mpp=MPP, tile_px=tile_px, overlap_px=overlap_px, cover_edges=True)
    grid = plan_grid(frame.slide, levels, Mpp(frame.mpp_x, frame.mpp_y, "stated"), config)
    zeros = np.zeros(len(grid.x_px), np.int64)
    columns = dict(x_px=grid.x_px, y_px=grid.y_px, level=zeros, read_px=zeros + grid.read_px, aspect=zeros + grid.aspect)
    return frame.places(columns, tile_px=tile_px)


def cut(labels, place, scale=1):
    """int32: the labels that a place covers, numbered anew."""
    left, top, right, bottom = (round(edge / scale) for edge in place)
    return relabel(labels[top:bottom, left:right])


def found_in(labels, place, frame, *, scale=1):
    """What a perfect model finds in one place."""
    instances = cut(labels, place, scale)
    return nuclei_of_instances(instances, (instances > 0).astype(np.float32), place, frame)


def answered_in(labels, place, frame, *, scale=1):
    """The same through HoVer-Net's maps and post-processing."""
    instances = cut(labels, place, scale)
    return nuclei_of_tile({"np": (instances > 0)[None].astype(np.float32), "hv": hv_targets(instances)}, place, frame)


def put_together(labels, frame, places, *, missing=(), find=found_in, order=None, scale=1):
    """(nuclei, counts) of a slide."""
    seams, kept = Seams(places, frame), [NUCLEI_SCHEMA.empty_table()]
    for index in range(len(places)) if order is None else order:
        found = None if index in missing else find(labels, places[index], frame, scale=scale)
        kept.append(seams.add(index, found))
    seams.finish()
    return pa.concat_tables(kept), seams.counts
