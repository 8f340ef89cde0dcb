"""Supervised learning of the three tasks: its terms, its settings, and that a step lowers each task's loss."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from csat.errors import ConfigError
from csat.labels.targets import make_targets
from csat.losses.classes import classes_dice, cross_entropy
from csat.losses.hv import hv_gradient_error
from csat.losses.probability import soft_bce, soft_dice
from csat.losses.regression import squared_error
from csat.methods.contract import Setting
from csat.methods.supervised import Supervised, SupervisedConfig
from csat.responses import Batch
from csat.tasks import IGNORE, Task, targets_of
from tests.support.labelled_toy import TinyModel, draw_nuclei, draw_shades, losses_of_steps, make_info, to_batch

TILE_PX = 32
LABELS = [0, 1, 1, 0, 1, 0]


def make_batch(task: Task, classes=None, num_tiles: int = 6) -> Batch:
    info = make_info(task, classes)
    if task == Task.CLASSIFICATION:
        decoded = draw_shades(LABELS[:num_tiles], TILE_PX)
    else:
        decoded = [draw_nuclei(np.random.default_rng(seed), TILE_PX, num=4) for seed in range(num_tiles)]
    targets = [make_targets(info, one, label) for one, label in zip(decoded, LABELS, strict=False)]
    columns = {name: np.stack([np.asarray(target[name]) for target in targets]) for name in targets[0]}
    return to_batch(np.stack([one.image for one in decoded]), columns, targets_of(info))


def make_method(task: Task, classes=None, *, crop_px: int = 0, counts=None, **settings) -> Supervised:
    info = make_info(task, classes)
    model = TinyModel(info, crop_px=crop_px)
    return Supervised(SupervisedConfig(**settings), model, Setting(tile_px=TILE_PX, data=info, class_counts=counts))


def images_of(batch: Batch) -> torch.Tensor:
    return batch.tiles.float() / 255


CASES = [
    (Task.CLASSIFICATION, None, ["ce"]),
    (Task.SEGMENTATION, None, ["ce", "dice"]),
    (Task.NUCLEI, None, ["np_bce", "np_dice", "hv_mse", "hv_gradient", "tp_ce", "tp_dice"]),
    (Task.NUCLEI, (), ["np_bce", "np_dice", "hv_mse", "hv_gradient"]),
]


@pytest.mark.parametrize(("task", "classes", "terms"), CASES)
def test_terms_are_one_value_per_tile_each_with_its_weight(task, classes, terms):
    method, batch = make_method(task, classes), make_batch(task, classes)
    said = method(batch)
    assert list(said) == terms == list(method.weights)
    assert all(term.shape == (6,) and term.dtype == torch.float32 and torch.isfinite(term).all() for term in said.values())
    torch.testing.assert_close(method.total(said), sum(said.values()))
    one = method(Batch(batch.tiles[2:3], batch.positions[2:3], targets={k: v[2:3] for k, v in batch.targets.items()}))
    for name in terms:
        torch.testing.assert_close(one[name], said[name][2:3], msg=f"{name} of a tile does not depend on its batch")


@pytest.mark.parametrize(("task", "classes", "terms"), CASES)
def test_steps_lower_the_loss_of_a_fixed_batch(task, classes, terms):
    method, batch = make_method(task, classes), make_batch(task, classes)
    losses = losses_of_steps(method, batch, steps=15, lr=1e-2)
    assert losses[-1] < 0.9 * losses[0]
    assert all(parameter.grad is not None for parameter in method.parameters()), "DDP needs no search for unused weights"


def test_the_terms_of_nuclei_are_the_losses_inside_the_margin():
    method, batch = make_method(Task.NUCLEI, crop_px=4), make_batch(Task.NUCLEI)
    said, inner = method(batch), slice(4, TILE_PX - 4)
    predictions = {name: x[..., inner, inner].float() for name, x in method.model(images_of(batch)).items()}
    targets = {name: x[..., inner, inner] for name, x in batch.targets.items()}
    nucleus, hv = targets["np"][:, None].float(), targets["hv"].float()
    expected = {
        "np_bce": soft_bce(predictions["np"], nucleus),
        "np_dice": soft_dice(predictions["np"], nucleus),
        "hv_mse": squared_error(predictions["hv"], hv),
        "hv_gradient": hv_gradient_error(predictions["hv"], hv, nucleus),
        "tp_ce": cross_entropy(predictions["tp"], targets["tp"]),
        "tp_dice": classes_dice(predictions["tp"], targets["tp"]),
    }
    for name, value in expected.items():
        torch.testing.assert_close(said[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_what_lies_in_the_margin_does_not_matter():
    method, batch = make_method(Task.NUCLEI, crop_px=4), make_batch(Task.NUCLEI)
    before = method(batch)
    for target in batch.targets.values():
        target[..., :4, :] = 1
        target[..., -4:] = 1
    after = method(batch)
    for name, term in before.items():
        assert torch.equal(term, after[name]), name


def test_pixels_that_do_not_count_do_not_matter():
    method, batch = make_method(Task.SEGMENTATION), make_batch(Task.SEGMENTATION)
    batch.targets["mask"][:, :10] = IGNORE
    said = method(batch)
    logits = method.model(images_of(batch))["mask"][:, :, 10:]
    expected = F.cross_entropy(logits, batch.targets["mask"][:, 10:].long(), reduction="none").mean((1, 2))
    torch.testing.assert_close(said["ce"], expected)


def test_a_model_that_predicts_coarser_is_compared_at_the_labels_resolution():
    method, batch = make_method(Task.SEGMENTATION), make_batch(Task.SEGMENTATION)

    class Half(TinyModel):
        def forward(self, images):
            return {name: F.avg_pool2d(x, 2) for name, x in super().forward(images).items()}

    method.model = Half(make_info(Task.SEGMENTATION))
    said = method(batch)
    assert said["ce"].shape == (6,)
    said["ce"].sum().backward()


def test_terms_are_weighed_by_name():
    method, batch = make_method(Task.SEGMENTATION, weights={"dice": 0.5, "ce": 2.0}), make_batch(Task.SEGMENTATION)
    said = method(batch)
    torch.testing.assert_close(method.total(said), 2 * said["ce"] + 0.5 * said["dice"])
    only = make_method(Task.SEGMENTATION, weights={"ce": 0.0})
    torch.testing.assert_close(only.total(only(batch)), only(batch)["dice"])


def test_balanced_weights_make_rare_classes_count_more_and_one_on_average():
    counts = (30, 10)
    method, batch = make_method(Task.CLASSIFICATION, counts=counts, class_weights="balanced"), make_batch(Task.CLASSIFICATION)
    torch.testing.assert_close(method.class_weights, torch.tensor([2 / 3, 2.0]))
    assert (method.class_weights.numpy() * counts).sum() / sum(counts) == pytest.approx(1)
    plain = make_method(Task.CLASSIFICATION)(batch)["ce"]
    torch.testing.assert_close(method(batch)["ce"], plain * method.class_weights[batch.targets["label"]])
    assert "class_weights" not in method.state_dict(), "follows from the data, not from a checkpoint"


def test_label_smoothing_reaches_the_loss():
    method, batch = make_method(Task.CLASSIFICATION, label_smoothing=0.2), make_batch(Task.CLASSIFICATION)
    logits = method.model(images_of(batch))["label"]
    expected = F.cross_entropy(logits, batch.targets["label"], label_smoothing=0.2, reduction="none")
    torch.testing.assert_close(method(batch)["ce"], expected)


# ------------------------------------------------------------------------------------------------------------------- mixup


def test_mixup_mixes_images_and_labels_alike(monkeypatch):
    """With fixed draws: tile 0 takes 0.3 of its neighbour, tile 1 nothing, since its first draw is above the share."""
    method, batch = make_method(Task.CLASSIFICATION, mixup=0.5), make_batch(Task.CLASSIFICATION, num_tiles=2)
    draws = torch.tensor([[0.4, 0.6], [0.6, 0.6]])
    monkeypatch.setattr("csat.methods.supervised.uniforms", lambda positions, num, *, seed, stream: draws)
    images, label = images_of(batch), batch.targets["label"]
    mixed = torch.stack([0.7 * images[0] + 0.3 * images[1], images[1]])
    logits = method.model(mixed)["label"]
    own, other = (F.cross_entropy(logits, each, reduction="none") for each in (label, label.flip(0)))
    expected = torch.stack([0.7 * own[0] + 0.3 * other[0], own[1]])
    torch.testing.assert_close(method(batch)["ce"], expected)


def test_mixup_follows_from_positions_and_is_off_where_nothing_trains():
    method, batch = make_method(Task.CLASSIFICATION, mixup=0.9), make_batch(Task.CLASSIFICATION)
    plain = make_method(Task.CLASSIFICATION)(batch)["ce"]
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    first = method(batch)["ce"]
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(1)
    assert torch.equal(method(batch)["ce"], first)
    assert not torch.allclose(first, plain)
    batch.positions += 100
    assert not torch.equal(method(batch)["ce"], first), "another epoch, other draws"
    torch.testing.assert_close(method.eval()(batch)["ce"], plain)
    alone = make_batch(Task.CLASSIFICATION, num_tiles=1)
    torch.testing.assert_close(method.train()(alone)["ce"], plain[:1])


def test_mixup_concerns_the_share_of_tiles_that_was_asked_for():
    method = make_method(Task.CLASSIFICATION, mixup=0.25)
    tiles = torch.zeros(2, 3, TILE_PX, TILE_PX, dtype=torch.uint8)
    tiles[1::2] = 255
    seen = []
    method.model.register_forward_pre_hook(lambda model, given: seen.append(given[0].amax((1, 2, 3))))
    for start in range(0, 800, 2):
        method(Batch(tiles, torch.arange(start, start + 2), targets={"label": torch.tensor([0, 1])}))
    brightness = torch.cat(seen).view(-1, 2)
    of_dark, of_bright = brightness[:, 0], 1 - brightness[:, 1]
    for taken in (of_dark, of_bright):
        assert 0.2 < (taken > 0).float().mean() < 0.3
        assert taken.max() < 0.5
        assert taken[taken > 0].mean() == pytest.approx(0.25, abs=0.04)


# ---------------------------------------------------------------------------------------------------- precision, settings


@pytest.mark.parametrize(("task", "classes", "terms"), CASES)
def test_half_precision_gives_about_the_same_terms(task, classes, terms):
    method, batch = make_method(task, classes), make_batch(task, classes)
    full = method(batch)
    with torch.autocast("cpu", torch.bfloat16):
        half = method(batch)
    for name in terms:
        assert half[name].dtype == torch.float32
        torch.testing.assert_close(half[name], full[name], rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"class_weights": "inverse"}, "class_weights is none or balanced, not 'inverse'"),
        ({"label_smoothing": 1.0}, r"label_smoothing must lie in \[0, 1\)"),
        ({"mixup": -0.1}, "mixup must lie in"),
        ({"weights": {"ce": -1.0}}, "weights.ce must be a number of 0 or more"),
        ({"weights": {"ce": float("nan")}}, "weights.ce"),
        ({"weights": {"ce": "much"}}, "weights.ce"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        SupervisedConfig(**settings)


@pytest.mark.parametrize(
    ("task", "settings", "message"),
    [
        (Task.SEGMENTATION, {"weights": {"np_bce": 1.0}}, "no term of this run: np_bce; its terms are: ce, dice"),
        (Task.CLASSIFICATION, {"weights": {"ce": 0.0}}, "every weight is 0: nothing would be learned"),
        (Task.CLASSIFICATION, {"class_weights": "balanced"}, "needs the number of training samples of each class"),
        (Task.SEGMENTATION, {"label_smoothing": 0.1}, "label_smoothing: for classification, and the task is segmentation"),
        (Task.NUCLEI, {"mixup": 0.1, "class_weights": "balanced"}, "class_weights, mixup: for classification, .* nuclei"),
    ],
)
def test_settings_that_do_not_fit_the_task_are_refused(task, settings, message):
    with pytest.raises(ConfigError, match=message):
        make_method(task, **settings)


def test_types_have_terms_only_where_there_are_types():
    with pytest.raises(ConfigError, match="no term of this run: tp_ce; its terms are: np_bce, np_dice, hv_mse, hv_gradient"):
        make_method(Task.NUCLEI, (), weights={"tp_ce": 1.0})


def test_it_needs_no_teacher():
    method = make_method(Task.CLASSIFICATION)
    assert method.responses == ()
    assert method.part("student") is method.model
    with pytest.raises(KeyError):
        method.part("critic")
