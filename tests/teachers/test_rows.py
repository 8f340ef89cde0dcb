"""Answers as columns: of tiles that are shrunk, of images of their own sizes, of teachers one after the other."""

import numpy as np
import pytest

from csat.columns import OK, POSITION, QUARANTINED, REASON, STATUS, TEACHER_S, TILE, UNANSWERED_PREFIX, of_arrays
from csat.views.symmetries import apply_d4_tiles
from teachers.rows import shrunk
from teachers.stage import TeacherStage
from tests.support.fakes import ANSWERS_NAN, RAISES, FakeTeacher, fake_loader


def stage(label, **arguments):
    return TeacherStage("fake", loader=fake_loader, label=label, wanted=["np", "hv"], **arguments)


def rows(tiles, *, status=None):
    count = len(tiles)
    columns = {
        POSITION: np.arange(count),
        TILE: tiles,
        STATUS: np.array(status or [OK] * count, np.uint8),
        REASON: np.array(["" if each == OK else "unreadable: x" for each in status or [OK] * count], object),
    }
    for column in columns.values():
        column.flags.writeable = False
    return columns


def noise(count, *size, seed=0):
    return np.random.default_rng(seed).integers(1, 250, (count, *size, 3), dtype=np.uint8)


def test_a_square_becomes_its_mean_rounded():
    tile = np.zeros((1, 2, 4, 3), np.uint8)
    tile[0, :, :2] = [[[1, 0, 255], [1, 0, 255]], [[1, 1, 255], [0, 1, 255]]]
    assert shrunk(tile, 2)[0, 0].tolist() == [[1, 1, 255], [0, 0, 0]]  # 3/4 is 1, 2/4 is 1
    assert shrunk(tile, 1) is tile
    with pytest.raises(ValueError, match="reshape"):
        shrunk(tile, 3)


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_a_turned_tile_is_shrunk_to_the_turned_small_one(factor):
    """In every view to the last bit: whoever sees the tile smaller sees the same field."""
    tiles = np.repeat(noise(1, 24, 24), 8, axis=0)
    views = np.arange(8)
    np.testing.assert_array_equal(shrunk(apply_d4_tiles(tiles, views), factor), apply_d4_tiles(shrunk(tiles, factor), views))


def test_teachers_follow_each_other_and_neither_sees_what_the_other_failed_on():
    tiles = noise(5, 16, 16)
    tiles[1, :2, :2] = RAISES  # for both: its first pixel is the same when it is shrunk
    tiles[2, 0, 0] = ANSWERS_NAN  # for the first alone
    given = rows(tiles, status=[OK, OK, OK, OK, QUARANTINED])
    first, last = stage("a"), stage("b", shrink=2, closes=["a", "b"])
    out = last(first(given))
    assert out[STATUS].tolist() == [OK, QUARANTINED, OK, OK, QUARANTINED]
    assert out[REASON][1].startswith("unanswered: a: teacher_error: ValueError") and "; b: teacher_error" in out[REASON][1]
    assert out[REASON][4] == "unreadable: x"
    assert out[UNANSWERED_PREFIX + "a"][2] == "teacher_nonfinite: NaN or infinity in np"
    assert [bool(each) for each in out[UNANSWERED_PREFIX + "b"]] == [False, True, False, False, False]
    teacher = FakeTeacher(wanted=["np", "hv"])
    np.testing.assert_array_equal(out["response_b.np"][[0, 2, 3]], teacher.respond(shrunk(tiles[[0, 2, 3]], 2))["np"])
    np.testing.assert_array_equal(out["response_a.hv"][[0, 3]], teacher.respond(tiles[[0, 3]])["hv"])
    assert not out["response_a.np"][[1, 2, 4]].any() and not out["response_b.np"][[1, 4]].any()
    np.testing.assert_allclose(out[TEACHER_S], out[f"{TEACHER_S}.a"] + out[f"{TEACHER_S}.b"])
    assert out[f"{TEACHER_S}.a"][4] == 0 and "response_np" not in out


def test_whole_images_each_of_its_own_size():
    images = [noise(1, *size, seed=index)[0] for index, size in enumerate([(8, 12), (4, 4), (8, 12)])]
    out = stage("b", shrink=2, closes=["b"])(rows(of_arrays(images)))
    for index, image in enumerate(images):
        expected = FakeTeacher(wanted=["np", "hv"]).respond(shrunk(image[None], 2))
        np.testing.assert_array_equal(out["response_b.np"][index], expected["np"][0])
        assert out[TILE][index].shape == image.shape, "others see it as it came"
