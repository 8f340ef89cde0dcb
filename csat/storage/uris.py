r"""Names of places: what a URI is, before any store is touched. `csat.storage.files` passes these on.

A local name need not be UTF-8, and text that is not can be neither printed nor put into a table. So a byte that is not UTF-8
is spelled as Python does in a string of bytes, `Pr\xe4parat.svs`, in every URI, table, log and message; `local_path` turns it
back into the byte, so that the file is opened under its own name, also when that spelling comes from a list or the command
line. A backslash of a name that would read as such a byte is spelled `\x5c`.
"""

import glob
import os
import re
from pathlib import Path
from urllib.parse import unquote

from csat.errors import StorageError

# Scheme → the package that fsspec needs for it. abfs and az are the same store; the account comes from its environment.
SCHEMES = {"file": None, "s3": "s3fs", "gs": "gcsfs", "abfs": "adlfs", "az": "adlfs"}
# What file servers, archives, operating systems and editors leave beside data, in lower case. Hidden names (.git, .DS_Store,
# .ipynb_checkpoints, ._twin) need no listing, nor do the locks of office programs (~$list.xlsx).
LEFTOVERS = frozenset(
    (
        *("@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot"),  # Synology, QNAP
        *("__macosx", "network trash folder", "temporary items"),  # macOS
        *("$recycle.bin", "system volume information", "thumbs.db", "ehthumbs.db", "desktop.ini"),  # Windows
        *("lost+found", "__pycache__"),
    )
)


def scheme_of(uri: str) -> str:
    """The scheme of a URI, "file" for a plain path.

    Raises:
        StorageError: a scheme that is not supported, one slash where two belong, or no bucket.
    """
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):(//?)(.*)", uri)
    if match is None:
        return "file"
    scheme, slashes, rest = match[1].lower(), match[2], match[3]
    known = ", ".join(f"{name}://" for name in SCHEMES)
    if slashes == "/" and scheme != "file":
        if scheme not in SCHEMES:
            return "file"  # "a:/b" is a legal path
        raise StorageError(f"{uri!r}: one slash after {scheme}: where two belong; write {scheme}://{rest}")
    if scheme not in SCHEMES:
        raise StorageError(f"{uri!r}: scheme {scheme}:// is not supported; use a local path or one of {known}")
    if scheme != "file" and not rest.strip("/"):
        raise StorageError(f"{uri!r}: names no bucket; write {scheme}://bucket/folder")
    return scheme


def is_local(uri: str) -> bool:
    """Whether the URI names something on this machine's file system."""
    return scheme_of(str(uri)) == "file"


def local_path(uri: str) -> Path:
    """The absolute path of a local URI ("~", "file://" and the spelling of bytes resolved): for opening, not for tables."""
    uri = str(uri)
    if scheme_of(uri) != "file":
        raise StorageError(f"{uri!r} is not a local path")
    if uri.lower().startswith("file:"):
        uri = unquote(re.sub(r"^file:(//[^/]*)?", "", uri, flags=re.IGNORECASE), errors="surrogateescape")
    else:
        uri = re.sub(r"\\x([89a-f][0-9a-f]|5c)", lambda match: os.fsdecode(bytes([int(match[1], 16)])), uri)
    return Path(os.path.abspath(os.path.expanduser(uri)))


def normalise(uri: str) -> str:
    """One spelling per place: an absolute path, or a URI with a lower-case scheme and no trailing slash."""
    uri = str(uri)
    if is_local(uri):
        return spelled(str(local_path(uri)))
    scheme, _, rest = uri.partition("://")
    return f"{scheme.lower()}://{rest.rstrip('/')}"


def spelled(path: str) -> str:
    """The URI of a path as the operating system gave it: printable, see the head of this file."""
    path = re.sub(r"\\(?=x(?:[89a-f][0-9a-f]|5c))", r"\\x5c", path)
    return re.sub("[\udc80-\udcff]", lambda match: f"\\x{ord(match[0]) - 0xDC00:02x}", path)


def is_leftover(name: str) -> bool:
    """Whether a file or folder of that name is no data: hidden, or one of `LEFTOVERS`."""
    return name.startswith((".", "~$")) or name.lower() in LEFTOVERS


def join(uri: str, *parts: str) -> str:
    """`uri` with `parts` below it. An absolute part or a URI replaces what is before it, as in os.path.join."""
    for part in map(str, parts):
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", part) or part.startswith("/"):
            uri = part
        else:
            uri = f"{str(uri).rstrip('/')}/{part}" if str(uri) != "/" else f"/{part}"
    return str(uri)


def base_name(uri: str) -> str:
    """The last part of a URI."""
    return str(uri).rstrip("/").rpartition("/")[2]


def suffix_of(uri: str) -> str:
    """The ending of a name with its dot, in lower case; "" where it has none."""
    name = base_name(uri)
    return f".{name.rpartition('.')[2].lower()}" if "." in name else ""


def parent(uri: str) -> str:
    """The folder that a URI lies in."""
    return normalise(uri).rpartition("/")[0] or "/"


def has_magic(uri: str) -> bool:
    """Whether the URI is a pattern (`*`, `?`, `[…]`) rather than a name."""
    return glob.has_magic(str(uri))
