"""Nothing has become twice as slow: generous bounds on ratios that are measured within one run, best of a few.

The machine may be busy with other work: whatever is compared is slowed alike, and one good try is enough.
"""

import signal
from collections.abc import Callable

import pytest

from csat.precision import BFLOAT16, FLOAT32, has_bfloat16
from csat.slides.synthetic import make_slides
from workflows.rates.ceiling import measure_once
from workflows.rates.config import BenchmarkConfig
from workflows.rates.readers import BARE, OURS, measure_readers
from workflows.rates.students import FORWARD, TRAINING, measure_students

pytestmark = [pytest.mark.ray, pytest.mark.thorough, pytest.mark.timeout(300)]

TRIES = 3


def best(measure: Callable[[], float], *, enough: float, tries: int = TRIES) -> float:
    """The best of a few tries, no more than are needed."""
    found = 0.0
    for _ in range(tries):
        found = max(found, measure())
        if found >= enough:
            break
    return found


def test_the_reader_keeps_up_with_bare_openslide():
    """As fast from disk on a quiet machine; from a bucket it asks for more than the file, which a small one shows.

    SIGTERM is blocked, as verbs have it, and in all that they start: the bucket's server has to end nevertheless.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    seen = {"disk": 0.0, "bucket": 0.0}

    def measure() -> float:
        for place, of in measure_readers(BenchmarkConfig(rounds=3, quick=True)).items():
            seen[place] = max(seen[place], of[OURS]["most"] / of[BARE]["most"])
        return min(seen["disk"] / 0.6, seen["bucket"] / 0.4)

    try:
        assert best(measure, enough=1.0) >= 1.0, seen
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


@pytest.mark.skipif(not has_bfloat16("cpu"), reason="this CPU has no bfloat16 units")
def test_a_student_gains_by_bfloat16():
    """csat trains 1.5 times as fast, and answers faster, too: where bfloat16 loses, something falls back to slow code."""

    def measure() -> float:
        config = BenchmarkConfig(students=["csat"], ways=[FLOAT32, BFLOAT16], tile_px=128, batch_size=8, rounds=3, threads=1)
        of = measure_students(config)["csat"]
        return min(of[what][BFLOAT16]["most"] / of[what][FLOAT32]["most"] for what in (FORWARD, TRAINING))

    assert best(measure, enough=0.9) >= 0.9


def test_a_run_stays_near_its_ceiling(tmp_path):
    """Teacher, student and readers together do what the cores allow, less what it costs to hand tiles on.

    Both cores are the student's from the first step on: so short a run would spend half of its steps on finding that out.
    """
    made = make_slides(tmp_path / "slides", num_slides=1, size_px=3072)
    turns = iter(range(TRIES))

    def measure() -> float:
        figures = measure_once(lambda folder: _command(made, folder), tmp_path / f"try-{next(turns)}", "cpu")
        return figures["steady_tiles_per_s"] / figures["ceiling_tiles_per_s"]

    assert best(measure, enough=0.45, tries=2) >= 0.45


def _command(slides, folder) -> list[str]:
    return [
        "workflows/pretrain.py",
        "--config=demo",
        f"--slides={[str(path) for path in slides]}",
        f"--run_folder={folder}",
        "--student.backbone=csat",
        "--workers.threads=2",
        "--train.epochs=1",
        "--train.batch_size=16",
        "--train.log_every_steps=1",
        "--manifest.holdout_fraction=0",
    ]
