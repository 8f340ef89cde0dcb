"""Which DICOM files are one slide: each file is one level of it, and OpenSlide finds the others beside the one that it opens.

What says so is the file's SeriesInstanceUID, which stands before the pixels: some kB of a file are read (PS3.5, chapter 7).
"""

import struct
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

from csat.errors import StorageError
from csat.storage import files
from csat.storage.uris import suffix_of

SUFFIX = ".dcm"
HEAD_BYTES = 64 * 2**10  # the identifiers stand in the first few kB
NUM_HEADER_THREADS = 16  # they are waited for, not computed

SERIES_UID, TRANSFER_SYNTAX = (0x0020, 0x000E), (0x0002, 0x0010)
ITEM, ITEM_END, SEQUENCE_END = (0xFFFE, 0xE000), (0xFFFE, 0xE00D), (0xFFFE, 0xE0DD)
IMPLICIT, BIG_ENDIAN, DEFLATED = b"1.2.840.10008.1.2", b"1.2.840.10008.1.2.2", b"1.2.840.10008.1.2.1.99"
LONG_FORMS = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
UNDEFINED = 0xFFFFFFFF


def same_slide(paths: Iterable[str]) -> list[list[str]]:
    """DICOM files by slide: those of one folder and one series belong together; a file without a series stands alone.

    A file that is the only one in its folder is not read.

    Args:
        paths: Local paths or URIs; the order does not matter.

    Returns:
        One sorted list per slide, sorted.
    """
    folders = defaultdict(list)
    for file in sorted(set(paths)):
        folders[files.parent(file)].append(file)
    slides = [group for group in folders.values() if len(group) == 1]
    several = [file for group in folders.values() if len(group) > 1 for file in group]
    groups = defaultdict(list)
    with ThreadPoolExecutor(NUM_HEADER_THREADS) as pool:
        for file, series in zip(several, pool.map(_series_of, several), strict=True):
            groups[(files.parent(file), series or file)].append(file)
    return sorted(slides + list(groups.values()))


def files_beside(uri: str) -> list[str]:
    """The files of the same slide in the same folder, without this one."""
    siblings = [file for file in files.list_dir(files.parent(uri)) if suffix_of(file) == SUFFIX]
    return next(([file for file in group if file != uri] for group in same_slide([uri, *siblings]) if uri in group), [])


def series_uid(head: bytes) -> str | None:
    """The SeriesInstanceUID that the beginning of a DICOM file states; None where there is none."""
    if head[128:132] != b"DICM":
        return None
    position, is_implicit = 132, False  # what describes the file is explicit, in every file
    try:
        while True:
            tag, start, end = _element(head, position, is_implicit and head[position : position + 2] != b"\x02\x00")
            if end > len(head):
                return None
            value = head[start:end].rstrip(b"\0 ")
            if tag == SERIES_UID:
                return value.decode("ascii") or None
            if tag > SERIES_UID:
                return None
            if tag == TRANSFER_SYNTAX:
                if value in (BIG_ENDIAN, DEFLATED):
                    return None
                is_implicit = value == IMPLICIT
            position = end
    except (struct.error, UnicodeDecodeError, RecursionError):  # cut short, or no DICOM after all
        return None


def _element(head: bytes, position: int, is_implicit: bool) -> tuple[tuple[int, int], int, int]:
    """(tag, where its value starts, where it ends)."""
    *tag, length = struct.unpack_from("<HHI", head, position)
    tag, start = tuple(tag), position + 8
    if not is_implicit and tag[0] != ITEM[0]:
        form, length = struct.unpack_from("<2sH", head, position + 4)
        if form in LONG_FORMS:
            (length,) = struct.unpack_from("<I", head, position + 8)
            start = position + 12
    return tag, start, _end_of_items(head, start, is_implicit) if length == UNDEFINED else start + length


def _end_of_items(head: bytes, position: int, is_implicit: bool) -> int:
    """Where a sequence, or an item, whose length is not stated ends."""
    while True:
        tag, _, position = _element(head, position, is_implicit)
        if tag in (ITEM_END, SEQUENCE_END):
            return position


def _series_of(uri: str) -> str | None:
    try:
        found = files.insist(lambda: files.info(uri))
        return found and _series_of_version(uri, found.version)
    except StorageError:  # opening it will say what is wrong with it
        return None


@lru_cache(maxsize=65536)
def _series_of_version(uri: str, version: str) -> str | None:
    """Kept, for every slide of a folder asks for all of its files."""
    return series_uid(files.insist(lambda: files.read_bytes(uri, start=0, stop=HEAD_BYTES)))
