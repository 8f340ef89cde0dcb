import time

import numpy as np
import pytest

from csat.columns import OK, POSITION, REASON, STATUS, TILE
from teachers import keeping
from teachers.keeping import Keeping, measure_keeping
from teachers.response_cache import ResponseCache
from teachers.stage import TeacherStage
from tests.support.fakes import FakeTeacher, fake_loader

WANTED = ["np", "hv"]


@pytest.fixture
def columns():
    number = 12
    tiles = np.random.default_rng(0).integers(1, 250, (number, 32, 32, 3), dtype=np.uint8)
    status, reason = np.full(number, OK, np.uint8), np.full(number, "", object)
    return {POSITION: np.arange(number), TILE: tiles, STATUS: status, REASON: reason}


@pytest.fixture
def probe(tmp_path):
    return ResponseCache(str(tmp_path / "place"), {"probe": True}, FakeTeacher(wanted=WANTED).spec.responses)


def slow(seconds, asked):
    def make_stage(**teacher):
        stage = TeacherStage(loader=fake_loader, **teacher)
        respond = stage.teacher.respond

        def slowly(tiles):
            asked.append(len(tiles))
            time.sleep(seconds * len(tiles))
            return respond(tiles)

        stage.teacher.respond = slowly
        return stage

    return make_stage


def test_three_epochs_by_hand():
    one = Keeping(answer_s=0.1, keep_s=0.02, read_s=0.01, num_bytes=1e5)
    assert one.seconds(3, is_kept=True) == pytest.approx(0.14) and one.seconds(3, is_kept=False) == pytest.approx(0.3)
    assert one.seconds(1, is_kept=True) > one.seconds(1, is_kept=False), "in one epoch nothing is read again"


def test_each_part_is_measured_and_the_trial_leaves_nothing(columns, probe, tmp_path, monkeypatch):
    forgotten = []
    monkeypatch.setattr(keeping, "_forget", forgotten.append)
    asked = []
    found = measure_keeping(probe, columns, batch_size=4, make_stage=slow(0.01, asked), name="fake", wanted=WANTED)
    assert asked == [1, 1, 4, 4, 2], "all of them once, and none when they are read"
    assert 0.01 <= found.answer_s < 0.1 and 0 < found.keep_s < 1 and 0 < found.read_s < 0.5
    assert 0 < found.num_bytes <= 32 * 32 * (1 + 4) + 2 * 128 and found.free_bytes > 0
    assert len(forgotten) == 3 and not list((tmp_path / "place").glob("*"))


def test_a_slow_teacher_is_asked_little(columns, probe, monkeypatch):
    monkeypatch.setattr(keeping, "ENOUGH_S", 0.2)
    asked = []
    found = measure_keeping(probe, columns, batch_size=4, make_stage=slow(0.3, asked), name="fake", wanted=WANTED)
    assert asked == [1, 1] and 0.3 <= found.answer_s < 0.6


def test_an_error_leaves_nothing_either(columns, probe, tmp_path):
    with pytest.raises(ValueError, match="no such"):
        measure_keeping(probe, columns, batch_size=4, make_stage=lambda **_: (_ for _ in ()).throw(ValueError("no such")))
    assert not list(tmp_path.rglob("*.zst"))


def test_a_bucket_has_room(columns, s3):
    probe = ResponseCache(f"{s3}/place", {"probe": True}, FakeTeacher(wanted=WANTED).spec.responses)
    found = measure_keeping(probe, columns, batch_size=4, make_stage=slow(0, []), name="fake", wanted=WANTED)
    assert found.free_bytes is None and found.num_bytes > 0
