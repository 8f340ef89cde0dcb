"""Real tissue: two grids, one shifted by half a tile, agree on how many nuclei lie where one of them has its borders.

What one grid puts together from two tiles, the other sees in the middle of a tile: the same places are compared, so that few
nuclei suffice. The answers of neighbours differ here, as those of networks do.
"""

import numpy as np
import pyarrow as pa
import pytest

from csat.prediction.nuclei import nuclei_of_tile
from csat.prediction.seams import Seams
from csat.prediction.slide_frame import frame_of
from csat.slides.reader import open_slide, read_tile
from teachers.stain import StainOptions, load

TILE_PX, STEP_PX, HALF_PX = 128, 88, 44  # tiles overlap by 20 um
NEAR_PX, FAR_PX = 10, 15  # from a grid's own borders, and from the other's


def nuclei_on(reader, frame, teacher, offset_px):
    """float `[N, 2]`: centroids, by a grid that begins at an offset."""
    starts = [range(offset_px, edge - TILE_PX, STEP_PX) for edge in (frame.height_px, frame.width_px)]
    corners = [dict(x_px=x, y_px=y, level=0, read_px=TILE_PX) for y in starts[0] for x in starts[1]]
    places = [frame.place(**corner, aspect=1.0, tile_px=TILE_PX) for corner in corners]
    seams, kept = Seams(places, frame), []
    for index, (corner, place) in enumerate(zip(corners, places, strict=True)):
        said = teacher.respond(read_tile(reader, **corner, tile_px=TILE_PX)[None])
        maps = {name: values[0].astype(np.float32) for name, values in said.items()}
        kept.append(seams.add(index, nuclei_of_tile(maps, place, frame)))
    seams.finish()
    nuclei = pa.concat_tables(kept)
    return np.stack([nuclei["x_px"], nuclei["y_px"]], 1)


def to_border(places, offset_px):
    """float `[N, 2]`: how far the nearest border of a grid is, across and down."""
    border = offset_px + (TILE_PX + STEP_PX) / 2
    return np.abs((places - border + STEP_PX / 2) % STEP_PX - STEP_PX / 2)


@pytest.mark.thorough
@pytest.mark.slow
def test_as_many_nuclei_at_borders_as_where_there_are_none(shared_data):
    path = str(shared_data("slides") / "CMU-1-Small-Region.svs")
    reader = open_slide(path, "wsi")
    frame, teacher = frame_of(path, reader), load(StainOptions(mpp=0.5))
    grids = {offset_px: nuclei_on(reader, frame, teacher, offset_px) for offset_px in (0, HALF_PX)}
    counted = np.zeros(2, np.int64)
    for own, other in ((0, HALF_PX), (HALF_PX, 0)):
        for which, offset_px in enumerate((own, other)):
            places = grids[offset_px]
            inside = (places > 150).all(1) & (places < (frame.width_px - 150, frame.height_px - 150)).all(1)
            here = (to_border(places, own).min(1) <= NEAR_PX) & (to_border(places, other).min(1) > FAR_PX)
            counted[which] += (here & inside).sum()
    at_borders, elsewhere = counted
    assert elsewhere > 800
    assert abs(at_borders / elsewhere - 1) < 0.03, counted
