"""The U-Net: geometry, skips, and what it refuses."""

import pytest
import torch

from csat.errors import ConfigError
from csat.model.unet import UNetModel, UNetOptions
from csat.responses import Kind, ResponseSpec

MASK = ResponseSpec(name="mask", kind=Kind.LOGITS, channels=3)
LABEL = ResponseSpec(name="label", kind=Kind.LOGITS, channels=5, stride_px=None)


def make(responses=(MASK,), **options):
    torch.manual_seed(0)
    return UNetModel(UNetOptions(**{"width": 4, "depth": 3, **options}), responses).eval()


@pytest.mark.parametrize(("height", "width"), [(64, 64), (32, 80)])
def test_predictions_cover_the_image(height, width):
    with torch.no_grad():
        predictions = make((MASK, LABEL))(torch.rand(2, 3, height, width))
    assert predictions["mask"].shape == (2, 3, height, width) and predictions["label"].shape == (2, 5)


def test_the_usual_size():
    """Widths 32 to 512 over four halvings: half the published channels; 1x1 convolutions in the place of transposed 2x2."""
    params = sum(parameter.numel() for parameter in UNetModel(UNetOptions(), [MASK]).parameters())
    transposed = sum(4 * 2 * width * width for width in (32, 64, 128, 256))
    assert params == pytest.approx(31.0e6 / 4 - 3 / 4 * transposed, rel=0.01)


def test_a_classifier_has_no_decoder():
    model = make((LABEL,))
    assert not list(model.decoder.parameters()) and not list(model.up.parameters())


def test_a_prediction_lies_where_its_pixel_is():
    """Seen from the gradient: no offset from halving and doubling, and no transposition."""
    image = torch.rand(1, 3, 64, 64, requires_grad=True)
    make(depth=2)(image)["mask"][0, 0, 20, 44].backward()
    weight = image.grad[0].abs().sum(0) ** 2
    place = torch.arange(64.0)
    assert (weight.sum(1) @ place / weight.sum()).item() == pytest.approx(20, abs=1.5)
    assert (weight.sum(0) @ place / weight.sum()).item() == pytest.approx(44, abs=1.5)


def test_the_bottleneck_sees_the_whole_image_and_the_skips_each_pixel():
    image = torch.rand(1, 3, 64, 64, requires_grad=True)
    model = make(depth=4)
    model(image)["mask"][0, 0, 32, 32].backward()
    assert (image.grad[0].abs().sum(0) > 0).float().mean() > 0.9
    with torch.no_grad():  # without the finest skip half the input of the last convolution is gone
        sharp = model(image)["mask"]
        model.encoder[0].register_forward_hook(
            lambda module, inputs, output: output.mean((2, 3), keepdim=True).expand_as(output)
        )
        assert not torch.allclose(model(image)["mask"], sharp)


def test_images_are_normalised_inside():
    model, image = make(), torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        expected = model(image)["mask"]
        shifted = (image - model.mean) / model.std
        model.mean.zero_(), model.std.fill_(1.0)
        torch.testing.assert_close(model(shifted)["mask"], expected)


def test_tiles_that_cannot_be_halved():
    model = make(depth=4)
    model.check_tile(96)
    with pytest.raises(ConfigError, match="unet takes tiles of multiples of 16 px: set data.tile_px 96, not 100"):
        model.check_tile(100)
    with pytest.raises(ConfigError, match="set data.tile_px 16, not 4"):
        model.check_tile(4)


@pytest.mark.parametrize("options", [{"width": 0}, {"depth": 0}, {"depth": 7}])
def test_sizes_that_cannot_be(options):
    with pytest.raises(ConfigError, match="width must be at least 1 and depth 1 to 6"):
        make(**options)
