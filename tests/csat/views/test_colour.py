"""Colours change per tile by amounts that follow from its position, within bounds, and physically."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from csat.errors import ConfigError
from csat.views.colour import NUM_DRAWS, STAINS, ColourAugment
from csat.views.colour_config import ColourConfig

NOTHING = dict.fromkeys(ColourConfig.__dataclass_fields__, 0.0)


def augment(**settings) -> ColourAugment:
    return ColourAugment(ColourConfig(**NOTHING | settings))


def fix_draws(monkeypatch, values: list[float]):
    """Let every draw, in [-1, 1], be the given one."""
    fixed = (torch.tensor(values) + 1) / 2
    assert len(fixed) == NUM_DRAWS
    monkeypatch.setattr("csat.views.colour.uniforms", lambda positions, num, *, seed, stream: fixed.expand(len(positions), -1))


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 0.9 + 0.05


def test_a_tile_does_not_depend_on_its_batch_or_its_place_in_it(images):
    positions = torch.tensor([5, 900, 17, 3, 2**40, 6])
    module = ColourAugment(ColourConfig())
    whole = module(images, positions, seed=1)
    for row in range(6):
        alone = module(images[row : row + 1], positions[row : row + 1], seed=1)
        torch.testing.assert_close(alone, whole[row : row + 1], atol=1e-6, rtol=0)
    torch.testing.assert_close(module(images.flip(0), positions.flip(0), seed=1).flip(0), whole, atol=1e-6, rtol=0)


def test_tiles_seeds_and_positions_differ_and_the_global_generator_is_left_alone(images):
    same = images[:1].expand(6, -1, -1, -1)
    state = torch.random.get_rng_state()
    seen = ColourAugment(ColourConfig())(same, torch.arange(6), seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all((seen[i] - seen[j]).abs().max() > 1e-3 for i in range(6) for j in range(i))
    other_seed = ColourAugment(ColourConfig())(same, torch.arange(6), seed=2)
    assert (seen - other_seed).abs().amax(dim=(1, 2, 3)).min() > 1e-3


def test_everything_off_is_the_image_itself(images):
    assert torch.equal(augment()(images, torch.arange(6), seed=0), images)


def test_stain_scale_multiplies_the_amount_of_one_stain(monkeypatch):
    # Pure haematoxylin of amount c has optical density c * its unit vector; half as much again for a draw of +1 at 0.5.
    fix_draws(monkeypatch, [1, 0, 0, 0, 0, 0, 0, 0, 0, 0])
    haematoxylin = torch.tensor(STAINS[0])
    haematoxylin = haematoxylin / haematoxylin.norm()
    amounts = torch.tensor([0.2, 0.8, 1.4]).view(1, 1, 1, 3)
    densities = amounts * haematoxylin.view(1, 3, 1, 1)
    seen = augment(stain_scale=0.5)(torch.exp(-densities), torch.arange(1), seed=0)
    torch.testing.assert_close(seen, torch.exp(-1.5 * densities), atol=1e-5, rtol=0)
    # Eosin is another stain: it stays.
    eosin = torch.exp(-0.5 * torch.tensor(STAINS[1])).view(1, 3, 1, 1)
    torch.testing.assert_close(augment(stain_scale=0.5)(eosin, torch.arange(1), seed=0), eosin, atol=1e-5, rtol=0)


def test_stain_shift_adds_density_to_the_background(monkeypatch):
    fix_draws(monkeypatch, [0, 0, 0, 0, 1, 0, 0, 0, 0, 0])
    white = torch.ones(1, 3, 2, 2)
    seen = augment(stain_shift=0.05)(white, torch.arange(1), seed=0)
    eosin = torch.tensor(STAINS[1])
    expected = torch.exp(-0.05 * eosin / eosin.norm()).view(1, 3, 1, 1).expand_as(white)
    torch.testing.assert_close(seen, expected)


def test_stain_scale_leaves_white_white():
    white = torch.ones(16, 3, 4, 4)
    torch.testing.assert_close(augment(stain_scale=0.9)(white, torch.arange(16), seed=0), white)


def test_brightness_contrast_and_saturation_by_hand(monkeypatch):
    image = torch.tensor([[0.5, 0.3, 0.1], [0.2, 0.2, 0.2]]).T.reshape(1, 3, 1, 2)
    fix_draws(monkeypatch, [0] * 6 + [1, 1, 1, 0])
    torch.testing.assert_close(augment(brightness=0.2)(image, torch.arange(1), seed=0), image * 1.2)
    grey = (0.299 * image[:, 0] + 0.587 * image[:, 1] + 0.114 * image[:, 2])[:, None]
    torch.testing.assert_close(augment(saturation=0.2)(image, torch.arange(1), seed=0), grey + 1.2 * (image - grey))
    mean = grey.mean()
    torch.testing.assert_close(augment(contrast=0.2)(image, torch.arange(1), seed=0), mean + 1.2 * (image - mean))
    # Together, in this order: brightness, saturation, contrast.
    bright = image * 1.2
    saturated = grey * 1.2 + 1.2 * (bright - grey * 1.2)
    expected = 1.2 * mean + 1.2 * (saturated - 1.2 * mean)
    seen = augment(brightness=0.2, contrast=0.2, saturation=0.2)(image, torch.arange(1), seed=0)
    torch.testing.assert_close(seen, expected.clamp(0, 1))


@pytest.mark.parametrize(("draw", "factor"), [(1, 2.5), (0, 1.0), (-0.5, 0.25), (-1, 0.0)])
def test_sharpness_multiplies_what_a_blur_takes_away(monkeypatch, images, draw, factor):
    fix_draws(monkeypatch, [0] * 9 + [draw])
    images = 0.4 + 0.2 * images  # nothing is clipped
    seen = augment(sharpness=1.5)(images, torch.arange(6), seed=0)
    for tile, changed in zip(images, seen, strict=True):
        blurred = gaussian_filter(tile.numpy(), (0, 1.5, 1.5), radius=(0, 4, 4), mode="nearest")
        np.testing.assert_allclose(changed, blurred + factor * (tile.numpy() - blurred), atol=1e-5)


def test_stays_in_range_and_in_float32():
    images = torch.cat([torch.zeros(8, 3, 4, 4), torch.ones(8, 3, 4, 4), torch.rand(8, 3, 4, 4)])
    module = ColourAugment(
        ColourConfig(stain_scale=0.9, stain_shift=0.9, brightness=0.9, contrast=0.9, saturation=0.9, sharpness=3)
    )
    for given in (images, images.half()):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            seen = module(given, torch.arange(24), seed=0)
        assert seen.dtype == torch.float32
        assert seen.isfinite().all() and seen.min() >= 0 and seen.max() <= 1


def test_half_precision_does_not_reach_the_colours(images):
    module = ColourAugment(ColourConfig())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        seen = module(images, torch.arange(6), seed=0)
    assert torch.equal(seen, module(images, torch.arange(6), seed=0))


def test_the_input_is_left_as_it_was_and_nothing_goes_into_the_checkpoint(images):
    before = images.clone()
    module = ColourAugment(ColourConfig())
    module(images, torch.arange(6), seed=0)
    assert torch.equal(images, before)
    assert not module.state_dict()


@pytest.mark.parametrize("value", [-0.1, 1.0, float("nan")])
def test_a_setting_out_of_range_is_named(value):
    with pytest.raises(ConfigError, match="augment.contrast"):
        ColourConfig(contrast=value)


def test_details_may_be_gone_or_manifold():
    assert ColourConfig(sharpness=3.0).sharpness == 3.0
    with pytest.raises(ConfigError, match=r"augment.sharpness must be in \[0, 4\), not 4"):
        ColourConfig(sharpness=4)
