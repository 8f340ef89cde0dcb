import time

import pytest

from workflows.shell import cluster
from workflows.shell.progress import Progress, describe

FIGURES = {
    "step": 7,
    "tiles": 1200,
    "tiles_total": 5000,
    "tiles_per_s": 31.26,
    "wait_share": 0.125,
    "loss": 0.98765,
    "eta_s": 121.6,
}


def test_a_line_says_where_how_fast_how_idle_and_how_long():
    assert describe(FIGURES) == "step 7 | 31.3 tiles/s | waiting 12% | loss 0.9877 | ETA 00:02:01"


def test_the_loss_of_each_of_several_students_is_said():
    figures = {name: value for name, value in FIGURES.items() if name != "loss"} | {"loss/a": 0.5, "loss/b": 0.25}
    assert "| loss a 0.5000, b 0.2500 | ETA" in describe(figures)


@pytest.mark.parametrize(("seconds", "words"), [(None, "loss 0.9877"), (90061, "ETA 01:01:01 1d")])
def test_an_estimate_may_be_missing_or_take_days(seconds, words):
    assert describe({**FIGURES, "eta_s": seconds}).endswith(words)


def test_lines_come_now_and_then_and_at_the_end(capsys, monkeypatch):
    clock = iter(range(0, 1000, 6))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))  # each look at the clock is 6 s after the one before
    with Progress("cutting", total=2000, unit="tile") as shown:
        for done in range(200, 2001, 200):
            shown.show(done, f"slide {done}", is_last=done == 2000)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "cutting: 600/2,000 tiles | slide 600" and lines[-1] == "cutting: 2,000/2,000 tiles | slide 2000"
    assert 3 <= len(lines) <= 5


def test_the_schedulers_word_counts_more_than_the_machines(monkeypatch):
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    machine = cluster.available_cpus()
    assert machine >= 1
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    assert cluster.available_cpus() == 1
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "9999")
    assert cluster.available_cpus() == machine
