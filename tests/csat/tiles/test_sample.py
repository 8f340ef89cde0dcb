import numpy as np
import pytest

from csat.slides.synthetic import make_slides
from csat.tiles.grid import TilingConfig
from csat.tiles.manifest import ManifestConfig
from csat.tiles.manifest_writer import ManifestWriter
from csat.tiles.sample import joined, sample_rows, spread
from csat.tiles.sources import list_slides
from csat.tiles.tiling import tile_slide


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sample")
    slides = list_slides([str(path) for path in make_slides(folder, num_slides=3, size_px=512, seed=2)])
    tiling = TilingConfig(mpp=0.5, tile_px=64, min_tissue=0.0)
    writer = ManifestWriter(str(folder / "manifest"), ManifestConfig(chunk_tiles=16), "f", tiling, slides)
    for slide in slides:
        writer.add(slide, tile_slide(slide, tiling))
    return writer.close()


def test_few_slides_are_opened_for_tiles_from_the_whole(manifest):
    rows = sample_rows(manifest, 20)
    assert 8 <= len(rows["slide"]) <= 20
    assert 1 <= len(set(rows["slide"])) <= 3
    assert len(set(zip(rows["slide"], rows["x_px"], rows["y_px"], strict=True))) == len(rows["slide"])
    assert rows.keys() >= {"kind", "level", "read_px", "aspect", "row", "width_px", "height_px"}


def test_more_than_there_are(manifest):
    assert len(sample_rows(manifest, 10_000)["slide"]) <= manifest.num_tiles


def test_spread_goes_from_the_first_to_the_last():
    rows = {"slide": np.array(["a"] * 10, object), "x_px": np.arange(10)}
    assert spread(rows, 4)["x_px"].tolist() == [0, 3, 6, 9]
    assert spread(rows, 99)["x_px"].tolist() == list(range(10))
    assert joined([spread(rows, 1), spread(rows, 2)])["x_px"].tolist() == [0, 0, 9]
