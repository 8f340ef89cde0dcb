import os
import time

import numpy as np
import pytest

from csat.errors import ConfigError
from csat.slides.synthetic import make_slides
from teachers.registry import TEACHERS, load_teacher
from teachers.stage import TeacherStage
from workflows.rates import sleeping


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setattr(sleeping, "TEACHERS", TEACHERS)
    monkeypatch.setitem(TEACHERS, sleeping.NAME, (sleeping.SleepingOptions, sleeping.load_sleeping))


def test_a_sleeping_teacher_takes_its_time_for_each_tile(registered):
    stage = TeacherStage(sleeping.NAME, options={"tile_s": 0.02}, loader=load_teacher)
    started = time.perf_counter()
    answer = stage.teacher.respond(np.zeros((8, 16, 16, 3), np.uint8))
    assert 0.16 <= time.perf_counter() - started < 1.0 and answer["features"].shape == (8, sleeping.CHANNELS)
    high, low = answer["features"][3, :2].tolist()
    assert high * sleeping.PID_BASE + low == os.getpid()


def test_its_stream_is_as_long_as_so_many_actors_need(registered, tmp_path):
    slides = [str(path) for path in make_slides(tmp_path / "slides", num_slides=1, size_px=1024)]
    asked = sleeping.Asked(slides=slides, actors=4, tile_s=0.05, seconds=10.0)
    config = sleeping.make_config(asked, str(tmp_path / "manifest"))
    pool = config.teachers[0].pool
    assert pool.min_actors == pool.max_actors == 4 and pool.gpus_per_actor == 1.0, "as if a GPU worked"
    assert abs(config.plan.num_positions - 800) <= config.plan.num_tiles


def test_what_comes_before_all_actors_answer_does_not_count():
    """A thousand tiles, a hundred at once; the second actor comes after four of ten, and then it is twice as fast."""
    done, times = list(range(0, 1100, 100)), [0, 10, 20, 30, 40, *range(45, 75, 5)]
    actors = [0, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2]
    assert sleeping.steady(done, times, actors, 2) == pytest.approx(20.0)
    assert sleeping.steady(done, times, actors, 1) == pytest.approx(600 / 35)
    with pytest.raises(ConfigError, match="2 of 3 actors had answered"):
        sleeping.steady(done, times, actors, 3)
