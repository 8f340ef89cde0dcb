"""When it is measured, which weights are kept, when patience ends, and that a checkpoint brings all of it back."""

import math

import pytest
import torch
from torch import nn

from csat.errors import ConfigError
from csat.training.context import TrainContext
from csat.training.validation import Validation, ValidationConfig

CONTEXT = TrainContext(lambda size: iter(()))


def make_validation(metrics, *, tiles_per_epoch=10, **settings) -> Validation:
    """Measures these values one after the other."""
    values = iter(metrics)
    return Validation(
        ValidationConfig(**settings),
        lambda model, context: {"metric": next(values), "accuracy": 0.5},
        tiles_per_epoch=tiles_per_epoch,
    )


def measure(validation, *, done, step=None):
    step = done if step is None else step
    state = {"weight": torch.full((2,), float(step)), "count": torch.tensor(step)}
    return validation.measure(nn.Linear(1, 1), state, CONTEXT, done=done, step=step)


def test_the_best_weights_are_kept_as_a_copy():
    validation = make_validation([0.3, 0.7, 0.5])
    state = {"weight": torch.zeros(2)}
    for step in (1, 2, 3):
        state["weight"].fill_(step)  # training continues in place
        figures = validation.measure(nn.Linear(1, 1), state, CONTEXT, done=10 * step, step=step)
    assert validation.best_state["weight"].tolist() == [2, 2]
    assert (validation.best, validation.best_step) == (0.7, 2)
    assert figures == {"step": 3, "epoch": 3.0, "metric": 0.5, "accuracy": 0.5, "best_metric": 0.7, "best_step": 2}


def test_the_last_weights_are_kept_where_that_is_asked_for():
    validation = make_validation([0.3, 0.7, 0.5, float("nan")], keep="last", patience=2)
    for step in (10, 20, 30):
        measure(validation, done=step)
        assert (validation.best_step, validation.best_state["weight"].tolist()) == (step, [step, step])
    assert validation.best == 0.5
    measure(validation, done=40)
    assert validation.best_step == 40
    assert validation.is_stopped  # patience counts as ever
    with pytest.raises(ConfigError, match="validation.keep is best or last, not 'first'"):
        ValidationConfig(keep="first")


def test_of_equals_the_first_is_the_best():
    validation = make_validation([0.5, 0.5])
    measure(validation, done=10), measure(validation, done=20)
    assert validation.best_step == 10


def test_patience_counts_validations_that_are_no_better():
    validation = make_validation([0.5, 0.4, 0.6, 0.6, 0.1], patience=2)
    stopped = []
    for done in range(10, 60, 10):
        measure(validation, done=done)
        stopped.append(validation.is_stopped)
    assert stopped == [False, False, False, False, True]
    assert validation.best == 0.6


def test_without_patience_it_never_stops():
    validation = make_validation([0.5] + [0.1] * 50)
    for done in range(10, 500, 10):
        measure(validation, done=done)
    assert not validation.is_stopped


def test_small_steps_use_up_patience_but_their_weights_are_kept():
    validation = make_validation([0.5, 0.52, 0.54, 0.56, 0.70], patience=3, min_delta=0.05)
    for done in (10, 20, 30):
        measure(validation, done=done)
    assert (validation.best, validation.num_worse) == (0.54, 2)
    measure(validation, done=40)  # 0.56: better than 0.5 by more than 0.05
    assert validation.num_worse == 0
    measure(validation, done=50)
    assert (validation.best, validation.best_step, validation.num_worse) == (0.7, 50, 0)


@pytest.mark.parametrize("first", [math.nan, -math.inf])
def test_what_is_no_number_is_never_the_best(first):
    validation = make_validation([first, 0.2, math.nan], patience=2)
    measure(validation, done=10)
    assert (validation.best_state, validation.num_worse) == (None, 1)
    measure(validation, done=20)
    assert (validation.best, validation.num_worse) == (0.2, 0)
    measure(validation, done=30)
    assert (validation.best, validation.num_worse) == (0.2, 1)


def test_a_negative_metric_can_be_the_best():
    validation = make_validation([-3.0, -2.0])
    measure(validation, done=10), measure(validation, done=20)
    assert (validation.best, validation.best_step) == (-2.0, 20)


@pytest.mark.parametrize(
    ("every_epochs", "expected"),
    [
        (1.0, [12, 20, 32]),  # the first step at or after each epoch's end
        (2.0, [20]),
        (0.5, [8, 12, 16, 20, 28, 32]),
        (0.1, [4, 8, 12, 16, 20, 24, 28, 32]),  # more often than there are steps: after each
    ],
)
def test_it_is_due_when_an_interval_is_over(every_epochs, expected):
    validation = make_validation([0.5] * 50, every_epochs=every_epochs)
    due = []
    for done in range(4, 36, 4):
        if validation.is_due(done):
            measure(validation, done=done)
            due.append(done)
    assert due == expected


@pytest.mark.parametrize("every_epochs", [0.1, 0.3, 1 / 3, 0.7])
def test_rounding_does_not_put_off_a_validation(every_epochs):
    """Steps of one tile, epochs of ten: due at every whole tile that an interval ends with."""
    validation = make_validation([0.5] * 200, every_epochs=every_epochs)
    due = []
    for done in range(1, 101):
        if validation.is_due(done):
            measure(validation, done=done)
            due.append(done)
    interval = every_epochs * 10
    assert due == [math.ceil(round(index * interval, 6)) for index in range(1, int(100 / interval + 1e-6) + 1)]


def test_at_the_end_it_is_due_unless_these_weights_were_measured():
    validation = make_validation([0.5, 0.6])
    assert validation.is_due(7, is_end=True)
    measure(validation, done=10)
    assert not validation.is_due(10, is_end=True)
    assert validation.is_due(11, is_end=True)


def test_a_checkpoint_brings_everything_back(tmp_path):
    first = make_validation([0.5, 0.6, 0.4], patience=2)
    for done in (10, 20, 30):
        measure(first, done=done)
    torch.save(first.state(), tmp_path / "state.pt")
    second = make_validation([0.5], patience=2)
    second.restore(torch.load(tmp_path / "state.pt", weights_only=True))
    assert (second.best, second.best_step, second.num_worse, second.last_tiles) == (0.6, 20, 1, 30)
    assert torch.equal(second.best_state["weight"], first.best_state["weight"])
    assert not second.is_due(30)
    measure(second, done=40)
    assert second.is_stopped, "patience continues where it was"


def test_a_fresh_state_comes_back_too(tmp_path):
    torch.save(make_validation([]).state(), tmp_path / "state.pt")
    validation = make_validation([0.1])
    validation.restore(torch.load(tmp_path / "state.pt", weights_only=True))
    assert validation.best_state is None
    assert measure(validation, done=10)["best_metric"] == 0.1


def test_measuring_keeps_no_graph():
    seen = []
    validation = Validation(
        ValidationConfig(), lambda model, context: {"metric": seen.append(torch.is_grad_enabled()) or 0.5}, tiles_per_epoch=10
    )
    measure(validation, done=10)
    assert seen == [False]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every_epochs": 0.0}, "validation.every_epochs must be above 0, not 0.0"),
        ({"patience": 0}, "at least 1, or null, not 0"),
        ({"min_delta": -0.1}, "validation.min_delta must be 0 or more, not -0.1"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        ValidationConfig(**settings)
