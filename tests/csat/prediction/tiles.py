"""Three tiles of a slide with bounds, and what was said of them."""

import numpy as np

from csat.prediction.slide_frame import Place, SlideFrame
from csat.prediction.table import SlideTable, tile_rows

CLASSES = ("tumour", "a/b")
FRAME = SlideFrame(slide="/s/a.svs", width_px=2000, height_px=1000, mpp_x=0.5, mpp_y=0.5, bounds=(100, 200, 1900, 800))
PLACES = [Place(100, 200, 356, 456), Place(356, 200, 612, 456), Place(1744, 744, 2000, 1000)]
SAID = np.array([[0.75, 0.25], [0.125, 0.875], [0.5, np.nan]])


def written_tiles(tmp_path):
    uri = str(tmp_path / "tiles.parquet")
    rows = tile_rows(PLACES, SAID, CLASSES)
    with SlideTable(uri, rows.schema, FRAME, classes=CLASSES) as table:
        table.write(rows)
    return uri
