import json
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from csat.errors import ConfigError, StorageError, TeacherError
from csat.responses import Kind, ResponseSpec, Symmetry, TeacherSpec
from csat.storage import files
from teachers.response_cache import (
    PROBABILITY_ERROR,
    CacheConfig,
    ResponseCache,
    cache_key,
    open_cache,
    projected_bytes,
    quantised,
    restored,
)

NP = ResponseSpec(name="np", kind=Kind.PROBABILITY, channels=1)
HV = ResponseSpec(name="hv", kind=Kind.REGRESSION, channels=2, symmetry=Symmetry.HV)
FEATURES = ResponseSpec(name="features", kind=Kind.FEATURES, channels=5, stride_px=None)
SPECS = (NP, HV, FEATURES)
TEACHER = TeacherSpec(name="t", responses=SPECS, mpp=0.5, weights_sha256="ab" * 32)
TILE_PX = 16


def key(teacher=TEACHER, options=None, responses=SPECS, **changes):
    setting = {"manifest_fingerprint": "m", "tile_px": TILE_PX, "mpp": 0.5, **changes}
    return cache_key(teacher, options or {}, responses, **setting)


def answer(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    values = {
        "np": rng.random((1, TILE_PX, TILE_PX)),
        "hv": rng.normal(size=(2, TILE_PX, TILE_PX)),
        "features": rng.normal(size=5) * 1000,
    }
    return {name: value.astype(np.float16) for name, value in values.items()}


@pytest.fixture
def cache(tmp_path) -> ResponseCache:
    return open_cache(CacheConfig(uri=str(tmp_path)), key(), SPECS, num_tiles=10, tile_px=TILE_PX)[0]


def fresh(cache: ResponseCache) -> ResponseCache:
    """As another process has it."""
    return pickle.loads(pickle.dumps(cache))


def files_of(cache: ResponseCache) -> list[str]:
    return [uri for uri in files.list_files(cache.folder) if uri.endswith(".zst")]


@given(st.lists(st.floats(0, 1, width=16), min_size=1, max_size=20))
def test_probabilities_come_back_within_the_stated_error(values):
    given_values = np.array(values, np.float16)
    stored = quantised(given_values, NP)
    assert stored.dtype == np.uint8
    error = np.abs(restored(stored).astype(np.float64) - given_values)
    assert error.max() <= PROBABILITY_ERROR < 0.0023


def test_the_worst_probability_is_as_bad_as_stated():
    values = np.linspace(0, 1, 4001).astype(np.float16)
    assert np.abs(restored(quantised(values, NP)).astype(np.float64) - values).max() > 0.85 * PROBABILITY_ERROR


@pytest.mark.parametrize("spec", [HV, FEATURES])
def test_other_responses_come_back_exactly(spec):
    values = answer(3)[spec.name]
    np.testing.assert_array_equal(restored(quantised(values, spec)), values)


def test_a_probability_just_beyond_one_is_clipped_and_a_wrong_one_is_refused():
    assert quantised(np.array([1.0005, -0.0001], np.float16), NP).tolist() == [255, 0]
    with pytest.raises(TeacherError, match="'np'.*1.5.*cache.uri"):
        quantised(np.array([0.5, 1.5], np.float16), NP)


def test_what_was_written_is_read(cache):
    written = cache.write(2, 7, {0: answer(0), 5: answer(5), 3: "teacher_error: ValueError: no é"})
    known = fresh(cache).read(2, 7)
    assert known.keys() == {0, 3, 5}
    assert known[3] == written[3] == "teacher_error: ValueError: no é"
    for row in (0, 5):
        np.testing.assert_array_equal(known[row]["hv"], answer(row)["hv"])
        np.testing.assert_array_equal(known[row]["np"], written[row]["np"])
        assert np.abs(known[row]["np"].astype(float) - answer(row)["np"]).max() <= PROBABILITY_ERROR
    assert fresh(cache).read(2, 8) == fresh(cache).read(1, 7) == {}
    cache.write(2, 8, {1: "teacher_error: x"})
    assert cache.read(2, 8) == {1: "teacher_error: x"}, (
        "its own files are known to a process that has listed the folder before"
    )


def test_images_of_several_sizes_lie_in_one_file(cache):
    small, large = answer(1), answer(2)
    large["np"] = np.ones((1, 3, 40), np.float16)
    cache.write(0, 0, {0: small, 1: large})
    known = fresh(cache).read(0, 0)
    assert known[0]["np"].shape == (1, TILE_PX, TILE_PX) and known[1]["np"].shape == (1, 3, 40)


def test_a_chunk_may_come_in_parts_and_twice(cache):
    cache.write(0, 3, {0: answer(0), 1: answer(1)})
    cache.write(0, 3, {2: answer(2)})
    cache.write(0, 3, {2: answer(2)})  # a retried task
    assert len(files_of(cache)) == 2
    cache.write(0, 3, {2: answer(9)})  # another GPU, another last digit: everybody reads the same of the two
    readers = [fresh(cache).read(0, 3) for _ in range(2)]
    assert readers[0].keys() == {0, 1, 2}
    np.testing.assert_array_equal(readers[0][2]["hv"], readers[1][2]["hv"])


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-7], lambda data: data[:40] + bytes([data[40] ^ 1]) + data[41:], lambda data: b""]
)
def test_a_damaged_file_is_told_and_never_used(cache, caplog, damage):
    cache.write(0, 3, {0: answer(0)})
    cache.write(0, 3, {1: answer(1)})
    victim = next(uri for uri in files_of(cache) if 0 in {**_rows_in(cache, uri)})
    files.write_bytes(victim, damage(files.read_bytes(victim)))
    assert fresh(cache).read(0, 3).keys() == {1}
    assert "is damaged" in caplog.text and victim in caplog.text
    cache.write(0, 3, {0: answer(0)})
    assert fresh(cache).read(0, 3).keys() == {0, 1}


def _rows_in(cache, uri):
    """Rows that one file holds, told from the others by reading it alone."""
    broken = fresh(cache)
    broken._listings = lambda shard: {3: [uri]}
    return broken.read(0, 3)


def test_a_file_that_went_away_is_a_miss(cache):
    cache.write(0, 3, {0: answer(0)})
    reader = fresh(cache)
    assert reader.read(0, 3).keys() == {0}
    files.delete(files_of(cache)[0])
    assert reader.read(0, 3) == {}


def test_a_half_written_file_is_not_seen(cache, monkeypatch):
    monkeypatch.setattr(files, "RETRY_PAUSES_S", ())
    monkeypatch.setattr("os.replace", lambda *paths: (_ for _ in ()).throw(OSError("killed here")))
    with pytest.raises(StorageError, match="killed here"):
        cache.write(0, 3, {0: answer(0)})
    assert fresh(cache).read(0, 3) == {} and files_of(cache) == []


def test_everything_that_a_response_depends_on_is_in_the_key(tmp_path):
    other_teacher = TeacherSpec(name="t", responses=SPECS, mpp=0.5, weights_sha256="cd" * 32)
    keys = [
        key(),
        key(other_teacher),
        key(options={"precision": "bfloat16"}),
        key(responses=(NP,)),
        key(manifest_fingerprint="n"),
        key(tile_px=32),
        key(mpp=0.25),
    ]
    assert len({ResponseCache(str(tmp_path), each, SPECS).folder for each in keys}) == len(keys)
    assert ResponseCache(str(tmp_path), key(), SPECS).folder == ResponseCache(str(tmp_path), key(), SPECS).folder


def test_float32_goes_without_saying(tmp_path):
    """A cache that was filled before a teacher had a choice is still found."""
    assert key(options={"width": 1, "precision": "float32"}) == key(options={"width": 1})


def test_the_folder_says_what_it_is_for(cache):
    said = json.loads(files.read_bytes(files.join(cache.folder, "key.json")))
    assert said["weights_sha256"] == "ab" * 32 and said["responses"][0]["dtype"] == "uint8"
    cache.open()
    files.write_bytes(files.join(cache.folder, "key.json"), b"{}")
    with pytest.raises(ConfigError, match="another key"):
        cache.open()


def test_complete_is_said_once_for_all(cache):
    assert not cache.is_complete()
    cache.mark_complete()
    cache.mark_complete()
    assert fresh(cache).is_complete()


def test_over_the_budget_is_refused_with_the_number(tmp_path):
    num_bytes = projected_bytes(SPECS, 1000, TILE_PX)
    assert num_bytes >= 1000 * (256 + 2 * 2 * 256 + 2 * 5)
    with pytest.raises(ConfigError, match=rf"1,000 tiles may take {num_bytes / 1e9:.4g} GB.*cache.budget_gb 0.001"):
        open_cache(CacheConfig(uri=str(tmp_path), budget_gb=0.001), key(), SPECS, num_tiles=1000, tile_px=TILE_PX)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConfigError, match="more than 0"):
        CacheConfig(budget_gb=0)


def test_noise_takes_no_more_than_projected(cache):
    """What cannot be compressed is the worst case."""
    rng = np.random.default_rng(0)
    answers = {}
    for row in range(64):
        bits = rng.integers(0, 0x7C00, 2 * TILE_PX * TILE_PX + 5).astype(np.uint16).view(np.float16)
        answers[row] = {
            "np": rng.random((1, TILE_PX, TILE_PX)).astype(np.float16),
            "hv": bits[:-5].reshape(2, TILE_PX, TILE_PX),
            "features": bits[-5:],
        }
    cache.write(0, 0, answers)
    taken = sum(files.size(uri) for uri in files_of(cache))
    assert 0.5 * projected_bytes(SPECS, 64, TILE_PX) < taken < projected_bytes(SPECS, 64, TILE_PX)


def test_a_bucket_does_as_well(s3):
    cache, _ = open_cache(CacheConfig(uri=f"{s3}/cache"), key(), SPECS, num_tiles=10, tile_px=TILE_PX)
    cache.write(1, 4, {0: answer(0)})
    np.testing.assert_array_equal(fresh(cache).read(1, 4)[0]["hv"], answer(0)["hv"])
