"""A store that throttles, stalls, breaks off or changes its objects: what is read is whole, or there is one clear error."""

import contextlib
import itertools

import pytest
import torch

from csat.errors import SlideError, StorageError
from csat.runs.checkpoints import Checkpoint, Checkpoints, Cursor
from csat.runs.plan import Intervals
from csat.runs.quarantine import QUARANTINE_SCHEMA
from csat.storage import files
from csat.storage.node_cache import SlideCache, fetch_bytes
from tests.failures.proxy import Fault, FaultyStore

SLIDE = bytes(range(256)) * 1000
THROTTLED = Fault(status=503)
WAITS_S = 60  # of the client for an answer: longer than any takes, also on a busy machine
LATE = Fault(pause_s=8.0)  # and for this one it waits half as long


@pytest.fixture
def store(s3, s3_server, monkeypatch):
    """The bucket behind a proxy that spoils answers; clients are a user's, with fewer and shorter tries."""
    proxy = FaultyStore(s3_server)
    files.write_bytes(f"{s3}/slides/a.svs", SLIDE)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(files, "RETRY_PAUSES_S", (0.0, 0.0))
    monkeypatch.setattr("s3fs.S3FileSystem.retries", 2)
    monkeypatch.setattr("s3fs.S3FileSystem.read_timeout", WAITS_S)
    files.fsspec.filesystem("s3").clear_instance_cache()
    yield proxy
    files.fsspec.filesystem("s3").clear_instance_cache()
    proxy.close()


def cached(cache: SlideCache, uri: str) -> bytes:
    with cache.path(uri) as path:
        return path.read_bytes()


def left_in(folder) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]


@pytest.mark.parametrize(
    ("fault", "times"),
    [
        (THROTTLED, 2),
        (Fault(status=500), 2),
        (Fault(cut_after=100_000), 2),
        (LATE, 1),
        (Fault(pause_per_chunk_s=0.2), 2),
    ],
    ids=["503", "500", "cut in mid-object", "no answer for longer than the client waits", "slow"],
)
def test_a_slide_comes_whole_through_faults_that_pass(s3, store, tmp_path, fault, times, monkeypatch):
    if fault is LATE:
        monkeypatch.setattr("s3fs.S3FileSystem.read_timeout", LATE.pause_s / 2)
    for read in (lambda uri: cached(SlideCache(tmp_path, 10**6), uri), fetch_bytes):
        store.first(times, fault, method="GET", path="a.svs")
        assert read(f"{s3}/slides/a.svs") == SLIDE


@pytest.mark.parametrize("fault", [THROTTLED, Fault(cut_after=100_000)], ids=["503", "cut in mid-object"])
def test_a_fault_that_stays_ends_in_one_error_and_leaves_nothing(s3, store, tmp_path, fault):
    store.first(10**6, fault, method="GET", path="a.svs")
    with pytest.raises((StorageError, SlideError), match="a.svs"):
        SlideCache(tmp_path, 10**6).acquire(f"{s3}/slides/a.svs")
    assert left_in(tmp_path) == []
    store.first(0, fault, method="GET")
    assert cached(SlideCache(tmp_path, 10**6), f"{s3}/slides/a.svs") == SLIDE


def test_a_slide_that_is_replaced_while_it_is_downloaded_is_the_new_one_as_a_whole(s3, store, tmp_path):
    """Same size, other content, and the connection breaks off in between: the parts of two versions make no slide."""
    other = SLIDE[::-1]
    replace = Fault(cut_after=100_000, before=lambda: None)
    parts = iter([replace, Fault(before=lambda: put_past(s3, store, other))])
    store.faults = lambda method, path: next(parts, None) if method == "GET" and "a.svs" in path else None
    assert cached(SlideCache(tmp_path, 10**6), f"{s3}/slides/a.svs") == other
    assert next(parts, None) is None, "both faults happened"


def test_a_slide_that_never_stays_the_same_is_given_up(s3, store, tmp_path):
    versions = itertools.count()
    fault = Fault(before=lambda: put_past(s3, store, next(versions).to_bytes(2, "big") + SLIDE[2:]))
    store.faults = lambda method, path: fault if method == "GET" and "a.svs" in path else None
    with pytest.raises(SlideError, match="was replaced 3 times while it was downloaded"):
        SlideCache(tmp_path, 10**6).acquire(f"{s3}/slides/a.svs")
    assert left_in(tmp_path) == []


def test_a_slide_that_vanishes_between_listing_and_download_is_missing(s3, store, tmp_path):
    fault = Fault(before=lambda: client_past(store).delete_object(Bucket=s3[5:], Key="slides/a.svs"))
    store.first(1, fault, method="GET", path="a.svs")
    with pytest.raises(SlideError) as caught:
        SlideCache(tmp_path, 10**6).acquire(f"{s3}/slides/a.svs")
    assert caught.value.reason == "missing" and left_in(tmp_path) == []


def client_past(store: FaultyStore):
    import boto3

    return boto3.client("s3", endpoint_url=store.upstream.geturl())


def put_past(s3: str, store: FaultyStore, data: bytes) -> None:
    client_past(store).put_object(Bucket=s3[5:], Key="slides/a.svs", Body=data)


# ------------------------------------------------------------------------------------------------------------ checkpoints


def checkpoint(step: int) -> Checkpoint:
    cursor = Cursor(step=step, done=Intervals([(0, 10 * step)]), counts={0: [10 * step, 0, 0]})
    return Checkpoint(cursor, {"weight": torch.full((3,), float(step))}, QUARANTINE_SCHEMA.empty_table())


def steps(checkpoints: Checkpoints) -> tuple[int, int, float]:
    loaded = checkpoints.load()
    return checkpoints.latest_cursor().step, loaded.cursor.step, float(loaded.state["weight"][0])


@pytest.mark.parametrize("part", ["state.pt", "quarantine.parquet", "cursor.json", "latest.json"])
def test_a_save_that_fails_leaves_the_last_good_checkpoint(s3, store, part):
    checkpoints = Checkpoints(f"{s3}/run/checkpoints", keep=1)
    checkpoints.save(checkpoint(1))
    store.first(10**6, THROTTLED, method="PUT", path=part)
    with pytest.raises(StorageError, match=f"cannot write .*{part}.*wait for the store to recover"):
        checkpoints.save(checkpoint(2))
    assert steps(checkpoints) == (1, 1, 1.0)
    store.first(2, THROTTLED, method="PUT", path=part)
    checkpoints.save(checkpoint(2))
    assert steps(checkpoints) == (2, 2, 2.0)


def test_a_checkpoint_is_read_through_faults_that_pass(s3, store):
    checkpoints = Checkpoints(f"{s3}/run/checkpoints")
    checkpoints.save(checkpoint(3))
    for method in ("GET", "HEAD"):
        store.first(2, THROTTLED, method=method)
        assert steps(checkpoints) == (3, 3, 3.0)
    store.first(1, Fault(cut_after=10), method="GET", path="state.pt")
    assert steps(checkpoints) == (3, 3, 3.0)


def test_a_store_that_cannot_be_read_is_an_error_and_not_a_fresh_start(s3, store):
    """Taking "no answer" for "no checkpoint" would train everything again."""
    checkpoints = Checkpoints(f"{s3}/run/checkpoints")
    checkpoints.save(checkpoint(3))
    store.faults = lambda method, path: THROTTLED
    for read in (checkpoints.latest_cursor, checkpoints.load):
        with pytest.raises(StorageError, match="latest.json"):
            read()


def test_what_is_written_through_faults_is_whole(s3, store):
    store.first(2, THROTTLED, method="PUT")
    with contextlib.suppress(StorageError):  # the client's own tries may not be enough
        files.write_bytes(f"{s3}/x", SLIDE)
    assert files.info(f"{s3}/x") is None or files.read_bytes(f"{s3}/x") == SLIDE
    files.write_bytes(f"{s3}/x", SLIDE)
    assert files.read_bytes(f"{s3}/x") == SLIDE
