"""Views: exact, alike for tiles and responses, and alike in numpy and torch."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from csat.columns import of_arrays
from csat.responses import Kind, ResponseSpec, Symmetry, needs_view_in_pool
from csat.views.symmetries import (
    _turn_by_selection,
    apply_d4,
    apply_d4_tiles,
    d4_of,
    invert_d4,
)

EIGHT = range(8)
SYMMETRIES = (Symmetry.SCALAR, Symmetry.HV)


def every_index(index: int, batch: int = 1) -> torch.Tensor:
    return torch.full((batch,), index, dtype=torch.uint8)


def dense(**changes) -> ResponseSpec:
    return ResponseSpec(**{"name": "np", "kind": Kind.PROBABILITY, "channels": 1} | changes)


class TestViews:
    def test_views_of_numpy_and_torch_agree_and_are_spread_evenly(self):
        positions = np.arange(80_000)
        views = d4_of(positions, seed=1)
        assert views.dtype == np.uint8
        assert np.array_equal(views, d4_of(torch.from_numpy(positions), seed=1).numpy())
        counts = np.bincount(views, minlength=8)
        assert ((counts - 10_000) ** 2 / 10_000).sum() < 24.3  # chi squared, 7 degrees of freedom, p = 0.001
        assert (views != d4_of(positions, seed=2)).mean() == pytest.approx(7 / 8, abs=0.01)

    def test_a_view_does_not_depend_on_the_batch(self):
        whole = d4_of(torch.arange(50), seed=4)
        assert torch.equal(whole[17:23], d4_of(torch.arange(17, 23), seed=4))


class TestApplyD4:
    def test_the_named_symmetries_move_a_corner_as_documented(self):
        corner = torch.tensor([[1.0, 0.0], [0.0, 0.0]]).view(1, 1, 2, 2)
        where = {0: (0, 0), 1: (0, 1), 2: (1, 0), 3: (1, 1), 4: (0, 0), 5: (0, 1), 6: (1, 0), 7: (1, 1)}
        for index, (row, column) in where.items():
            assert apply_d4(corner, every_index(index))[0, 0, row, column] == 1
        image = torch.arange(9.0).view(1, 1, 3, 3)
        assert torch.equal(apply_d4(image, every_index(3)), torch.rot90(image, 2, (-2, -1)))
        assert torch.equal(apply_d4(image, every_index(6)), torch.rot90(image, 1, (-2, -1)))  # anticlockwise
        assert torch.equal(apply_d4(image, every_index(5)), torch.rot90(image, -1, (-2, -1)))
        assert torch.equal(apply_d4(image, every_index(4)), image.mT)

    @pytest.mark.parametrize("symmetry", SYMMETRIES)
    def test_identity_inverse_and_composition(self, symmetry):
        x = torch.randn(2, 2, 5, 5)
        seen = [apply_d4(x, every_index(index, 2), symmetry) for index in EIGHT]
        assert torch.equal(seen[0], x)
        assert all(not torch.equal(seen[i], seen[j]) for i in EIGHT for j in EIGHT if i != j)
        for first in EIGHT:
            assert torch.equal(apply_d4(seen[first], every_index(invert_d4(first), 2), symmetry), x)
            for second in EIGHT:
                both = apply_d4(seen[first], every_index(second, 2), symmetry)
                assert sum(torch.equal(both, each) for each in seen) == 1, "it is one of the eight again"

    @settings(max_examples=20, deadline=None)
    @given(index=st.lists(st.integers(0, 7), min_size=1, max_size=6), size=st.integers(1, 6), is_hv=st.booleans())
    def test_each_sample_has_its_own(self, index, size, is_hv):
        x = torch.randn(len(index), 2, size, size)
        symmetry = Symmetry.HV if is_hv else Symmetry.SCALAR
        together = apply_d4(x, torch.tensor(index), symmetry)
        alone = torch.cat([apply_d4(x[i : i + 1], every_index(bits), symmetry) for i, bits in enumerate(index)])
        assert torch.equal(together, alone)

    @pytest.mark.parametrize("symmetry", SYMMETRIES)
    @pytest.mark.parametrize("shape", [(8, 2, 5, 5), (8, 2)])
    def test_the_way_of_the_gpu_gives_the_same(self, symmetry, shape):
        x, index = torch.randn(shape), torch.randperm(8).to(torch.uint8)
        assert torch.equal(_turn_by_selection(x, index, symmetry), apply_d4(x, index, symmetry))

    def test_numpy_tiles_take_the_same_view(self):
        tiles = np.random.default_rng(0).integers(0, 256, (8, 6, 6, 3), dtype=np.uint8)
        index = np.arange(8, dtype=np.uint8)
        ours = torch.from_numpy(apply_d4_tiles(tiles, index)).permute(0, 3, 1, 2)
        theirs = apply_d4(torch.from_numpy(tiles).permute(0, 3, 1, 2), torch.from_numpy(index))
        assert torch.equal(ours, theirs)

    def test_a_batch_of_equal_rectangles_is_turned_one_by_one(self):
        # A stream of images of varying size hands over a dense batch where they happen to be equal.
        images = np.random.default_rng(0).integers(0, 256, (8, 3, 4, 3), dtype=np.uint8)
        turned = apply_d4_tiles(images, np.arange(8))
        assert turned.dtype == object
        assert {image.shape for image in turned} == {(3, 4, 3), (4, 3, 3)}
        singly = [apply_d4_tiles(of_arrays([image]), np.array([bits]))[0] for bits, image in enumerate(images)]
        assert all(np.array_equal(one, other) for one, other in zip(turned, singly, strict=True))

    @pytest.mark.parametrize("index", EIGHT)
    def test_a_vector_field_is_that_of_the_moved_image(self, index):
        # (horizontal, vertical) = distance from a nucleus to each pixel: recomputed about the moved nucleus, it is the same.
        rows, columns = torch.meshgrid(torch.arange(7.0), torch.arange(7.0), indexing="ij")

        def field_about(nucleus: torch.Tensor) -> torch.Tensor:
            row, column = nucleus[0, 0].nonzero()[0]
            return torch.stack([columns - column, rows - row])[None]

        nucleus = torch.zeros(1, 1, 7, 7)
        nucleus[0, 0, 1, 5] = 1
        moved = apply_d4(nucleus, every_index(index))
        assert torch.equal(apply_d4(field_about(nucleus), every_index(index), Symmetry.HV), field_about(moved))

    def test_a_response_to_the_whole_tile_stays(self):
        x = torch.randn(8, 5)
        assert torch.equal(apply_d4(x, torch.arange(8)), x)

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.bfloat16])
    def test_keeps_dtype(self, dtype):
        assert apply_d4(torch.ones(8, 3, 4, 4, dtype=dtype), torch.arange(8)).dtype == dtype

    def test_refuses_what_it_cannot_do(self):
        with pytest.raises(ValueError, match="before the teacher"):
            apply_d4(torch.zeros(1, 1, 4, 4), every_index(1), Symmetry.NONE)
        with pytest.raises(ValueError, match="3 x 4"):
            apply_d4(torch.zeros(1, 1, 3, 4), every_index(1))

    def test_one_response_without_symmetry_moves_the_view_to_the_pool(self):
        features = ResponseSpec(name="features", kind=Kind.FEATURES, channels=8, stride_px=None, symmetry=Symmetry.NONE)
        assert needs_view_in_pool((dense(), features))
        assert not needs_view_in_pool((dense(), dense(name="hv", channels=2, symmetry=Symmetry.HV)))
