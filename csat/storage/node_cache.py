"""A bounded cache of slides from buckets on a node's own disk, shared by every process of that node.

OpenSlide wants local files, so a slide in a bucket is downloaded whole, once per node, and kept until its room is needed. All
state lies in the folder; locks are `flock`s, which the kernel drops when a process dies, so that nothing needs cleaning up:

    <key>.lock      shared lock: in use; exclusive lock: being downloaded or evicted. Its content: the bytes set aside.
    <key>/          the slide (and for multi-file formats the files beside it); its modification time: the last use.
    <key>.partial/  a download on its way
    budget.lock     held while the room is counted

The key holds the URI and its version: a slide that was replaced in the bucket is a new entry. One that is replaced while it is
downloaded comes in parts of both; so its version is asked for again afterwards, and such a download is thrown away.

A process pins one slide at a time (`Lease.pause` while it works on another one), and nobody waits for room while it pins
something. So a wait for room ends as soon as the others have read their tiles: no deadlock at any budget.
"""

import fcntl
import hashlib
import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

from csat.errors import SlideError, StorageError
from csat.storage import dicom, files

log = logging.getLogger(__name__)

ROOM_TIMEOUT_S = 900.0  # how long to wait until other processes of this node let go of a slide
POLL_S = 0.05
MAX_REPLACEMENTS = 3  # times that a slide may be replaced in the bucket while it is downloaded


class SlideCache:
    """Slides by URI as local files. Picklable: it holds a folder and a budget, nothing else."""

    def __init__(self, folder: str | Path, budget_bytes: int):
        """
        Args:
            folder: On a disk of this node, the same for every process. Made when first needed.
            budget_bytes: Most bytes that cached slides may take. Best above the sum of the slides that one shard of the
                manifest holds (its tiles are shuffled among themselves), or slides are downloaded again and again.
        """
        self._folder = str(folder)
        self.budget_bytes = int(budget_bytes)

    @property
    def folder(self) -> Path:
        """The folder as this process sees it: "~" may be another place on the node that made this object."""
        return Path(self._folder).expanduser().absolute()

    @contextmanager
    def path(self, uri: str) -> Iterator[Path]:
        """The slide as a local file, not to be evicted while the context lasts. Local files pass through.

        Raises:
            SlideError: "missing", or "unreadable" (larger than the budget, or the download keeps failing).
            StorageError: the fault is this node's or the account's, not the slide's (disk full, no credentials).
        """
        lease = self.acquire(uri)
        try:
            yield lease.path
        finally:
            lease.release()

    def acquire(self, uri: str) -> "Lease":
        """As `path`, for who keeps a slide open for long. The caller must `release`. Raises the same errors."""
        if files.is_local(uri):
            path = files.local_path(uri)
            if not path.is_file():
                raise SlideError("missing", f"{uri}: there is no such file")
            return Lease(path)
        uri = files.normalise(uri)
        for _ in range(MAX_REPLACEMENTS):
            try:
                return self._acquire(uri)
            except _ReplacedError as error:
                log.warning("%s; downloading the new one", error)
        raise SlideError("unreadable", f"{uri}: was replaced {MAX_REPLACEMENTS} times while it was downloaded")

    def _acquire(self, uri: str) -> "Lease":
        paths = _files_of(uri)
        size_bytes = sum(file.size_bytes for file in paths)
        if size_bytes > self.budget_bytes:
            raise SlideError(
                "unreadable",
                f"{uri}: {size_bytes:,} bytes do not fit into the slide cache of {self.budget_bytes:,}; raise its budget",
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        entry = self.folder / hashlib.sha256(repr(paths).encode()).hexdigest()[:32]
        while True:
            lock = _lock(entry, fcntl.LOCK_SH)
            if entry.is_dir():
                os.utime(entry)
                return Lease(entry / paths[0].name, entry.with_suffix(".lock"), lock)
            lock.close()
            with _lock(entry, fcntl.LOCK_EX) as lock:  # one process downloads, the others wait here
                if not entry.is_dir():
                    self._fetch(paths, size_bytes, entry, lock)
            # An exclusive lock cannot become a shared one without a gap in which the entry may be evicted: look again.

    def _fetch(self, paths: list["_SlideFile"], size_bytes: int, entry: Path, lock: BinaryIO) -> None:
        """Download into `entry`. The caller holds its lock exclusively."""
        partial = entry.with_suffix(".partial")
        self._set_aside(size_bytes, entry, lock)
        try:
            shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
            for file in paths:
                target = partial / file.name
                target.parent.mkdir(parents=True, exist_ok=True)
                _download(file, target)
            os.rename(partial, entry)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            lock.truncate(0)
            raise

    def _set_aside(self, size_bytes: int, entry: Path, lock: BinaryIO) -> None:
        """Write `size_bytes` into the lock file as soon as they fit, evicting what was not used for the longest time."""
        deadline = time.monotonic() + ROOM_TIMEOUT_S
        while True:
            with open(self.folder / "budget.lock", "ab") as budget:
                fcntl.flock(budget, fcntl.LOCK_EX)
                if self._make_room(size_bytes, entry):
                    lock.truncate(0)
                    lock.write(str(size_bytes).encode())
                    return
            if time.monotonic() > deadline:
                raise StorageError(
                    f"slide cache {self.folder}: no room for {size_bytes:,} bytes within {ROOM_TIMEOUT_S:.0f} s, its "
                    f"{self.budget_bytes:,} bytes are all in use by other processes of this node; raise its budget"
                )
            time.sleep(POLL_S)

    def _make_room(self, size_bytes: int, wanted: Path) -> bool:
        taken = {}
        for lock_path in self.folder.glob("*.lock"):
            entry = lock_path.with_suffix("")
            if entry != wanted and lock_path.name != "budget.lock":
                taken[entry] = _bytes_set_aside(lock_path)
        total = sum(taken.values())
        for entry in sorted(taken, key=_last_use):
            if total + size_bytes <= self.budget_bytes:
                break
            if _evict(entry):
                total -= taken[entry]
        return total + size_bytes <= self.budget_bytes


class Lease:
    """A slide as a local file that stays where it is until `pause` or `release`."""

    def __init__(self, path: Path, lock_path: Path | None = None, lock: BinaryIO | None = None):
        self.path = path
        self._lock_path = lock_path  # None: the user's own file, which nobody evicts
        self._lock = lock
        self.is_held = True

    def pause(self) -> None:
        """Let the slide be evicted while other slides are read."""
        if self._lock:
            fcntl.flock(self._lock, fcntl.LOCK_UN)
            self.is_held = False

    def resume(self) -> bool:
        """Pin the slide again. False: it was evicted meanwhile, and must be acquired and opened again."""
        if self._lock_path is None or self.is_held:
            return True
        if self._lock is None:
            return False
        fcntl.flock(self._lock, fcntl.LOCK_SH)
        if self.is_evicted:
            self.release()
            return False
        os.utime(self._lock_path.with_suffix(""))
        self.is_held = True
        return True

    @property
    def is_evicted(self) -> bool:
        """Whether the cache has given the slide up. Its bytes come free when the last process closes it."""
        return self._lock_path is not None and (self._lock is None or not _is_same(self._lock, self._lock_path))

    def release(self) -> None:
        """Give the slide back; may be called twice."""
        if self._lock:
            self._lock.close()
            self._lock = None
            self.is_held = False


def fetch_bytes(uri: str) -> bytes:
    """A small file whole, with the same patience and the same errors as the cache, but not kept.

    Raises:
        SlideError: "missing" or "unreadable".
        StorageError: the fault is not the file's.
    """
    try:
        return files.insist(lambda: files.read_bytes(uri)) if not files.is_local(uri) else files.read_bytes(uri)
    except StorageError as error:
        raise _blame(uri, error) from error


def _lock(entry: Path, mode: int) -> BinaryIO:
    """The entry's lock file, locked. Eviction removes it, so a lock that was won on a removed file is no lock."""
    path = entry.with_suffix(".lock")
    while True:
        lock = open(path, "a+b", buffering=0)  # noqa: SIM115 (the caller closes it)
        try:
            fcntl.flock(lock, mode)
            if _is_same(lock, path):
                return lock
        except BaseException:
            lock.close()
            raise
        lock.close()


def _is_same(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _bytes_set_aside(lock_path: Path) -> int:
    try:
        return int(lock_path.read_bytes() or 0)
    except FileNotFoundError:
        return 0


def _last_use(entry: Path) -> float:
    try:
        return entry.stat().st_mtime
    except FileNotFoundError:
        return 0.0  # on its way, or left behind by a process that died


def _evict(entry: Path) -> bool:
    """Remove an entry, unless it is in use."""
    try:
        lock = _lock(entry, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    with lock:
        partial = entry.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        if entry.is_dir():
            os.rename(entry, partial)  # first, so that a kill in the midst leaves no half slide under the good name
            shutil.rmtree(partial)
        entry.with_suffix(".lock").unlink()
    return True


class _SlideFile(NamedTuple):
    name: str  # path below the entry
    size_bytes: int
    version: str
    uri: str


def _files_of(uri: str) -> list[_SlideFile]:
    """The slide's file and those that its format keeps beside it."""
    try:
        found = files.insist(lambda: files.info(uri))
        if found is None:
            raise SlideError("missing", f"{uri}: there is no such object")
        folder, (stem, _, suffix) = files.parent(uri), files.base_name(uri).rpartition(".")
        beside = {}
        if suffix.lower() == "mrxs":  # MIRAX: the slide is a folder of the same name
            beside = files.insist(lambda: files.list_info(files.join(folder, stem)))
        elif suffix.lower() in ("vms", "vmu"):  # Hamamatsu: an ini file that names its jpegs
            lines = files.insist(lambda: files.read_bytes(uri)).decode("latin-1").splitlines()
            named = {line.partition("=")[2].strip() for line in lines}
            siblings = files.insist(lambda: files.list_dir(folder))
            beside = {file: files.info(file) for file in siblings if files.base_name(file) in named}
        elif suffix.lower() == "dcm":  # a file a level
            beside = {file: files.info(file) for file in files.insist(lambda: dicom.files_beside(uri))}
    except StorageError as error:
        raise _blame(uri, error) from error
    paths = [(uri, found), *((file, about) for file, about in beside.items() if about is not None)]
    return [_SlideFile(file[len(folder) :].lstrip("/"), about.size_bytes, about.version, file) for file, about in paths]


def _download(file: _SlideFile, target: Path) -> None:
    def once() -> None:
        files.download(file.uri, target)
        now, got = files.info(file.uri), target.stat().st_size
        if now is not None and now.version != file.version:
            raise _ReplacedError(f"{file.uri}: was replaced while it was downloaded")
        if got != file.size_bytes:
            raise SlideError("unreadable", f"{file.uri}: {got:,} bytes came instead of {file.size_bytes:,}; was it cut short?")

    try:
        files.insist(once)
    except StorageError as error:
        raise _blame(file.uri, error) from error


class _ReplacedError(Exception):
    """What came may be parts of two versions of a slide."""


def _blame(uri: str, error: StorageError) -> Exception:
    """A fault of this slide is a quarantine row; a fault of the node or of the network must stop the work instead."""
    if isinstance(error.__cause__, FileNotFoundError):
        return SlideError("missing", f"{uri}: there is no such object")
    if isinstance(error.__cause__, PermissionError | IsADirectoryError):
        return SlideError("unreadable", str(error))
    return error
