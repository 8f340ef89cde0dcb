"""A decoded image is read as a slide is."""

import numpy as np

from csat.slides.images import ImageReader

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
COLOUR = np.stack([RAMP, RAMP.T, 255 - RAMP], axis=-1)


def test_reading_over_the_border_gives_white():
    reader = ImageReader(COLOUR, None)
    out = reader.read(-4, 10, 0, 12)
    assert (out[:, :4] == 255).all() and (out[6:] == 255).all()
    np.testing.assert_array_equal(out[:6, 4:], COLOUR[10:, :8])
    assert (reader.read(100, -100, 0, (3, 2)) == 255).all() and reader.read(0, 0, 0, (3, 2)).shape == (2, 3, 3)


def test_a_tile_is_not_a_view_of_the_image():
    reader = ImageReader(COLOUR.copy(), None)
    reader.read(0, 0, 0, 16)[:] = 0
    np.testing.assert_array_equal(reader.read(0, 0, 0, 16), COLOUR)


def test_thumbnail_keeps_the_aspect_and_never_enlarges():
    reader = ImageReader(np.full((100, 400, 3), 77, np.uint8), None)
    assert reader.thumbnail(40).shape == (10, 40, 3) and (reader.thumbnail(40) == 77).all()
    assert reader.thumbnail(4000).shape == (100, 400, 3)
