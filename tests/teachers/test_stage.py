import pickle

import numpy as np
import pytest
import torch

from csat.columns import FILTERED, OK, POSITION, QUARANTINED, REASON, STATUS, STUDENT_TILE, TEACHER_S, TILE, of_arrays
from csat.errors import ConfigError, TeacherError
from csat.views.colour import ColourAugment
from csat.views.colour_config import ColourConfig
from csat.views.symmetries import apply_d4_tiles, d4_of
from teachers.stage import TeacherStage
from tests.support.fakes import ANSWERS_NAN, RAISES, FakeTeacher, fake_loader

TILE_PX = 16


def rows(num: int = 6, *, raises=(), nan=(), status=None) -> dict[str, np.ndarray]:
    """Columns as they leave Ray's store: read-only."""
    tiles = np.random.default_rng(num).integers(1, 250, (num, TILE_PX, TILE_PX, 3), dtype=np.uint8)
    tiles[list(raises), 0, 0] = RAISES
    tiles[list(nan), 0, 0] = ANSWERS_NAN
    status = np.zeros(num, np.uint8) if status is None else np.array(status, np.uint8)
    columns = {
        POSITION: np.arange(100, 100 + num),
        TILE: tiles,
        STATUS: status,
        REASON: np.array(["" if s == OK else "unreadable: it is broken" for s in status], dtype=str),
        "slide": np.array(["a.svs"] * num, dtype=object),
    }
    for column in columns.values():
        column.flags.writeable = False
    return columns


def stage(**kwargs) -> TeacherStage:
    return TeacherStage("fake", loader=fake_loader, **kwargs)


def test_every_row_gets_the_teachers_answer():
    columns = rows()
    out = stage()(columns)
    expected = FakeTeacher().respond(columns[TILE])
    for name in ("np", "hv", "features"):
        assert out[f"response_{name}"].dtype == np.float16
        np.testing.assert_array_equal(out[f"response_{name}"], expected[name])
    assert (out[STATUS] == OK).all() and (out[REASON] == "").all()
    assert list(out["slide"]) == ["a.svs"] * 6
    assert out[TEACHER_S].dtype == np.float32 and (out[TEACHER_S] > 0).all()


def test_only_wanted_responses_become_columns():
    out = stage(wanted=["hv"], options={"crop_px": 2})(rows())
    assert [name for name in out if name.startswith("response_")] == ["response_hv"]
    assert out["response_hv"].shape == (6, 2, TILE_PX - 4, TILE_PX - 4)


def test_rows_that_are_not_ok_are_not_shown_and_get_zeros():
    columns = rows(4, raises=(1,), status=[OK, QUARANTINED, FILTERED, OK])  # tile 1 would raise if it were shown
    teacher_stage = stage()
    out = teacher_stage(columns)
    assert teacher_stage.teacher.num_calls == 1
    assert list(out[STATUS]) == [OK, QUARANTINED, FILTERED, OK]
    assert list(out[REASON]) == ["", "unreadable: it is broken", "unreadable: it is broken", ""]
    assert not out["response_np"][[1, 2]].any() and out["response_np"][[0, 3]].any()
    assert list(out[TEACHER_S] > 0) == [True, False, False, True]


@pytest.mark.parametrize("num", [0, 3])
def test_a_batch_without_an_ok_row_has_all_columns(num):
    out = stage()(rows(num, status=[QUARANTINED] * num))
    assert out["response_np"].shape == (num, 1, TILE_PX, TILE_PX) and out["response_features"].shape == (num, 3)
    assert out["response_hv"].dtype == np.float16 and out[TEACHER_S].shape == (num,)


def test_one_tile_that_makes_the_teacher_raise_costs_one_row():
    columns = rows(5, raises=(3,))
    out = stage()(columns)
    assert list(out[STATUS]) == [OK, OK, OK, QUARANTINED, OK]
    assert out[REASON][3] == "teacher_error: ValueError: cannot bear this tile"
    assert not out["response_np"][3].any()
    good = [0, 1, 2, 4]
    np.testing.assert_array_equal(out["response_np"][good], FakeTeacher().respond(columns[TILE][good])["np"])


def test_a_response_with_nan_costs_one_row():
    out = stage()(rows(5, nan=(0,)))
    assert list(out[STATUS]) == [QUARANTINED, OK, OK, OK, OK]
    assert out[REASON][0] == "teacher_nonfinite: NaN or infinity in np"
    assert all(np.isfinite(out[f"response_{name}"]).all() for name in ("np", "hv", "features"))


def test_a_response_beyond_float16_is_nonfinite():
    teacher_stage = stage(wanted=["features"])
    answer = np.ones((3, 3), np.float32)
    answer[1, 2] = 1e6
    teacher_stage.teacher.respond = lambda tiles: {"features": answer}
    out = teacher_stage(rows(3))
    assert list(out[STATUS]) == [OK, QUARANTINED, OK] and out[REASON][1].startswith("teacher_nonfinite")


def test_both_failures_in_one_batch():
    out = stage()(rows(4, raises=(0,), nan=(2,)))
    assert [reason.partition(":")[0] for reason in out[REASON]] == ["teacher_error", "", "teacher_nonfinite", ""]


def test_a_teacher_that_fails_on_its_whole_first_batch_stops_the_run():
    with pytest.raises(TeacherError, match="'fake' has not answered one of its first 3 tiles.*cannot bear this tile"):
        stage()(rows(3, raises=(0, 1, 2)))
    with pytest.raises(TeacherError, match="NaN or infinity"):
        stage()(rows(3, nan=(0, 1, 2)))


def test_batches_of_one_bad_tile_stop_the_run_when_nothing_ever_succeeds():
    teacher_stage = stage()
    for _ in range(7):
        assert teacher_stage(rows(1, raises=(0,)))[STATUS][0] == QUARANTINED
    with pytest.raises(TeacherError, match="first 8 tiles"):
        teacher_stage(rows(1, raises=(0,)))


def test_a_whole_bad_batch_after_a_success_is_quarantined():
    teacher_stage = stage()
    teacher_stage(rows(2))
    out = teacher_stage(rows(3, raises=(0, 1, 2)))
    assert (out[STATUS] == QUARANTINED).all()


def test_a_teacher_that_breaks_later_stops_the_run():
    teacher_stage = stage(options={"dies_after": 1})
    teacher_stage(rows(2))
    with pytest.raises(TeacherError, match="on a tile that it answered before: the device is lost"):
        teacher_stage(rows(3))


def test_whoever_predicts_reads_of_a_model():
    out = stage(called="model")(rows(4, raises=(0,), nan=(2,)))
    assert [reason.partition(":")[0] for reason in out[REASON]] == ["model_error", "", "model_nonfinite", ""]
    with pytest.raises(TeacherError, match="^model 'fake' has not answered one of its first 3 tiles"):
        stage(called="model")(rows(3, raises=(0, 1, 2)))
    broken = stage(called="model", options={"dies_after": 1})
    broken(rows(2))
    with pytest.raises(TeacherError, match="^model 'fake' failed on a whole batch"):
        broken(rows(3))
    with pytest.raises(TeacherError, match="^model 'fake': this node's weights"):
        stage(called="model", expected_sha256="0" * 64)


def test_an_answer_of_another_shape_is_the_teachers_fault():
    teacher_stage = stage(wanted=["features"])
    teacher_stage.teacher.respond = lambda tiles: {"features": np.zeros((len(tiles), 4), np.float16)}
    with pytest.raises(TeacherError, match=r"'features': 2 tiles of 16 px should give \[2, 3\] and gave \[2, 4\]"):
        teacher_stage(rows(2))
    teacher_stage.teacher.respond = lambda tiles: {}
    with pytest.raises(TeacherError, match="promised the response 'features'"):
        teacher_stage(rows(2))


def test_a_tile_too_small_for_the_crop_is_no_tiles_fault():
    with pytest.raises(ConfigError, match="choose a tile size"):
        stage(options={"crop_px": 8})(rows(2))


def test_the_view_is_applied_before_the_teacher_and_leaves_with_the_tile():
    columns = rows(16)
    out = stage(view_seed=7)(columns)
    seen = apply_d4_tiles(columns[TILE], d4_of(columns[POSITION], 7))
    assert (seen != columns[TILE]).any()
    np.testing.assert_array_equal(out[TILE], seen)
    np.testing.assert_array_equal(out["response_hv"], FakeTeacher().respond(seen)["hv"])


def test_colours_are_changed_before_the_teacher_and_leave_with_the_tile():
    columns, colour = rows(6, status=[OK] * 5 + [QUARANTINED]), ColourConfig(brightness=0.5, saturation=0.5)
    out = stage(view_seed=7, colour=colour, colour_seed=3)(columns)
    turned = apply_d4_tiles(columns[TILE], d4_of(columns[POSITION], 7))
    images = torch.from_numpy(turned).permute(0, 3, 1, 2).float() / 255
    seen = ColourAugment(colour)(images, torch.from_numpy(np.array(columns[POSITION])), 3)
    seen = (seen * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    assert np.abs(seen.astype(int) - turned).mean() > 5
    np.testing.assert_allclose(out[TILE].astype(int), seen, atol=1)  # one tile at a time rounds another way
    np.testing.assert_array_equal(out["response_features"][:5], FakeTeacher().respond(out[TILE][:5])["features"])
    np.testing.assert_array_equal(stage(colour=None)(columns)[TILE], columns[TILE])


def test_every_actor_checks_that_it_has_the_drivers_weights():
    sha256 = FakeTeacher().spec.weights_sha256
    stage(expected_sha256=sha256)
    with pytest.raises(TeacherError, match="the same path holds different files"):
        stage(expected_sha256=sha256, options={"seed": 1})


def test_errors_travel_between_processes():
    error = pickle.loads(pickle.dumps(TeacherError("why")))
    assert isinstance(error, TeacherError) and str(error) == "why"


def test_whole_images_are_answered_each_at_its_own_size():
    generator = np.random.default_rng(0)
    shapes = [(16, 24), (24, 16), (16, 24), (16, 16), (32, 16)]
    images = [generator.integers(1, 250, (*shape, 3), dtype=np.uint8) for shape in shapes]
    columns = rows(5, status=[OK, OK, OK, OK, QUARANTINED])
    columns |= {TILE: of_arrays(images), STUDENT_TILE: of_arrays([image[::2, ::2] for image in images])}
    colour = ColourConfig(stain_scale=0.0, stain_shift=0.0, brightness=0.4, contrast=0.0, saturation=0.0)
    out = stage(view_seed=3, colour=colour)(columns)
    assert list(out[STATUS]) == [OK, OK, OK, OK, QUARANTINED]
    turned = apply_d4_tiles(columns[TILE], d4_of(columns[POSITION], 3))
    for row in range(4):
        seen = out[TILE][row]
        assert seen.shape == turned[row].shape
        expected = FakeTeacher().respond(seen[None])
        for name in ("np", "hv", "features"):
            np.testing.assert_array_equal(out[f"response_{name}"][row], expected[name][0])
    for row in range(4):  # the student's pixels are in the same view and colours
        ratio = out[TILE][row].mean() / turned[row].mean()
        small = apply_d4_tiles(columns[STUDENT_TILE], d4_of(columns[POSITION], 3))[row]
        assert out[STUDENT_TILE][row].shape == small.shape
        assert out[STUDENT_TILE][row].mean() / small.mean() == pytest.approx(ratio, rel=0.05)
    assert out["response_np"][4].shape == (1, *out[TILE][4].shape[:2]) and not out["response_np"][4].any()
    assert out["response_features"].shape == (5, 3) and out["response_features"].dtype == np.float16
