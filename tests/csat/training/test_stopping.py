"""A run that is asked to end: the step is finished, all of it is committed, and whoever resumes ends as if it had not been."""

import threading
import time

import numpy as np
import pytest

from csat.errors import StoppedError
from csat.runs.checkpoints import Checkpoints
from csat.runs.recorder import read_metrics
from csat.training.config import TrainConfig
from csat.training.context import TrainContext
from csat.training.loop import Trainer
from csat.training.stoppable import StoppableStream
from csat.training.validation import Validation, ValidationConfig
from tests.support.toy import TILE_PX, ToyMethod, toy_plan, toy_stream

CONFIG = TrainConfig(epochs=2, batch_size=4, log_every_steps=1, checkpoint_every_s=None)


def make_trainer(folder, positions, *, is_stopped=lambda: False, measure=None, stream=None, **context):
    given = TrainContext(stream or (lambda size: toy_stream(positions, size)), is_stopped=is_stopped, **context)
    validation = measure and Validation(ValidationConfig(every_epochs=0.5), measure, tiles_per_epoch=24)
    return Trainer(ToyMethod(), toy_plan(), given, CONFIG, run_folder=str(folder), tile_px=TILE_PX, validation=validation)


def rest_of(folder):
    """What the committed checkpoint has not done."""
    done = Checkpoints(str(folder / "checkpoints")).latest_cursor().done
    return [position for position in range(48) if not done.contains(np.array([position]))[0]]


def check_equal(folder, trainer, whole):
    for name, tensor in whole.learner.method.state_dict().items():
        assert tensor.equal(trainer.learner.method.state_dict()[name]), name
    assert trainer.accounts.cursor.counts == whole.accounts.cursor.counts
    steps = [line["step"] for line in read_metrics(str(folder))]
    assert steps == list(range(1, 13)), "each step once"


def test_a_stopped_run_keeps_every_step_and_ends_as_if_it_had_not_been(tmp_path):
    whole = make_trainer(tmp_path / "whole", range(48))
    whole.run()
    folder, stop = tmp_path / "stopped", threading.Event()
    for num_steps in (1, 3, 2):
        left = rest_of(folder)

        def stream(size, left=left, num_steps=num_steps):
            for index, rows in enumerate(toy_stream(left, size)):
                if index == num_steps:
                    stop.set()  # these rows are taken and dropped: the next attempt takes them again
                yield rows

        with pytest.raises(StoppedError):
            make_trainer(folder, left, is_stopped=stop.is_set, stream=stream).run()
        assert len(left) - len(rest_of(folder)) == 4 * num_steps
        stop.clear()
    resumed = make_trainer(folder, rest_of(folder))
    resumed.run()
    check_equal(folder, resumed, whole)


def test_a_run_that_waits_for_rows_stops_at_once(tmp_path):
    waits, is_over, looks, answers = threading.Event(), threading.Event(), [], []

    def is_stopped():  # asked to end when it has looked twice while it waits
        looks.append(waits.is_set())
        return sum(looks) > 2

    def stream(size):
        yield from toy_stream(range(8), size)
        waits.set()
        answers.append(is_over.wait(250))  # a teacher that takes its time
        yield from toy_stream(range(8, 48), size)

    with pytest.raises(StoppedError):
        make_trainer(tmp_path, range(48), is_stopped=is_stopped, stream=stream).run()
    assert not answers, "it has waited for the teacher"
    is_over.set()
    assert rest_of(tmp_path) == list(range(8, 48))


def test_a_run_that_is_stopped_in_a_validation_measures_the_same_weights_later(tmp_path):
    def count(model, context):
        measured.append(float(sum(weight.sum() for weight in model.parameters())))
        if len(measured) == stops_at:
            raise StoppedError("the run was asked to end")
        return {"metric": float(len(measured))}

    measured, stops_at = [], None
    whole = make_trainer(tmp_path / "whole", range(48), measure=count)
    whole.run()
    expected, folder = measured, tmp_path / "stopped"
    measured, stops_at = [], 3
    with pytest.raises(StoppedError):
        make_trainer(folder, range(48), measure=count).run()
    assert len(rest_of(folder)) == 12
    stops_at = None
    resumed = make_trainer(folder, rest_of(folder), measure=count)
    resumed.run()
    assert measured[:2] + measured[3:] == expected, "once each, and of the weights of the same steps"
    check_equal(folder, resumed, whole)
    assert len(read_metrics(str(folder), "validation")) == 4


def test_a_machine_that_will_be_taken_away_is_a_reason_to_commit(tmp_path, monkeypatch):
    monkeypatch.setattr("csat.training.loop.LEAVING_EVERY_S", -1.0)
    asked = []

    def is_leaving():
        asked.append(len(rest_of(tmp_path)))
        return len(asked) in (3, 5)

    make_trainer(tmp_path, range(48), is_leaving=is_leaving).run()
    assert asked == [48, 48, 48, 36, 36, *[28] * 8], "committed after the third and the fifth step, and it continues"


def test_a_run_that_waits_for_rows_commits_before_its_machine_is_taken_away(tmp_path, monkeypatch):
    monkeypatch.setattr("csat.training.loop.LEAVING_EVERY_S", 0.3)

    def stream(size):
        yield from toy_stream(range(8), size)
        deadline = time.monotonic() + 250
        while len(rest_of(tmp_path)) == 48 and time.monotonic() < deadline:
            time.sleep(0.1)  # the teacher was on that machine
        seen.append(len(rest_of(tmp_path)))
        yield from toy_stream(range(8, 48), size)

    seen = []
    make_trainer(tmp_path, range(48), stream=stream, is_leaving=lambda: not seen).run()
    assert seen == [40] and not rest_of(tmp_path)


def test_a_stream_gives_its_rows_its_end_and_its_error():
    def stream():
        yield 1
        yield 2
        raise ValueError("broken")

    stoppable = StoppableStream(stream(), lambda: False)
    assert [stoppable.next(), stoppable.next()] == [1, 2]
    with pytest.raises(ValueError, match="broken"):
        stoppable.next()
    assert stoppable.next() is None
    ended = StoppableStream(iter([3]), lambda: True)
    assert [ended.next(), ended.next(), ended.next()] == [3, None, None]


def test_a_stream_reads_nothing_ahead():
    read, is_closed = [], threading.Event()

    def stream():
        try:
            for each in range(9):
                read.append(each)
                yield each
        finally:
            is_closed.set()

    stoppable = StoppableStream(stream(), lambda: False)
    assert [stoppable.next(), stoppable.next()] == [0, 1]
    stoppable.close()
    assert is_closed.wait(250), "its thread has ended"
    assert read == [0, 1]
