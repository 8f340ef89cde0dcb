"""Areas of a mask of tissue: exact shares, and separate pieces."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from csat.slides.tissue_areas import find_pieces, tissue_fraction


@given(st.integers(0, 2**32 - 1), st.integers(3, 30), st.integers(3, 30), st.floats(0, 0.6), st.floats(0, 0.6))
def test_tissue_fraction_is_the_exact_area(seed, height, width, left, top):
    """Against the same mask enlarged 40 times, on rectangles that lie on that finer grid."""
    mask = np.random.default_rng(seed).random((height, width)) < 0.5
    fine = np.kron(mask, np.ones((40, 40)))
    x, y = round(left * width * 40), round(top * height * 40)
    w, h = max(1, width * 40 // 3), max(1, height * 40 // 3)
    share = tissue_fraction(mask, [x / fine.shape[1]], [y / fine.shape[0]], w / fine.shape[1], h / fine.shape[0])
    assert share[0] == pytest.approx(fine[y : y + h, x : x + w].mean(), abs=1e-9)


def test_pieces_of_tissue_are_found_and_specks_are_not():
    mask = np.zeros((200, 300), dtype=bool)
    mask[20:80, 30:110] = True
    mask[100:180, 200:280] = True
    mask[182:190, 200:280] = True  # nearly touches: the same piece
    mask[10:12, 250:252] = True  # a speck
    assert find_pieces(mask).tolist() == [[30, 20, 110, 80], [200, 100, 280, 190]]
    assert find_pieces(np.zeros((20, 20), dtype=bool)).shape == (0, 4)
