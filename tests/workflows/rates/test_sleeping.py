import time

import numpy as np
import pytest

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


def test_its_stream_is_as_long_as_so_many_actors_need(registered, tmp_path):
    slides = [str(path) for path in make_slides(tmp_path / "slides", num_slides=1, size_px=1024)]
    asked = sleeping.Asked(slides=slides, actors=4, tile_s=0.05, seconds=10.0)
    config = sleeping.make_config(asked, str(tmp_path / "manifest"))
    assert config.teachers[0].pool.min_actors == config.teachers[0].pool.max_actors == 4
    assert abs(config.plan.num_positions - 800) <= config.plan.num_tiles
