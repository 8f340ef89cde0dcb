"""What a trial of several workers tells Ray Tune. Its training is a group of its own; here a writer stands in for it."""

import time
from types import SimpleNamespace

import pytest

from csat.runs.recorder import Recorder
from workflows.sweep import trial


class Training:
    """Writes the figures of three validations, a while apart; then it ends, or fails."""

    def __init__(self, run_folder, *, fails=False):
        self.run_folder, self.fails, self.told = str(run_folder), fails, []

    def __call__(self, settings, prepared, *, is_stopped):
        recorder = Recorder(settings.run_folder, last_step=0)
        for step in (4, 8, 12):
            recorder.log({"step": step, "epoch": step / 4, "best_metric": step / 100}, "validation")
            deadline = time.monotonic() + 30
            while step == 8 and not self.told and time.monotonic() < deadline:
                time.sleep(0.01)
        recorder.close()
        if self.fails:
            raise ValueError("step 13: loss is not finite")

    def run(self, monkeypatch, *, last_step):
        monkeypatch.setattr(trial, "fit", self)
        monkeypatch.setattr(trial, "WATCH_EVERY_S", 0.02)
        watch = SimpleNamespace(is_stopped=lambda: False)
        trial._fit_in_group(SimpleNamespace(run_folder=self.run_folder), None, self.told.append, last_step, watch)


def test_validations_of_a_group_are_told_while_it_trains_each_of_them_once(tmp_path, monkeypatch):
    """Those up to the checkpoint that it resumes from were told already."""
    training = Training(tmp_path)
    training.run(monkeypatch, last_step=4)
    assert [line["step"] for line in training.told] == [8, 12]


def test_a_group_that_fails_is_heard_of_after_its_validations(tmp_path, monkeypatch):
    training = Training(tmp_path, fails=True)
    with pytest.raises(ValueError, match="step 13"):
        training.run(monkeypatch, last_step=0)
    assert [line["step"] for line in training.told] == [4, 8, 12]
