"""The nuclei of a field of a slide that is larger than a tile: whole ones, also where windows meet."""

import numpy as np
import pytest
from PIL import Image
from skimage.draw import disk
from skimage.measure import label

from csat.instances import hv_targets
from csat.prediction.answers import About
from csat.prediction.field import draw_nuclei
from csat.prediction.loaded import Loaded
from csat.responses import Kind, ResponseSpec, Symmetry
from csat.tasks import Task

CENTRES = [(40, 60), (64, 130), (128, 128), (200, 70), (150, 230)]  # row and column; windows of 64 px meet at some


class Sees:
    """Takes every dark spot for a nucleus."""

    specs = (
        ResponseSpec(name="np", kind=Kind.PROBABILITY, channels=1),
        ResponseSpec(name="hv", kind=Kind.REGRESSION, channels=2, symmetry=Symmetry.HV),
    )
    tile_px, mpp, task, classes = 64, None, Task.NUCLEI, ()
    about = About(name="sees", source="", licence="", sha256="")

    def answer(self, tiles):
        masks = [tile[..., 0] < 128 for tile in tiles]
        hv = [hv_targets(label(mask)) for mask in masks]
        return {"np": np.stack(masks)[:, None].astype(np.float32), "hv": np.stack(hv).astype(np.float32)}


@pytest.fixture
def slide(tmp_path):
    pixels = np.full((300, 280, 3), 255, np.uint8)
    for centre in CENTRES:
        pixels[disk(centre, 9)] = 20
    Image.fromarray(pixels).save(tmp_path / "slide.png")
    return str(tmp_path / "slide.png"), pixels


def test_each_nucleus_is_outlined_once(slide):
    place, pixels = slide
    drawn, number = draw_nuclei(Loaded(Sees()), place, 0, 0, edge_px=256)
    assert number == len(CENTRES) and drawn.shape == (256, 256, 3)
    changed = (drawn != pixels[:256, :256]).any(-1)
    rows, columns = np.nonzero(changed)
    distances = np.array([np.hypot(rows - row, columns - column) for row, column in CENTRES])
    assert len(rows) > 100 and (abs(distances.min(0) - 9) < 3.5).all(), "nothing is drawn but along the rims"
    assert len(set(distances.argmin(0))) == len(CENTRES)


def test_the_field_begins_where_it_is_said(slide):
    place, pixels = slide
    drawn, number = draw_nuclei(Loaded(Sees()), place, 90, 100, edge_px=96)  # of all (128, 128) alone
    assert number == 1
    assert (drawn[5, 5] == pixels[105, 95]).all()
    (row, column), *_ = np.argwhere((drawn != pixels[100:196, 90:186]).any(-1))
    assert abs(np.hypot(row + 100 - 128, column + 90 - 128) - 9) < 3.5
