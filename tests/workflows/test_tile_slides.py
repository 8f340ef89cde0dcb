"""The order in which slides come into the manifest."""

from csat.data.manifest import ManifestConfig
from csat.data.sources import SlideRow
from workflows.tile_slides import _shuffled


def image(name: str) -> SlideRow:
    return SlideRow(slide=name, kind="image")


def test_a_window_of_a_sorted_list_is_mixed():
    """A folder a class, as labelled images come: a window of neighbours would be 64 tiles of one class, four batches of 16."""
    tissues = ("aca", "normal", "scc")
    slides = [image(f"/data/{tissue}/{number:04d}.png") for tissue in tissues for number in range(320)]
    order = _shuffled(slides, seed=0)
    assert sorted(order, key=lambda row: row.slide) == slides
    size = ManifestConfig().slides_per_window
    for start in range(0, len(order), size):
        window = [row.slide.split("/")[2] for row in order[start : start + size]]
        assert min(map(window.count, tissues)) > size / 10


def test_the_order_follows_from_the_seed():
    slides = [image(f"/data/{number}.png") for number in range(50)]
    assert _shuffled(slides, seed=3) == _shuffled(slides, seed=3) != _shuffled(slides, seed=4)
