"""A disk that is full: an error that says so, nothing half written, and what was good before is still good."""

import os
import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch

from csat.errors import StorageError
from csat.runs.checkpoints import Checkpoint, Checkpoints, Cursor
from csat.runs.folder import RunFolder
from csat.runs.plan import Intervals
from csat.runs.quarantine import QUARANTINE_SCHEMA
from csat.storage import files
from csat.storage.node_cache import SlideCache

DISK_BYTES = 256 * 1024


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    if sys.platform != "linux" or os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def save(checkpoints: Checkpoints, step: int, num_floats: int) -> None:
    cursor = Cursor(step=step, done=Intervals([(0, step)]), counts={0: [step, 0, 0]})
    state = {"weight": torch.full((num_floats,), float(step))}
    checkpoints.save(Checkpoint(cursor, state, QUARANTINE_SCHEMA.empty_table()))


def test_a_checkpoint_that_does_not_fit_leaves_the_last_good_one(small_disk):
    checkpoints = Checkpoints(str(small_disk / "checkpoints"), keep=1)
    save(checkpoints, 1, 1000)
    with pytest.raises(StorageError, match="cannot write .*state.pt.*No space left on device"):
        save(checkpoints, 2, 100_000)
    assert checkpoints.latest_cursor().step == 1 and float(checkpoints.load().state["weight"][0]) == 1.0
    assert not [path for path in small_disk.rglob(".*")], "half a file takes no room"
    save(checkpoints, 2, 2000)
    assert checkpoints.load().cursor.step == 2


@dataclass(frozen=True)
class Wordy:
    """The settings of a run, longer than what is left of the disk."""

    note: str = "x" * 5000


def test_a_run_folder_on_a_full_disk_is_refused_before_anything_starts(small_disk):
    (small_disk / "filler").write_bytes(b"x" * (DISK_BYTES - 4096))
    with pytest.raises(StorageError, match="No space left"):
        RunFolder(str(small_disk / "run")).open(Wordy(), overwrite=False)


def test_a_slide_that_does_not_fit_on_the_disk_stops_the_work_and_leaves_room(small_disk, s3):
    """The budget is larger than the disk, or others have filled it: that is no fault of the slide."""
    files.write_bytes(f"{s3}/large.svs", b"x" * (2 * DISK_BYTES))
    files.write_bytes(f"{s3}/small.svs", b"y" * 1000)
    cache = SlideCache(small_disk / "cache", 10**9)
    with pytest.raises(StorageError, match="No space left"):
        cache.acquire(f"{s3}/large.svs")
    with cache.path(f"{s3}/small.svs") as path:
        assert path.read_bytes() == b"y" * 1000
