"""Whole images through windows: every pixel is covered once, symmetries are undone, answers are put together again."""

import numpy as np
import pytest
import torch

from csat.errors import ConfigError
from csat.model.registry import find_model
from csat.prediction.answers import ModelAnswers
from csat.prediction.windows import View, margin_of, see, starts
from csat.responses import Kind, ResponseSpec, Symmetry
from csat.tasks import Task
from tests.csat.prediction.by_colour import ByColour, responses_of

SIZES = [(16, 16), (10, 12), (40, 16), (33, 51), (17, 90)]  # height, width; the tile has 16 px


def images_of(sizes):
    """Random images whose pixels are sure of their class: red or not."""
    rng = np.random.default_rng(0)
    return [rng.choice(np.array([40, 215], np.uint8), (*size, 3)) for size in sizes]


def say(model, images, *, tile_px=16, **view):
    """key → what was said, of images whose keys are their numbers"""
    view = View(**{"fit": "crop", "batch_size": 5, **view})
    return list(see(ModelAnswers(model, tile_px=tile_px), enumerate(images), view))


@pytest.mark.parametrize("crop_px", [0, 3])
@pytest.mark.parametrize("size", SIZES)
def test_windows_cover_every_pixel_of_an_image(size, crop_px):
    model = ByColour(responses_of(Task.SEGMENTATION, crop_px), outside=-99.0)  # its margin is always wrong
    (image,) = images_of([size])
    ((_, seen),) = say(model, [image])
    assert seen.shown == size
    np.testing.assert_array_equal(seen.maps["mask"].argmax(0), image[..., 0] > 128)


def test_an_image_that_fits_is_seen_once():
    model = ByColour(responses_of(Task.SEGMENTATION))
    say(model, images_of([(16, 16), (9, 16)]))
    assert model.num_tiles == 2


def test_a_stretched_image_is_seen_once_at_the_tile_s_size():
    model = ByColour(responses_of(Task.SEGMENTATION))
    ((_, seen),) = say(model, images_of([(40, 90)]), fit="resize")
    assert model.num_tiles == 1
    assert seen.shown == (16, 16) and seen.maps["mask"].shape == (2, 16, 16)


def test_answers_come_in_order_and_as_soon_as_they_are_complete():
    """Images are asked for one by one: nobody holds all of them at a time."""
    asked = []

    def ask():
        for key, image in enumerate(images_of(SIZES)):
            asked.append(key)
            yield key, image

    answers = ModelAnswers(ByColour(responses_of(Task.SEGMENTATION)), tile_px=16)
    for key, _ in see(answers, ask(), View(fit="crop", batch_size=1)):
        assert asked == list(range(key + 1))
    assert len(asked) == len(SIZES)


@pytest.mark.parametrize("batch_size", [1, 64])
def test_batches_do_not_matter(batch_size):
    model, images = ByColour(responses_of(Task.SEGMENTATION)), images_of(SIZES)
    for (key, seen), (other, expected) in zip(say(model, images, batch_size=batch_size), say(model, images), strict=True):
        assert key == other
        np.testing.assert_allclose(seen.maps["mask"], expected.maps["mask"], atol=1e-6)


def test_what_has_no_place_in_the_image_is_the_mean_over_its_windows():
    model = ByColour(responses_of(Task.CLASSIFICATION))
    image = np.zeros((16, 32, 3), np.uint8)
    image[:, 26:, 0] = 255  # windows begin at -2, 8 and 18: black, black, and black and red in equal shares
    ((_, seen),) = say(model, [image])
    assert model.num_tiles == 3
    assert seen.maps["label"][1] == pytest.approx((2 / (1 + np.exp(5)) + 1 / 2) / 3, abs=1e-5)
    assert seen.maps["label"].sum() == pytest.approx(1)


def test_the_maps_that_a_student_learned_are_no_answers():
    class WithLayer(ByColour):
        def forward(self, images):
            return {"mask": torch.cat([images[:, :1]] * 2, 1), "layer": images}

    model = WithLayer((*responses_of(Task.SEGMENTATION), ResponseSpec(name="layer", kind=Kind.FEATURES, channels=3)))
    ((_, seen),) = say(model, images_of([(16, 16)]))
    assert set(seen.maps) == {"mask"}


def test_eight_views_agree_for_a_model_that_turns_with_the_image():
    class Slopes(ByColour):
        """`hv` is the slope of the green channel: a field that turns and changes sign with the image."""

        def forward(self, images):
            rows, columns = torch.gradient(images[:, 1], dim=(1, 2))
            return {**super().forward(images), "hv": torch.stack([columns, rows], 1)}

    model, images = Slopes(responses_of(Task.NUCLEI)), images_of([(16, 16), (33, 51)])
    for (_, before), (_, after) in zip(say(model, images), say(model, images, views=8), strict=True):
        assert np.abs(before.maps["hv"]).max() > 0.2
        for name in ("np", "hv"):  # a field turned back with a wrong sign would average to nothing
            np.testing.assert_allclose(before.maps[name], after.maps[name], atol=1e-5)


def test_views_are_refused_for_maps_that_nobody_can_turn():
    unknown = ResponseSpec(name="mask", kind=Kind.LOGITS, channels=2, symmetry=Symmetry.NONE)
    with pytest.raises(ConfigError, match="does not say how its mask turn"):
        say(ByColour((unknown,)), images_of([(16, 16)]), views=8)
    assert say(ByColour((unknown,)), images_of([(16, 16)]))


def test_embeddings_alone_are_no_maps():
    embedding = ResponseSpec(name="features", kind=Kind.FEATURES, channels=2, stride_px=None)
    with pytest.raises(ConfigError, match="answers embeddings alone"):
        say(ByColour((embedding,)), images_of([(16, 16)]))


@pytest.mark.parametrize("network", ["mobile_unet", "enet"])
def test_a_network_for_segmentation_is_stitched_from_overlapping_windows(network):
    """A window inside the image: its inner area is what the network says of that window, less a margin."""
    torch.manual_seed(0)
    model, size = find_model(network)(find_model(network).Options(), responses_of(Task.SEGMENTATION)).eval(), 160
    (image,) = images_of([(size, size)])
    ((_, seen),) = say(model, [image], tile_px=64, batch_size=32)
    margin_px = margin_of(model.responses, 64)
    assert margin_px == 8
    _, start, following, *_ = starts(size, tile_px=64, crop_px=0, margin_px=margin_px)
    place, used = slice(start, start + 64), slice(start + 8, following + 8)  # where the following one is used, this one ends
    inner = slice(8, following + 8 - start)
    with torch.no_grad():
        alone = model(torch.from_numpy(image[place, place]).permute(2, 0, 1)[None] / 255)["mask"].softmax(1)[0].numpy()
    assert 0 <= start <= size - 64
    np.testing.assert_allclose(seen.maps["mask"][:, used, used], alone[:, inner, inner], atol=1e-5)
