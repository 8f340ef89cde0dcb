import pickle

import numpy as np
import pytest

from csat.columns import FILTERED, OK, POSITION, QUARANTINED, REASON, STATUS, STUDENT_TILE, TEACHER_S, TILE, of_arrays
from csat.errors import TeacherError
from csat.runs.plan import Plan
from teachers.cached_stage import CachedTeacherStage
from teachers.response_cache import PROBABILITY_ERROR, CacheConfig, ResponseCache, cache_key, open_cache
from teachers.stage import TeacherStage
from tests.support.fakes import RAISES, FakeTeacher, fake_loader

TILE_PX, CHUNK_TILES, NUM_TILES, EPOCHS = 16, 8, 20, 3
PLAN = Plan([8, 8, 4], [0, 0, 1], num_epochs=EPOCHS, seed=1)
WANTED = ["np", "hv"]


def tile(chunk: int, row: int) -> np.ndarray:
    return np.random.default_rng((chunk, row)).integers(1, 250, (TILE_PX, TILE_PX, 3), dtype=np.uint8)


def rows_at(positions, *, raises=(), status=None) -> dict[str, np.ndarray]:
    """Rows as a reader gives them: the pixels are those of the manifest's tile at that position."""
    positions = np.asarray(positions)
    tiles = np.stack([tile(chunk, row) for chunk, row in zip(*PLAN.tiles_at(positions), strict=True)])
    tiles[[index for index, place in enumerate(zip(*PLAN.tiles_at(positions), strict=True)) if place in raises], 0, 0] = RAISES
    status = np.full(len(positions), OK, np.uint8) if status is None else np.array(status, np.uint8)
    columns = {
        POSITION: positions,
        TILE: tiles,
        STATUS: status,
        REASON: np.array(["" if s == OK else "unreadable: x" for s in status], object),
        "slide": np.array(["a.svs"] * len(positions), object),
    }
    for column in columns.values():
        column.flags.writeable = False
    return columns


@pytest.fixture
def cache(tmp_path) -> ResponseCache:
    specs = FakeTeacher(wanted=WANTED).spec.responses
    key = cache_key(FakeTeacher().spec, {}, specs, manifest_fingerprint="m", tile_px=TILE_PX, mpp=None)
    return open_cache(CacheConfig(uri=str(tmp_path)), key, specs, num_tiles=NUM_TILES, tile_px=TILE_PX)[0]


class Counted:
    """Makes teacher stages, and counts those made and the tiles that they were shown."""

    def __init__(self):
        self.made, self.tiles = 0, 0

    def __call__(self, **teacher):
        self.made += 1
        stage = TeacherStage(loader=fake_loader, **teacher)

        def call(columns):
            self.tiles += int((columns[STATUS] == OK).sum())
            return stage(columns)

        return call


def run(cache, columns, counted, batch_size=3) -> dict[str, np.ndarray]:
    """As an actor of its own, which has seen nothing of the cache before."""
    cache = pickle.loads(pickle.dumps(cache))
    stage = CachedTeacherStage(cache, PLAN, batch_size=batch_size, make_stage=counted, name="fake", wanted=WANTED)
    batches = list(stage(columns))
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def epoch(number: int) -> np.ndarray:
    return np.arange(NUM_TILES) + number * NUM_TILES


def test_the_teacher_answers_each_tile_once_in_all_epochs(cache):
    counted = Counted()
    first = run(cache, rows_at(epoch(0)), counted)
    assert (counted.made, counted.tiles) == (1, NUM_TILES)
    assert (first[TEACHER_S] > 0).all()
    for number in (1, 2):
        later = run(cache, rows_at(epoch(number)), counted)
        np.testing.assert_array_equal(later[POSITION], epoch(number))
        expected = FakeTeacher(wanted=WANTED).respond(rows_at(epoch(number))[TILE])
        np.testing.assert_array_equal(later["response_hv"], expected["hv"])
        assert np.abs(later["response_np"].astype(float) - expected["np"]).max() <= PROBABILITY_ERROR
        assert (later[TEACHER_S] == 0).all() and (later[STATUS] == OK).all()
    assert (counted.made, counted.tiles) == (1, NUM_TILES), "later epochs load no teacher"


def test_a_tile_gets_the_same_response_in_its_first_epoch_as_later(cache):
    first = run(cache, rows_at(epoch(0)), Counted())
    again = run(cache, rows_at(epoch(0)), Counted())
    for name in ("response_np", "response_hv"):
        np.testing.assert_array_equal(first[name], again[name])


def test_what_was_answered_before_a_kill_is_not_asked_again(cache):
    """A task that is cut in the middle of a chunk, and one that was through with it but whose rows came nowhere."""
    run(cache, rows_at(epoch(0)[:11]), Counted())
    counted = Counted()
    out = run(cache, rows_at(epoch(0)), counted)
    assert counted.tiles == NUM_TILES - 11
    np.testing.assert_array_equal(out["response_hv"], FakeTeacher(wanted=WANTED).respond(rows_at(epoch(0))[TILE])["hv"])


def test_a_row_leaves_only_when_its_responses_are_kept(cache, monkeypatch):
    def full(*args):
        raise OSError("no space")

    monkeypatch.setattr(ResponseCache, "write", full)
    stage = CachedTeacherStage(cache, PLAN, batch_size=4, make_stage=Counted(), name="fake", wanted=WANTED)
    with pytest.raises(OSError, match="no space"):
        next(stage(rows_at(epoch(0))))


def test_a_tile_that_the_teacher_cannot_bear_is_not_shown_again(cache):
    counted = Counted()
    chunk, row = (int(each[0]) for each in PLAN.tiles_at(epoch(0)[4:5]))
    first = run(cache, rows_at(epoch(0), raises={(chunk, row)}), counted)
    assert list(np.flatnonzero(first[STATUS] == QUARANTINED)) == [4]
    shown = counted.tiles
    later = run(cache, rows_at(epoch(1), raises={(chunk, row)}), counted)
    bad = int(np.flatnonzero(later[STATUS] == QUARANTINED)[0])
    assert tuple(int(each[0]) for each in PLAN.tiles_at(epoch(1)[bad : bad + 1])) == (chunk, row)
    assert later[REASON][bad] == first[REASON][4] == "teacher_error: ValueError: cannot bear this tile"
    assert not later["response_hv"][bad].any()
    assert counted.tiles == shown


def test_rows_that_could_not_be_read_are_passed_on_and_asked_when_they_can(cache):
    counted = Counted()
    status = [OK] * NUM_TILES
    status[2], status[3] = QUARANTINED, FILTERED
    out = run(cache, rows_at(epoch(0), status=status), counted)
    assert out[STATUS].tolist() == status and out[REASON][2] == "unreadable: x"
    assert not out["response_hv"][[2, 3]].any() and out["response_hv"][4].any()
    assert counted.tiles == NUM_TILES - 2
    assert (run(cache, rows_at(epoch(1)), counted)[STATUS] == OK).all()
    assert counted.tiles == NUM_TILES


def test_whole_images_and_the_students_pixels_pass_through(cache):
    columns = rows_at(epoch(0)[:4])
    images = [np.full((16 * (1 + index % 2), 32, 3), 10 * index, np.uint8) for index in range(4)]
    columns |= {TILE: of_arrays(images), STUDENT_TILE: of_arrays([image[::2, ::2] for image in images])}
    counted = Counted()
    run(cache, columns, counted)
    stage = CachedTeacherStage(cache, PLAN, batch_size=3, make_stage=counted, name="fake", wanted=WANTED)
    out = [batch for batch in stage(columns)]
    shapes = [response.shape for batch in out for response in batch["response_hv"]]
    assert shapes == [(2, 16, 32), (2, 32, 32), (2, 16, 32), (2, 32, 32)]
    assert [tile.shape for batch in out for tile in batch[STUDENT_TILE]] == [image[::2, ::2].shape for image in images]
    assert counted.tiles == 4


def test_no_rows_have_all_columns(cache):
    empty = {name: column[:0] for name, column in rows_at(epoch(0)[:2]).items()}
    out = run(cache, empty, Counted())
    assert out["response_np"].shape == (0, 1, TILE_PX, TILE_PX) and out[TEACHER_S].shape == (0,)


def test_a_teacher_that_nobody_expected_is_told(cache, caplog):
    run(cache, rows_at(epoch(0)[:11]), Counted())
    for has_pool, is_told in ((True, False), (False, True)):
        options = {"batch_size": 3, "has_pool": has_pool, "make_stage": Counted(), "name": "fake", "wanted": WANTED}
        list(CachedTeacherStage(cache, PLAN, **options)(rows_at(epoch(0)[:11])))
        assert not caplog.records, "nothing is missing: no teacher, nothing to tell"
        copy = ResponseCache(f"{cache.uri}/{has_pool}", cache.key, cache.responses)
        list(CachedTeacherStage(copy, PLAN, **options)(rows_at(epoch(0)[:3])))
        assert ("lacks responses: the teacher is loaded (cpu)" in caplog.text) == is_told


def test_a_view_in_the_pool_is_no_case_for_a_cache(cache):
    with pytest.raises(AssertionError, match="differ each epoch"):
        CachedTeacherStage(cache, PLAN, batch_size=3, name="fake", view_seed=3)


def test_a_broken_teacher_stops_the_run(cache):
    stage = CachedTeacherStage(
        cache, PLAN, batch_size=4, make_stage=Counted(), name="fake", wanted=WANTED, options={"dies_after": 0}
    )
    with pytest.raises(TeacherError, match="has not answered"):
        list(stage(rows_at(epoch(0))))
