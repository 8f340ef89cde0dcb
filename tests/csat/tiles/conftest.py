import pytest

from csat.slides.synthetic import make_slides
from csat.tiles.sources import SlideRow


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    """The row of a synthetic slide: 1536 px at 0.5 um/px."""
    path = make_slides(tmp_path_factory.mktemp("slides"), num_slides=1, size_px=1536, mpp=0.5, seed=2)[0]
    return SlideRow(slide=str(path), kind="wsi", patient="p1")
