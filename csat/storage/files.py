"""One door to files, local or in a bucket: every function takes a URI string. s3fs is used here and nowhere else.

A URI is a path ("/data/slides", "~/runs/a", "file:///data") or s3://, gs://, abfs://, az://. Endpoint, region and
credentials come from the standard environment of each store (AWS_ENDPOINT_URL, AWS_PROFILE, an instance role, ...), never
from our configuration; `FSSPEC_S3_ANON=true` reads public buckets.

Writes are whole or not at all: a local file is written under another name, flushed to the disk and renamed; an object in a
bucket appears when its upload is complete. What is no data, such as those temporary files and the thumbnails of a file server,
is never listed (`uris.is_leftover`).
"""

import errno
import glob as local_glob
import logging
import os
import re
import shutil
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeVar

import fsspec
import pyarrow as pa
import pyarrow.fs as arrow_fs

from csat.errors import SlideError, StorageError
from csat.storage.uris import (
    SCHEMES,
    base_name,
    is_leftover,
    is_local,
    join,
    local_path,
    normalise,
    parent,
    scheme_of,
    spelled,
)
from csat.words import printable

logger = logging.getLogger(__name__)

RETRY_PAUSES_S = (1.0, 2.0, 4.0, 8.0, 16.0)  # between tries, on top of the store client's own retries

T = TypeVar("T")


class FileInfo(NamedTuple):
    """What a store says of a file without reading it."""

    size_bytes: int
    version: str  # changes when the content does: an ETag, or the time of modification in ns


class Listing(NamedTuple):
    """What lies below a folder."""

    files: list[str]  # sorted URIs
    leftovers: Counter[str]  # files and folders that are no data, by name; what is in such a folder is not looked at


def info(uri: str) -> FileInfo | None:
    """Size and version of a file; None where there is none (a folder is none)."""
    with _explained("look at", uri):
        if is_local(uri):
            path = local_path(uri)
            if not path.is_file():
                return None
            stat = path.stat()
            return FileInfo(stat.st_size, str(stat.st_mtime_ns))
        try:
            found = _remote(uri).info(normalise(uri))
        except FileNotFoundError:
            return None
        if found["type"] != "file":
            return None
        return _file_info(found)


def is_dir(uri: str) -> bool:
    """Whether there is a folder; in a bucket, whether anything lies below that prefix."""
    with _explained("look at", uri):
        return local_path(uri).is_dir() if is_local(uri) else _remote(uri).isdir(normalise(uri))


def exists(uri: str) -> bool:
    """Whether there is a file or a folder."""
    return info(uri) is not None or is_dir(uri)


def size(uri: str) -> int:
    """Bytes of a file. Raises StorageError where there is none."""
    found = info(uri)
    if found is None:
        raise StorageError(f"there is no file {uri}")
    return found.size_bytes


def list_dir(uri: str) -> list[str]:
    """Files and folders directly in a folder, as sorted URIs. Empty where there is no such folder."""
    with _explained("list", uri):
        if is_local(uri):
            path = local_path(uri)
            names = [spelled(str(child)) for child in path.iterdir()] if path.is_dir() else []
        else:
            try:
                names = _with_scheme(uri, _remote(uri).ls(normalise(uri), detail=False))
            except FileNotFoundError:
                names = []
        return _sifted((name for name in names if name != normalise(uri)), below=normalise(uri)).files


def scan(uri: str) -> Listing:
    """Every file below a folder, at any depth, and what was left out. Empty where there is no such folder."""
    with _explained("list", uri):
        names = _walk(local_path(uri)) if is_local(uri) else _with_scheme(uri, _remote(uri).find(normalise(uri)))
        return _sifted(names, below=normalise(uri))


def list_files(uri: str) -> list[str]:
    """The files of `scan`."""
    return scan(uri).files


def list_info(uri: str) -> dict[str, FileInfo]:
    """URI → size and version of every file below a folder, with one listing. Empty where there is no such folder."""
    if is_local(uri):
        return {file: found for file in list_files(uri) if (found := info(file)) is not None}
    with _explained("list", uri):
        found = {f"{scheme_of(uri)}://{name}": about for name, about in _remote(uri).find(normalise(uri), detail=True).items()}
        return {name: _file_info(found[name]) for name in _sifted(found, below=normalise(uri)).files}


def glob(pattern: str) -> list[str]:
    """What matches `*`, `?`, `[…]` and `**` (any depth), as sorted URIs."""
    with _explained("list", pattern):
        if is_local(pattern):
            found = map(spelled, local_glob.glob(str(local_path(pattern)), recursive=True))
        else:
            found = _with_scheme(pattern, _remote(pattern).glob(normalise(pattern)))
        return _sifted(found, below=parent(re.split(r"[*?[]", normalise(pattern))[0] + "_")).files


def check_writable(uri: str) -> None:
    """Write and delete a small file in that folder, now rather than after hours. Raises StorageError saying why not."""
    probe = join(uri, f"write-check-{os.getpid()}")
    write_bytes(probe, b"csat")
    delete(probe)


def read_bytes(uri: str, *, start: int | None = None, stop: int | None = None) -> bytes:
    """The content of a file, or the bytes from `start` up to `stop` of it. Raises StorageError."""
    with _explained("read", uri):
        if is_local(uri):
            with open(local_path(uri), "rb") as file:
                file.seek(start or 0)
                return file.read() if stop is None else file.read(stop - (start or 0))
        return _remote(uri).cat_file(normalise(uri), start=start, end=stop)


def open_input(uri: str) -> BinaryIO:
    """A seekable binary file; a remote one is read by ranges as asked, not downloaded. Use it as a context manager."""
    with _explained("read", uri):
        if is_local(uri):
            return open(local_path(uri), "rb")
        return _remote(uri).open(normalise(uri), "rb", block_size=2**20)


def open_native(uri: str) -> pa.NativeFile:
    """A file for Arrow's own readers; a remote one is read by ranges. Raises what Arrow raises: OSError, ArrowInvalid."""
    if is_local(uri):
        return arrow_fs.LocalFileSystem().open_input_file(os.fsencode(local_path(uri)))
    store, path = arrow_filesystem(uri)
    return store.open_input_file(path)


def download(uri: str, path: Path) -> None:
    """Copy a remote file to a local path. Not atomic: the caller names the file and checks its size."""
    with _explained("download", uri):
        _remote(uri).get_file(normalise(uri), str(path))


def write_bytes(uri: str, data: bytes) -> None:
    """Write a file whole or not at all. Raises StorageError."""
    if is_local(uri):
        with open_output(uri) as file, _explained("write", uri):
            file.write(data)
        return
    with _explained("write", uri):
        _remote(uri).pipe_file(normalise(uri), data)


@contextmanager
def open_output(uri: str) -> Iterator[BinaryIO]:
    """A binary file that appears under its name when the context ends well, and not at all when it raises.

    What goes to a bucket is gathered in a local temporary file first: closing a half-written fsspec file would commit it.
    """
    if not is_local(uri):
        with tempfile.NamedTemporaryFile() as file:
            yield file
            file.flush()
            with _explained("write", uri):
                _remote(uri).put_file(file.name, normalise(uri))
        return
    path = local_path(uri)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    with _explained("write", uri):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(partial, "xb")  # noqa: SIM115 (closed below, where its errors are the caller's)
    try:
        yield file
        with _explained("write", uri):
            file.flush()
            os.fsync(file.fileno())
            file.close()
            os.replace(partial, path)
            _sync_folder(path.parent)
    finally:
        with suppress(OSError):  # a full disk again, for what the buffer still holds: the first error is the one to tell
            file.close()
        partial.unlink(missing_ok=True)


def make_dir(uri: str) -> None:
    """Make a folder and those above it; in a bucket there are no folders, and nothing is done."""
    if is_local(uri):
        with _explained("write", uri):
            local_path(uri).mkdir(parents=True, exist_ok=True)


def delete(uri: str) -> None:
    """Delete a file, or a folder with all that is in it. Nothing there is no error."""
    with _explained("delete", uri):
        if is_local(uri):
            path = local_path(uri)
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
            return
        store = _remote(uri)
        if store.exists(normalise(uri)):
            store.rm(normalise(uri), recursive=True)


def insist(action: Callable[[], T]) -> T:
    """Try again, with growing pauses, what may succeed the next time; a bucket may be out of reach for a while.

    Raises:
        StorageError, SlideError: of the last try; at once where another try would end the same way (nothing there, no right
            to it, the disk is full).
    """
    for pause_s in RETRY_PAUSES_S:
        try:
            return action()
        except (StorageError, SlideError) as error:
            if isinstance(error.__cause__, FileNotFoundError | PermissionError) or _is_disk_full(error.__cause__):
                raise
            logger.warning("%s; trying again in %.0f s", error, pause_s)
            time.sleep(pause_s)
    return action()


def arrow_filesystem(uri: str) -> tuple[arrow_fs.FileSystem, str]:
    """(file system, path in it) for pyarrow, Ray Data and Ray Train.

    Raises:
        StorageError: the path is not UTF-8, as theirs must be (`open_native` opens others, too).
    """
    if is_local(uri):
        path = str(local_path(uri))
        if printable(path) != path:
            raise StorageError(f"{normalise(uri)}: Ray and Arrow need a path that is UTF-8: choose a folder of another name")
        return arrow_fs.LocalFileSystem(), path
    bucket, _, key = normalise(uri).partition("://")[2].partition("/")
    if scheme_of(uri) == "s3":  # from the bucket alone: a key may hold characters that a URI may not
        store, root = arrow_fs.FileSystem.from_uri(f"s3://{bucket}")
        return store, f"{root}/{key}" if key else root
    return arrow_fs.PyFileSystem(arrow_fs.FSSpecHandler(_remote(uri))), f"{bucket}/{key}" if key else bucket


def _remote(uri: str) -> fsspec.AbstractFileSystem:
    scheme = scheme_of(uri)
    try:
        # No listings cache: what another process wrote a second ago must be seen. Instances are cached per process.
        return fsspec.filesystem(scheme, use_listings_cache=False)
    except ImportError as error:
        raise StorageError(
            f"{uri!r}: {scheme}:// needs the package {SCHEMES[scheme]}: pip install {SCHEMES[scheme]}"
        ) from error


def _is_disk_full(error: BaseException | None) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def _file_info(found: dict) -> FileInfo:
    version = found.get("ETag") or found.get("etag") or found.get("LastModified") or found.get("updated") or ""
    return FileInfo(int(found["size"]), str(version).strip('"'))


def _with_scheme(uri: str, names) -> list[str]:
    return [f"{scheme_of(uri)}://{name}" for name in names]


def _walk(folder: Path) -> Iterator[str]:
    """Files below a folder; linked folders too, each once (links may form a loop). A folder that cannot be read raises.

    A folder of leftovers is named and not entered: snapshots of a file server may hold a hundred times the data.
    """
    seen = set()
    for here, folders, files in os.walk(folder, followlinks=True, onerror=_raise_unless_missing):
        if os.path.realpath(here) in seen:
            folders.clear()
            continue
        seen.add(os.path.realpath(here))
        leftovers = [name for name in folders if is_leftover(name)]
        folders[:] = [name for name in folders if not is_leftover(name)]
        yield from (spelled(os.path.join(here, name)) for name in (*files, *leftovers))


def _raise_unless_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _sifted(names: Iterable[str], below: str) -> Listing:
    """Data and leftovers apart; what stands above and in `below` itself is as the user named it."""
    root = below.rstrip("/")
    files, leftovers = [], set()
    for name in names:
        parts = name[len(root) + 1 :].split("/")
        odd = next((index for index, part in enumerate(parts) if is_leftover(part)), None)
        if odd is None:
            files.append(name)
        else:
            leftovers.add("/".join([root, *parts[: odd + 1]]))
    return Listing(sorted(files), Counter(map(base_name, leftovers)))


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def _explained(verb: str, uri: str) -> Iterator[None]:
    """Turn what a store raises into one StorageError that names the URI and the likely cure."""
    try:
        yield
    except StorageError:
        raise
    except FileNotFoundError as error:
        raise StorageError(f"cannot {verb} {uri}: there is nothing there (or no such bucket)") from error
    except PermissionError as error:
        raise StorageError(f"cannot {verb} {uri}: permission denied ({error}); check the rights or the credentials") from error
    except Exception as error:  # botocore, aiohttp and gcsfs each have their own family
        is_busy = isinstance(error, OSError) and error.errno == errno.EBUSY  # what s3fs makes of "slow down"
        cure = "wait for the store to recover" if is_busy else "check the endpoint, region and credentials in the environment"
        cure = "" if is_local(uri) else f"; {cure}"
        raise StorageError(f"cannot {verb} {uri}: {type(error).__name__}: {error}{cure}") from error
