"""The student's pixels from the lower level: what the mean of the tile's pixels is, up to how the level was made."""

import numpy as np
import pytest
import tifffile

from csat.slides.pyramid import read_shrunk
from csat.slides.reader import open_slide, read_tile
from csat.slides.synthetic import make_slides, paint

# Of 255. Rounding, where the lower level is the mean of the finer one and the place is one that both have; else the JPEG
# compression that each level has by itself, and a place between the pixels of the lower level.
LOSSLESS, COMPRESSED, BIAS = 0.51, 8.0, 0.2


@pytest.fixture(scope="module")
def compressed(tmp_path_factory):
    return str(make_slides(tmp_path_factory.mktemp("slide"), num_slides=1, size_px=2048, mpp=0.5, seed=2)[0])


@pytest.fixture(scope="module")
def lossless(tmp_path_factory):
    path = tmp_path_factory.mktemp("slide") / "slide.tif"
    pixels = paint(1024, seed=2)[0]
    shrunk = pixels.reshape(256, 4, 256, 4, 3).mean((1, 3)).round().astype(np.uint8)
    _write_levels(path, [pixels, shrunk])
    return str(path)


@pytest.mark.parametrize("factor", [4, 8])
@pytest.mark.parametrize("size", [(256, 256), (264, 180)])
def test_the_lower_level_agrees_with_the_shrunk_tile(lossless, size, factor):
    mean, shrunk = _both(lossless, 512, 640, size, factor)
    assert np.abs(mean - shrunk).max() < (LOSSLESS if factor == 4 else 2 * LOSSLESS)


@pytest.mark.parametrize("place", [(512, 640), (514, 641)])
def test_it_agrees_as_far_as_compression_allows(compressed, place):
    mean, shrunk = _both(compressed, *place, (264, 180), 4)
    error = np.abs(mean - shrunk).mean()
    assert error < COMPRESSED and abs((mean - shrunk).mean()) < BIAS
    for axis in (0, 1):  # and shows the same place, not the next
        assert np.abs(mean - np.roll(shrunk, 1, axis))[1:, 1:].mean() > 1.5 * error


def test_it_is_the_lower_level_that_is_read(tmp_path):
    """The levels of this slide show different colours, as no scanner's do."""
    path = tmp_path / "slide.tif"
    _write_levels(path, [np.full((1024 // shrink, 1024 // shrink, 3), grey, np.uint8) for shrink, grey in ((1, 50), (4, 200))])
    reader = open_slide(str(path), "wsi")
    where = dict(x_px=0, y_px=0, level=0, read_px=128, row=0)
    tile = read_tile(reader, **where, tile_px=128)
    for factor, grey in ((2, 50), (4, 200), (8, 200)):  # at a half there is no level: the tile's own pixels
        shrunk = read_shrunk(reader, tile, **where, factor=factor)
        assert shrunk.shape == (128 // factor, 128 // factor, 3) and (shrunk == grey).all()


def test_without_a_pyramid_it_is_the_mean(tmp_path):
    tile = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    path = tmp_path / "image.tif"
    tifffile.imwrite(path, tile, photometric="rgb")
    where = dict(x_px=0, y_px=0, level=0, read_px=12, row=0)
    shrunk = read_shrunk(open_slide(str(path), "image"), tile, **where, factor=4)
    np.testing.assert_allclose(shrunk, tile.reshape(2, 4, 3, 4, 3).mean((1, 3)), atol=0.51)


def _both(path, x_px, y_px, size, factor):
    """The mean over squares of the tile's pixels, and what is read at 1 / factor; whole squares only."""
    reader = open_slide(path, "wsi")
    where = dict(x_px=x_px, y_px=y_px, level=0, read_px=max(size), row=0)
    tile = read_tile(reader, **where, tile_px=size)
    height, width = tile.shape[:2]
    shrunk = read_shrunk(reader, tile, **where, factor=factor).astype(float)
    assert shrunk.shape == (-(-height // factor), -(-width // factor), 3)
    rows, columns = height // factor, width // factor
    squares = tile[: rows * factor, : columns * factor].reshape(rows, factor, columns, factor, 3)
    return squares.mean((1, 3)), shrunk[:rows, :columns]


def _write_levels(path, levels):
    with tifffile.TiffWriter(path) as writer:
        for index, pixels in enumerate(levels):
            options = dict(tile=(256, 256), photometric="rgb", compression="zlib", subfiletype=int(index > 0))
            writer.write(pixels, resolution=(2e4, 2e4), resolutionunit="CENTIMETER", metadata=None, **options)
