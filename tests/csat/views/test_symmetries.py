"""Views, alignment and downsampling: exact, alike for tiles and responses, and alike in numpy and torch."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from csat.columns import of_arrays
from csat.errors import ConfigError
from csat.responses import Kind, ResponseSpec, Symmetry
from csat.views.grid import align, downsample
from csat.views.symmetries import (
    NUM_SYMMETRIES,
    _turn_by_selection,
    apply_d4,
    apply_d4_tiles,
    compose_d4,
    d4_of,
    invert_d4,
    needs_view_in_pool,
)

EIGHT = range(NUM_SYMMETRIES)
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
                assert torch.equal(both, seen[compose_d4(first, second)])

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


class TestAlign:
    @settings(max_examples=60, deadline=None)
    @given(
        num_cells=st.integers(2, 30),
        stride_px=st.integers(1, 9),
        crop_px=st.integers(0, 40),
        cell_px=st.sampled_from([1, 2, 4, 8]),
        slope=st.floats(-2, 2),
    )
    def test_a_ramp_over_the_tile_is_the_ramp_at_the_response(self, num_cells, stride_px, crop_px, cell_px, slope):
        covered_px = num_cells * stride_px
        tile_px = covered_px + 2 * crop_px
        assume(tile_px % cell_px == 0)
        spec = dense(stride_px=stride_px, crop_px=crop_px)
        at_prediction = (torch.arange(tile_px // cell_px) + 0.5) * cell_px  # centres of cells, in tile pixels
        at_response = crop_px + (torch.arange(num_cells) + 0.5) * stride_px
        ramp = (slope * at_prediction[:, None] + at_prediction[None]).view(1, 1, *[len(at_prediction)] * 2)
        aligned = align(ramp, spec, tile_px)[0, 0]
        expected = slope * at_response[:, None] + at_response[None]
        # Beyond the first and the last centre of the prediction its own border continues.
        inside = (at_response >= at_prediction[0]) & (at_response <= at_prediction[-1])
        torch.testing.assert_close(aligned[inside][:, inside], expected[inside][:, inside], atol=1e-3, rtol=1e-5)

    def test_fractional_offsets(self):
        # 256 px tile, HoVer-Net's fast crop of 46 px; prediction at stride 3.2 (80 cells): no cell starts where the crop does.
        ramp = ((torch.arange(80) + 0.5) * 3.2).expand(1, 1, 80, 80)
        aligned = align(ramp, dense(crop_px=46), 256)
        assert aligned.shape == (1, 1, 164, 164)
        torch.testing.assert_close(aligned[0, 0, 0], 46.5 + torch.arange(164.0))

    @pytest.mark.parametrize(("size", "n"), [(8, 16), (8, 8), (5, 15), (32, 16)])
    def test_agrees_with_torch_on_the_whole_tile(self, size, n):
        prediction = torch.randn(2, 3, size, size)
        expected = F.interpolate(prediction, size=(n, n), mode="bilinear", align_corners=False)
        torch.testing.assert_close(align(prediction, dense(stride_px=240 // n), 240), expected, atol=1e-5, rtol=1e-5)

    def test_a_coarser_response_takes_every_cell_into_account(self):
        one_hot = torch.eye(8).view(8, 1, 1, 8).expand(8, 1, 8, 8)
        weights = align(one_hot, dense(stride_px=4), 8)[:, 0, 0]
        torch.testing.assert_close(weights.T, torch.tensor([[1.0, 2, 2, 1, 0, 0, 0, 0], [0, 0, 0, 0, 1, 2, 2, 1]]) / 6)

    def test_the_same_grid_is_untouched_and_gradients_pass(self):
        prediction = torch.randn(1, 2, 6, 6, requires_grad=True)
        aligned = align(prediction, dense(stride_px=2, crop_px=4), 12 + 8)
        assert aligned.shape == (1, 2, 6, 6)
        same = align(prediction, dense(stride_px=2), 12)
        assert torch.equal(same, prediction)
        same.sum().backward()
        assert torch.equal(prediction.grad, torch.ones(1, 2, 6, 6))

    def test_an_evaluation_before_does_not_break_training(self):
        prediction = torch.randn(1, 1, 7, 7)
        with torch.inference_mode():
            align(prediction, dense(crop_px=3), 28)
        prediction.requires_grad_()
        align(prediction, dense(crop_px=3), 28).sum().backward()
        assert prediction.grad.abs().sum() > 0

    def test_commutes_with_the_symmetries(self):
        prediction, index, spec = torch.randn(8, 2, 10, 10), torch.arange(8), dense(stride_px=3, crop_px=4)
        after = apply_d4(align(prediction, spec, 20), index, Symmetry.HV)
        before = align(apply_d4(prediction, index, Symmetry.HV), spec, 20)
        torch.testing.assert_close(before, after)

    def test_half_precision_comes_back_whole(self):
        prediction = torch.randn(1, 1, 16, 16)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            aligned = align(prediction, dense(), 32)
        assert aligned.dtype == torch.float32
        torch.testing.assert_close(aligned, align(prediction, dense(), 32))
        assert align(prediction.half(), dense(), 32).dtype == torch.float32

    def test_global_predictions_pass_and_misfits_are_named(self):
        vector = torch.randn(2, 5)
        assert align(vector, dense(stride_px=None, channels=5), 32) is vector
        with pytest.raises(ConfigError, match="'np' covers 12 px"):
            align(torch.zeros(1, 1, 8, 8), dense(stride_px=5, crop_px=2), 16)


class TestDownsample:
    def test_is_the_mean_over_squares(self):
        images = torch.tensor([[0.0, 1, 2, 3], [4, 5, 6, 7]]).view(1, 1, 2, 4)
        assert torch.equal(downsample(images, 2), torch.tensor([[2.5, 4.5]]).view(1, 1, 1, 2))
        assert downsample(images, 1) is images

    def test_refuses_a_remainder(self):
        with pytest.raises(ValueError, match="10 x 10 px cannot be shrunk 4 times"):
            downsample(torch.zeros(1, 3, 10, 10), 4)
