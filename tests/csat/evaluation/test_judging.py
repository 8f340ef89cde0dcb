"""What a model says of labelled images, as rows: bad samples are named, pictures show what was counted."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from csat.errors import SlideError
from csat.evaluation.judging import Answer, judge, show
from csat.evaluation.predictions import concatenate
from csat.evaluation.scores import figures_of
from csat.instances import hv_targets
from csat.labels.augment import resize_labels
from csat.labels.datasets.contract import Decoded, Sample
from csat.labels.datasets.registry import read_dataset
from csat.labels.decoded import SampleDecoder
from csat.model.contract import Model
from csat.prediction.answers import ModelAnswers
from csat.prediction.windows import View
from csat.responses import Kind, ResponseSpec
from csat.tasks import IGNORE, DatasetInfo, Task
from tests.csat.prediction.by_colour import ByColour, responses_of

SIZES = [(16, 16), (10, 12), (40, 16), (33, 51), (17, 90)]  # height, width; the tile has 16 px


def info_of(task, classes=("other", "red")):
    return DatasetInfo(name="toy", task=task, classes=classes, mpp=None, licence="", source="", group="image")


class Images:
    """A source of random images whose mask is their red channel; an image of size None cannot be read."""

    def __init__(self, sizes):
        self.sizes = sizes

    def get(self, index):
        if self.sizes[index] is None:
            raise SlideError("unreadable", f"image {index} is broken")
        rng = np.random.default_rng(index)
        image = rng.choice(np.array([40, 215], np.uint8), (*self.sizes[index], 3))
        return Decoded(image=image, mask=(image[..., 0] > 128).astype(np.uint8))


def samples_of(sizes):
    return [Sample(key=f"s{i}", layout="toy", image=f"s{i}", group=f"g{i}", label=i % 2) for i in range(len(sizes))]


def say(task, sizes, *, model=None, source=None, info=None, tile_px=16, **view):
    answers = ModelAnswers(model or ByColour(responses_of(task)), tile_px=tile_px)
    view = View(**{"fit": "crop", "batch_size": 5, **view})
    samples = samples_of(sizes)
    indices = range(len(sizes))
    return judge(answers, source or Images(sizes), samples, indices, info or info_of(task), view)


def test_batches_do_not_matter_nor_who_judges_what():
    whole = say(Task.SEGMENTATION, SIZES, batch_size=64)
    one_by_one = say(Task.SEGMENTATION, SIZES, batch_size=1)
    answers, view = ModelAnswers(ByColour(responses_of(Task.SEGMENTATION)), tile_px=16), View(fit="crop")
    samples = samples_of(SIZES)
    parts = [
        judge(answers, Images(SIZES), samples[r::2], range(len(SIZES))[r::2], info_of(Task.SEGMENTATION), view) for r in (0, 1)
    ]
    for other in (one_by_one, concatenate(parts)):
        assert other.keys == whole.keys and other.groups == whole.groups
        np.testing.assert_array_equal(other.arrays["confusion"], whole.arrays["confusion"])


def test_a_stretched_image_is_judged_at_its_own_size():
    said = say(Task.SEGMENTATION, [(32, 64)], fit="resize")
    assert said.arrays["confusion"].sum() == 32 * 64


def test_ignored_pixels_do_not_count():
    class Partly(Images):
        def get(self, index):
            decoded = super().get(index)
            mask = decoded.mask.copy()
            mask[:4] = IGNORE
            return Decoded(image=decoded.image, mask=mask)

    said = say(Task.SEGMENTATION, [(16, 20)], source=Partly([(16, 20)]))
    assert said.arrays["confusion"].sum() == 12 * 20
    assert said.loss[0] < 0.01


def test_a_classification_is_the_mean_over_windows():
    model = ByColour(responses_of(Task.CLASSIFICATION))
    said = say(Task.CLASSIFICATION, [(16, 16), (16, 80)], model=model)
    image = Images([(16, 16)]).get(0).image / 255
    expected = 1 / (1 + np.exp(-((image[..., 0] - 0.5) * 10).mean()))
    assert said.arrays["probs"][0, 1] == pytest.approx(expected, abs=1e-5)
    assert said.loss[0] == pytest.approx(-np.log(1 - expected), abs=1e-4)  # labelled 0
    np.testing.assert_allclose(said.arrays["probs"].sum(1), 1, atol=1e-6)


def test_eight_views_make_any_model_turn_with_the_image():
    class Slanted(ByColour):
        """Right half of each tile: sure of the first class."""

        def forward(self, images):
            said = super().forward(images)
            return {name: values + torch.linspace(-30, 30, values.shape[-1]) for name, values in said.items()}

    class Turned(Images):
        def get(self, index):
            decoded = super().get(0)
            return Decoded(**{n: np.rot90(getattr(decoded, n), index).copy() for n in ("image", "mask")})

    sizes = [(16, 16)] * 4
    model = Slanted(responses_of(Task.SEGMENTATION))
    said = say(Task.SEGMENTATION, sizes, model=model, source=Turned(sizes), views=8)
    for row in range(1, 4):
        np.testing.assert_allclose(said.loss[row], said.loss[0], rtol=1e-4)


CENTRES = ((16, 16), (16, 29), (40, 34))  # row, column of the discs


class Nuclei(Images):
    """Discs; green and blue hold the horizontal and vertical maps, as `ByColour` reads them."""

    def get(self, index):
        height, width = self.sizes[index]
        y, x = np.mgrid[:height, :width]
        instances = np.zeros((height, width), np.int32)
        for number, (row, column) in enumerate(CENTRES, 1):
            instances[(y - row) ** 2 + (x - column) ** 2 <= 36] = 10 * number
        hv = hv_targets(instances)
        colours = np.stack([np.where(instances > 0, 1.0, 0.0), 0.5 + hv[0] / 2, 0.5 + hv[1] / 2], -1)
        types = np.where(instances == 30, 2, np.where(instances > 0, 1, 0)).astype(np.uint8)
        return Decoded(image=(colours * 255).round().astype(np.uint8), instances=instances, types=types)


class Finer(Nuclei):
    """The same discs on twice as many pixels: labels of 0.25 um/px for a model of 0.5."""

    def get(self, index):
        decoded = super().get(index)
        double = {name: getattr(decoded, name).repeat(2, 0).repeat(2, 1) for name in ("image", "instances", "types")}
        return Decoded(**double)


def test_a_model_sees_its_own_resolution_and_is_judged_on_the_labels_pixels():
    class Counts(ByColour):
        def forward(self, images):
            self.seen = images.shape
            return super().forward(images)

    sizes = [(56, 60)]
    answers = ModelAnswers(Counts(responses_of(Task.NUCLEI)), tile_px=64)
    samples = [replace(samples_of(sizes)[0], mpp=0.25)]
    said = {
        mpp: judge(answers, Finer(sizes), samples, [0], info_of(Task.NUCLEI, ()), View(fit="crop", mpp=mpp))
        for mpp in (0.5, None)
    }
    tp, fp, fn = said[0.5].arrays["pixels"][0]
    assert tp + fn == (Finer(sizes).get(0).instances > 0).sum(), "all of the labels' pixels count"
    assert 2 * tp / (2 * tp + fp + fn) > 0.95
    assert said[0.5].arrays["detection"][0].tolist() == [3, 0, 0], "post-processing follows the resolution of the answers"
    assert answers.model.num_tiles == 1 + 9, "one window at 0.5 um/px, nine of the image as it is"


def test_single_nuclei_are_found_and_matched():
    said = say(Task.NUCLEI, [(56, 60)], source=Nuclei([(56, 60)]), info=info_of(Task.NUCLEI, ()), tile_px=64)
    figures = figures_of(said)
    assert figures["dice"] == pytest.approx(1.0)
    assert figures["dq"] == pytest.approx(1.0)  # three nuclei, two of which touch
    assert figures["pq"] > 0.9


def test_a_model_that_is_too_sure_of_its_nuclei_is_badly_calibrated():
    """It says 0.8 of every pixel; of half of the other image it says so, too, and 0.1 of the rest."""

    class Sure(ByColour):
        def forward(self, images):
            said = super().forward(images)
            high = torch.full_like(said["np"], np.log(0.8 / 0.2))
            high[..., 32:] = self.right_half
            return {**said, "np": high}

    model = Sure(responses_of(Task.NUCLEI))
    source = Nuclei([(64, 64)])
    true = source.get(0).instances > 0
    for model.right_half, expected in (
        (np.log(0.8 / 0.2), abs(0.8 - true.mean())),
        (np.log(0.1 / 0.9), abs(0.8 - true[:, :32].mean()) / 2 + abs(0.9 - (~true[:, 32:]).mean()) / 2),
    ):
        said = say(Task.NUCLEI, [(64, 64)], source=source, info=info_of(Task.NUCLEI, ()), model=model, tile_px=64)
        assert said.arrays["calibration"].shape == (1, 15, 3) and said.arrays["calibration"][0, :, 0].sum() == true.size
        assert figures_of(said)["ece"] == pytest.approx(expected, abs=1e-6)


def test_types_are_matched_where_a_set_has_them():
    responses = (*responses_of(Task.NUCLEI), ResponseSpec(name="tp", kind=Kind.LOGITS, channels=3))

    class Typed(nn.Module):
        downsample, see = 1, Model.see

        def forward(self, images):
            dense = ByColour(responses_of(Task.NUCLEI))(images)
            y = torch.arange(images.shape[2])[:, None].expand(*images.shape[2:]).float()
            logits = torch.stack([torch.full_like(y, -9), torch.zeros_like(y), torch.where(y > 30, 9.0, -9.0)])
            return {**dense, "tp": logits.expand(len(images), -1, -1, -1)}

    model = Typed()
    model.responses = responses
    info = info_of(Task.NUCLEI, ("one", "two"))
    said = say(Task.NUCLEI, [(64, 64)], source=Nuclei([(64, 64)]), info=info, model=model, tile_px=64)
    figures = figures_of(said)
    assert figures["pq/one"] > 0.9 and figures["pq/two"] > 0.9
    assert figures["hovernet_fc/one"] == figures["hovernet_fc/two"] == figures["hovernet_fd"] == 1


class Oracle(nn.Module):
    """Answers the true maps of one image, seen as one tile."""

    downsample, see = 1, Model.see

    def __init__(self, instances, types):
        super().__init__()
        self.responses = (*responses_of(Task.NUCLEI), ResponseSpec(name="tp", kind=Kind.LOGITS, channels=3))
        said = {
            "np": (instances > 0)[None] * 20.0 - 10,
            "hv": hv_targets(instances),
            "tp": np.eye(3)[types].transpose(2, 0, 1) * 9,
        }
        self.said = {name: torch.from_numpy(np.asarray(values, np.float32))[None] for name, values in said.items()}

    def forward(self, images):
        return {name: values.expand(len(images), -1, -1, -1) for name, values in self.said.items()}


FIELD_PX, TILE_PX = 384, 128  # at 0.25 um/px, and as it is seen: at 0.75


@pytest.fixture(scope="module")
def field(tmp_path_factory):
    """(samples of one image with touching discs at 0.25 um/px, its instances and types)"""
    folder = tmp_path_factory.mktemp("field")
    y, x = np.mgrid[:FIELD_PX, :FIELD_PX]
    instances = np.zeros((FIELD_PX, FIELD_PX), np.int32)
    rng = np.random.default_rng(0)
    for number, (row, column) in enumerate(np.mgrid[24:FIELD_PX:40, 24:FIELD_PX:34].reshape(2, -1).T, 1):
        top, left = (row, column) + rng.integers(-4, 5, 2)
        instances[((y - top) ** 2 + (x - left) ** 2 <= rng.integers(12, 20) ** 2) & (instances == 0)] = number
    types = np.where(instances > 0, 1 + instances % 2, 0).astype(np.uint8)
    for name, pixels in (("images", np.zeros((FIELD_PX, FIELD_PX, 3), np.uint8)), ("masks", instances.astype(np.uint16))):
        (folder / name).mkdir()
        Image.fromarray(pixels).save(folder / name / "0.png")
    return read_dataset("pairs", str(folder), task=Task.NUCLEI, options={"mpp": 0.25}).samples, instances, types


def ask(field, how, fit, mpp, **view):
    """What the oracle is judged by, with the image decoded as a run decodes it."""
    samples, instances, types = field
    decoder = SampleDecoder(samples, mpp=mpp, whole_px=TILE_PX if fit == "resize" else None)
    model = Oracle(*(resize_labels(each, TILE_PX, TILE_PX) for each in (instances, types)))
    answers, view = ModelAnswers(model, tile_px=TILE_PX), View(fit=fit, **view)
    return how(answers, decoder, samples, [0], info_of(Task.NUCLEI, ("one", "two")), view)


def test_a_stretched_image_gives_the_nuclei_of_a_window_at_that_resolution(field):
    """Post-processing sees what the model answered, at the resolution that it has there, not the file's."""
    window, same_grid = ask(field, judge, "crop", 0.75), ask(field, judge, "resize", 0.75)
    assert window.arrays.keys() == same_grid.arrays.keys()
    for name, counts in window.arrays.items():
        np.testing.assert_array_equal(same_grid.arrays[name], counts, err_msg=name)
    file_grid = ask(field, judge, "resize", None)  # judged on 1.5 times the tile's pixels
    figures, expected = figures_of(file_grid), figures_of(window)
    assert expected["dq"] > 0.95
    for name in ("dice", "pq", "dq", "aji", "detection_f1", "hovernet_fd"):  # areas lose a little on the finer pixels
        assert figures[name] == pytest.approx(expected[name], abs=0.1), name
    assert np.array_equal(file_grid.arrays["detection"], window.arrays["detection"])


def test_pictures_show_the_nuclei_that_are_counted(field):
    (window,), (stretched,) = ask(field, show, "crop", 0.75), ask(field, show, "resize", None)
    edge = stretched["said"].shape[0]
    assert edge == 1.5 * TILE_PX and stretched["true"].shape == stretched["image"].shape[:2] == (edge, edge)
    assert np.array_equal(stretched["said"], resize_labels(window["said"], edge, edge))
    assert stretched["title"].split(";")[0] == window["title"].split(";")[0]


@pytest.mark.parametrize(
    ("sizes", "shown_mpp"), [((96, 96), 0.5), ((48, 48), 0.25), ((96, 24), 0.25)], ids=["shrunk", "as it is", "unevenly"]
)
def test_the_resolution_of_what_was_said(sizes, shown_mpp):
    """Of an image of 0.25 um/px, and the same of one that was decoded at half its size."""
    for scale in (1.0, 0.5):
        decoded = Decoded(image=np.zeros((*sizes, 3), np.uint8), scale=scale)
        for mpp, factor in ((0.25, 1), (None, 1), (0.5, 2)):
            sample = Sample(key="a", layout="toy", image="a", group="a", mpp=mpp)
            answer = Answer(sample=sample, decoded=decoded, maps={}, shown=(48, 48))
            assert answer.shown_mpp == pytest.approx(shown_mpp * factor / scale)
            assert answer.mpp == pytest.approx(0.25 * factor / scale)


def test_centroids_are_compared_at_the_resolution_of_the_decoded_image():
    """8 px are 2 um in a file of 0.25 um/px, and 4 um where it was decoded at half its size: too far."""

    class Shifted(Nuclei):
        scale = 1.0

        def get(self, index):
            decoded = super().get(index)
            first = np.roll(np.where(decoded.instances == 30, 30, 0), 8, 1)
            return replace(decoded, instances=first.astype(np.int32), scale=self.scale)

    source = Shifted([(56, 60)])
    found = {}
    for source.scale in (1.0, 0.5):
        said = say(Task.NUCLEI, [(56, 60)], source=source, info=info_of(Task.NUCLEI, ()), tile_px=64)
        found[source.scale] = said.arrays["detection"][0, 0]
    assert found == {1.0: 1, 0.5: 0}


def test_a_sample_whose_types_are_not_known_is_judged_without(field):
    """In a set that has types: its nuclei count, and for no type."""
    said = ask(field, judge, "crop", 0.75)  # pairs know no types
    assert said.arrays["match"][0, 0] > 50 and not said.arrays["match_by_type"].any()


def test_a_broken_sample_is_named_and_the_others_are_judged():
    sizes = [(16, 16), None, (20, 16)]
    said = say(Task.SEGMENTATION, sizes)
    assert said.keys == ("s0", "s2")
    assert said.unreadable == (("s1", "unreadable: image 1 is broken"),)


def test_nobody_may_have_nothing_to_judge():
    mine, empty = say(Task.SEGMENTATION, [(16, 16)]), say(Task.SEGMENTATION, [])
    assert len(empty) == 0
    assert concatenate([empty, mine]).keys == mine.keys


@pytest.mark.parametrize("task", [Task.CLASSIFICATION, Task.SEGMENTATION, Task.NUCLEI])
def test_pictures_say_what_was_labelled_and_what_was_said(task):
    source = Nuclei([(56, 60)]) if task == Task.NUCLEI else Images([(56, 60)])
    classes = () if task == Task.NUCLEI else ("other", "red")
    answers, view = ModelAnswers(ByColour(responses_of(task)), tile_px=64), View(fit="crop")
    (picture,) = show(answers, source, samples_of([0]), [0], info_of(task, classes), view)
    assert picture["image"].shape == (56, 60, 3) and picture["key"] == "s0" and picture["loss"] >= 0
    if task == Task.CLASSIFICATION:
        assert picture["title"].startswith("labelled other, said ") and picture["true"] is None
    else:
        assert ((picture["true"] > 0) == (picture["said"] > 0)).mean() > 0.99
    if task == Task.NUCLEI:
        assert picture["title"].startswith("3 nuclei, said 3")
