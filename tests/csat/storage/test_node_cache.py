"""The node's slide cache: one download per node, never beyond its budget, nothing taken from under a reader."""

import contextlib
import multiprocessing
import os
import pickle
import threading
import time
from pathlib import Path

import pytest

from csat.errors import SlideError, StorageError
from csat.storage import files, node_cache
from csat.storage.node_cache import SlideCache, fetch_bytes


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(files, "RETRY_PAUSES_S", (0.0, 0.0))


@pytest.fixture
def slides(s3):
    """Ten objects of 1000 bytes each, told apart by their content."""
    uris = [f"{s3}/slides/{index}.svs" for index in range(10)]
    for index, uri in enumerate(uris):
        files.write_bytes(uri, bytes([index]) * 1000)
    return uris


@pytest.fixture
def downloads(monkeypatch):
    """URIs in the order in which they are downloaded."""
    seen, download = [], files.download

    def counted(uri, path):
        seen.append(uri)
        download(uri, path)

    monkeypatch.setattr(files, "download", counted)
    return seen


def taken_bytes(cache: SlideCache) -> int:
    """On the disk, downloads on their way included."""
    total = 0
    for folder, _, paths in os.walk(cache.folder):
        for file in paths:
            with contextlib.suppress(FileNotFoundError):  # evicted by another thread of the test since it was listed
                total += 0 if file.endswith(".lock") else os.stat(os.path.join(folder, file)).st_size
    return total


def fetch_in_process(folder, uri, log, barrier):
    download = files.download

    def slow(*args):
        with open(log, "a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(0.3)
        download(*args)

    files.download = slow
    barrier.wait()
    with SlideCache(folder, 5000).path(uri) as path:
        assert path.read_bytes() == bytes([3]) * 1000


def test_a_local_slide_passes_through(tmp_path):
    (tmp_path / "a.svs").write_bytes(b"x")
    with SlideCache(tmp_path / "cache", 0).path(str(tmp_path / "a.svs")) as path:
        assert path == tmp_path / "a.svs"
    assert not (tmp_path / "cache").exists()


def test_a_remote_slide_is_downloaded_once_under_its_own_name(tmp_path, slides, downloads):
    cache = pickle.loads(pickle.dumps(SlideCache(tmp_path, 5000)))
    for _ in range(2):
        with cache.path(slides[3]) as path:
            assert path.name == "3.svs" and path.read_bytes() == bytes([3]) * 1000
    assert downloads == [slides[3]]


def test_two_processes_share_one_download(tmp_path, slides):
    context = multiprocessing.get_context("fork")  # starts in milliseconds; spawn would import torch twice
    barrier = context.Barrier(2)
    args = (tmp_path / "cache", slides[3], tmp_path / "log", barrier)
    processes = [context.Process(target=fetch_in_process, args=args) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert len((tmp_path / "log").read_text().split()) == 1


def test_what_was_not_used_for_the_longest_time_goes_first_and_the_budget_holds(tmp_path, slides, downloads):
    cache = SlideCache(tmp_path, 3000)
    for uri in [*slides[:3], slides[0], slides[3]]:  # 0 was used again, so 1 has to go
        with cache.path(uri):
            assert taken_bytes(cache) <= 3000
        time.sleep(0.02)  # file times may be coarse
    downloads.clear()
    for uri in (slides[0], slides[2], slides[3]):
        with cache.path(uri):
            pass
    assert downloads == []
    with cache.path(slides[1]):
        pass
    assert downloads == [slides[1]]


def test_a_slide_in_use_is_never_evicted(tmp_path, slides):
    cache = SlideCache(tmp_path, 2000)
    with cache.path(slides[0]) as held:
        for uri in slides[1:]:
            with cache.path(uri):
                assert taken_bytes(cache) <= 2000
        assert held.read_bytes() == bytes([0]) * 1000


def test_a_full_cache_is_waited_for_and_the_wait_has_an_end(tmp_path, slides, monkeypatch):
    cache = SlideCache(tmp_path, 1000)
    monkeypatch.setattr(node_cache, "ROOM_TIMEOUT_S", 0.1)
    first = cache.acquire(slides[0])
    with pytest.raises(StorageError, match="no room for 1,000 bytes"):
        cache.acquire(slides[1])
    monkeypatch.setattr(node_cache, "ROOM_TIMEOUT_S", 30)
    threading.Timer(0.2, first.release).start()
    with cache.path(slides[1]) as path:
        assert path.read_bytes() == bytes([1]) * 1000


def test_a_paused_lease_makes_room_and_notices(tmp_path, slides):
    cache = SlideCache(tmp_path, 1000)
    lease = cache.acquire(slides[0])
    lease.pause()
    assert not lease.is_evicted and lease.resume()
    lease.pause()
    with cache.path(slides[1]):
        assert lease.is_evicted and not lease.resume()
    with cache.path(slides[0]):  # there again, but another download: the old lease must not think that it holds it
        assert lease.is_evicted and not lease.resume()


def test_a_resumed_lease_pins_again(tmp_path, slides, monkeypatch):
    monkeypatch.setattr(node_cache, "ROOM_TIMEOUT_S", 0.1)
    cache = SlideCache(tmp_path, 1000)
    lease = cache.acquire(slides[0])
    lease.pause()
    assert lease.resume()
    with pytest.raises(StorageError, match="no room"):
        cache.acquire(slides[1])


def test_many_readers_in_a_small_cache_all_get_their_slides(tmp_path, slides):
    """Eight threads through a cache of two slides: no deadlock, no torn file, never over budget."""
    cache, failures = SlideCache(tmp_path, 2000), []

    def work(seed):
        try:
            for step in range(6):
                index = (seed * 3 + step) % 10
                with cache.path(slides[index]) as path:
                    assert path.read_bytes() == bytes([index]) * 1000
                    assert taken_bytes(cache) <= 2000
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == [] and not any(thread.is_alive() for thread in threads)


def test_what_a_killed_process_left_is_cleared_away(tmp_path, slides):
    cache = SlideCache(tmp_path, 1000)
    (tmp_path / "dead.partial").mkdir()
    (tmp_path / "dead.partial" / "half").write_bytes(b"x" * 900)
    (tmp_path / "dead.lock").write_text("1000")
    with cache.path(slides[0]):
        assert taken_bytes(cache) == 1000 and not (tmp_path / "dead.partial").exists()


def test_a_replaced_slide_is_downloaded_anew(tmp_path, slides):
    cache = SlideCache(tmp_path, 5000)
    with cache.path(slides[0]):
        pass
    files.write_bytes(slides[0], b"n" * 1000)
    with cache.path(slides[0]) as path:
        assert path.read_bytes() == b"n" * 1000


def test_a_download_cut_short_is_tried_again(tmp_path, slides, monkeypatch):
    download, calls = files.download, []

    def cut_short(uri, path):
        calls.append(uri)
        if len(calls) == 1:
            Path(path).write_bytes(b"half")
        else:
            download(uri, path)

    monkeypatch.setattr(files, "download", cut_short)
    with SlideCache(tmp_path, 5000).path(slides[2]) as path:
        assert path.read_bytes() == bytes([2]) * 1000
    assert len(calls) == 2


def test_a_download_that_stays_short_is_the_slides_fault_and_leaves_nothing(tmp_path, slides, monkeypatch):
    monkeypatch.setattr(files, "download", lambda uri, path: Path(path).write_bytes(b"half"))
    cache = SlideCache(tmp_path, 5000)
    with pytest.raises(SlideError, match="4 bytes came instead of 1,000") as caught:
        cache.acquire(slides[0])
    assert caught.value.reason == "unreadable" and taken_bytes(cache) == 0


def test_a_full_disk_stops_the_work_instead_of_blaming_the_slide(tmp_path, slides, monkeypatch):
    def full(uri, path):
        try:
            raise OSError(28, "No space left on device")
        except OSError as error:
            raise StorageError(f"cannot download {uri}: {error}") from error

    monkeypatch.setattr(files, "download", full)
    with pytest.raises(StorageError, match="No space left"):
        SlideCache(tmp_path, 5000).acquire(slides[0])


def test_a_slide_larger_than_the_budget_is_refused(tmp_path, slides):
    with pytest.raises(SlideError, match="1,000 bytes do not fit into the slide cache of 999") as caught:
        SlideCache(tmp_path, 999).acquire(slides[0])
    assert caught.value.reason == "unreadable"


def test_a_missing_slide_is_missing(tmp_path, s3):
    for uri in (f"{s3}/none.svs", str(tmp_path / "none.svs")):
        with pytest.raises(SlideError) as caught:
            SlideCache(tmp_path / "cache", 999).acquire(uri)
        assert caught.value.reason == "missing" and "none.svs" in str(caught.value)
        with pytest.raises(SlideError) as caught:
            fetch_bytes(uri)
        assert caught.value.reason == "missing"


@pytest.mark.parametrize("suffix", ["mrxs", "vms"])
def test_a_format_of_several_files_comes_whole(tmp_path, s3, suffix):
    beside = {"mrxs": ["a/Slidedat.ini", "a/Data0000.dat"], "vms": ["a-0.jpg", "map.opt"]}[suffix]
    files.write_bytes(
        f"{s3}/d/a.{suffix}", b"[Virtual Microscope Specimen]\r\nImageFile=a-0.jpg\r\nOptimisationFile=map.opt\r\n"
    )
    for name in [*beside, "b/Slidedat.ini", "other.jpg"]:
        files.write_bytes(f"{s3}/d/{name}", name.encode())
    with SlideCache(tmp_path, 5000).path(f"{s3}/d/a.{suffix}") as path:
        found = {str(file.relative_to(path.parent)) for file in path.parent.rglob("*") if file.is_file()}
        assert found == {f"a.{suffix}", *beside}
        assert all((path.parent / name).read_bytes() == name.encode() for name in beside)


def test_the_home_folder_is_that_of_the_process_that_reads(monkeypatch):
    cache = SlideCache("~/cache", 1)
    monkeypatch.setenv("HOME", "/home/worker")
    assert cache.folder == Path("/home/worker/cache")
