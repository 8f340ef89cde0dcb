"""What every teacher is (`Teacher`), and the few things that all of them need: their weights' file, its hash, a run's record.

A teacher is one file with an options dataclass and

    def load(options: MyOptions, *, weights: str | None, device: str, wanted: Sequence[str] | None) -> Teacher

and one line in `teachers/registry.py`. `load` reads weights without unpickling code (safetensors, or `torch.load` with
`weights_only=True`), hashes them with `sha256_of`, and raises TeacherError saying what it expected, what it found and what
to try next. `weights` is a file, local or remote: open it through `weights_file`. `wanted` are the responses that somebody
will use: the teacher's spec is reduced to those (`select_responses`), and nothing else is computed.
"""

import hashlib
import json
import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from csat.errors import SlideError, StorageError, TeacherError
from csat.precision import FLOAT32
from csat.responses import ResponseSpec, TeacherSpec
from csat.storage.node_cache import SlideCache
from csat.storage.uris import is_local, local_path
from csat.words import some

PRECISION = "precision"  # the option of teachers that compute in either number format
REMOTE_WEIGHTS_CACHE_BYTES = 64 * 2**30  # of downloaded weights kept on a node; the largest public encoders have 5 GB


class Teacher(ABC):
    """A loaded teacher. One lives in each actor of the teacher pool.

    Attributes:
        spec: What it answers: exactly the responses that `respond` returns, in that order.
    """

    spec: TeacherSpec

    @abstractmethod
    def respond(self, tiles: np.ndarray) -> dict[str, np.ndarray]:
        """Answer a batch of tiles. Deterministic: the same tile gets the same answer in any batch.

        Args:
            tiles: uint8 `[B, H, W, 3]`, RGB, B >= 1. May be read-only: copy before writing, or before `torch.from_numpy`.

        Returns:
            name → float16 `[B, C, n, n]` (dense; of rectangles `[B, C, rows, columns]`) or `[B, C]` (global), for every
            response in `spec`. Values beyond float16's range become infinite: the pool quarantines the tile.
        """


def select_responses(
    responses: Sequence[ResponseSpec], wanted: Sequence[str] | None, *, teacher: str
) -> tuple[ResponseSpec, ...]:
    """The wanted ones of a teacher's responses, in the teacher's order; all of them where `wanted` is None.

    Raises:
        TeacherError: a wanted name that the teacher does not have, or nothing wanted.
    """
    if wanted is None:
        return tuple(responses)
    have = [spec.name for spec in responses]
    missing = [name for name in wanted if name not in have]
    if missing or not wanted:
        asked = ", ".join(missing) or "none of its responses"
        raise TeacherError(f"teacher {teacher!r} was asked for {asked}; it has: {', '.join(have)}")
    return tuple(spec for spec in responses if spec.name in wanted)


def check_responses(
    responses: dict[str, np.ndarray], spec: TeacherSpec, *, num_tiles: int, tile_px: int | tuple[int, int]
) -> None:
    """Refuse an answer that does not fit the teacher's own spec: a bug in the teacher, not a bad tile.

    Raises:
        TeacherError: naming the response, the shape that the spec promises and the one that came.
    """
    for response in spec.responses:
        if response.name not in responses:
            have = ", ".join(responses) or "nothing"
            raise TeacherError(f"teacher {spec.name!r} promised the response {response.name!r} and answered: {have}")
        expected, came = (num_tiles, *response.shape(tile_px)), responses[response.name].shape
        if came != expected:
            raise TeacherError(
                f"teacher {spec.name!r}, response {response.name!r}: {num_tiles} tiles of {_size(tile_px)} px should give "
                f"{list(expected)} and gave {list(came)}: its stride_px, crop_px or channels are described wrongly"
            )


@contextmanager
def weights_file(uri: str | None, *, teacher: str, expected: str) -> Iterator[Path]:
    """A local path to a weights file; a remote one is downloaded once per node and kept while it is in use.

    Args:
        uri: Local path or URI (`s3://…`), as the user gave it.
        teacher: For the message.
        expected: What kind of file this teacher wants and where to get it, for the message.

    Raises:
        TeacherError: no weights were given, or there is no such file.
    """
    if not uri:
        raise TeacherError(f"teacher {teacher!r} needs weights and got none: expected {expected}. Set teacher.weights")
    try:
        if is_local(uri):
            path, release = local_path(uri), lambda: None
            if not path.is_file():
                raise TeacherError(_no_such_file(path, teacher=teacher, expected=expected))
        else:
            lease = SlideCache(Path(tempfile.gettempdir()) / "csat-weights", REMOTE_WEIGHTS_CACHE_BYTES).acquire(uri)
            path, release = lease.path, lease.release
    except (SlideError, StorageError) as error:
        raise TeacherError(
            f"teacher {teacher!r}: cannot read the weights {uri} ({error}). Expected {expected}. Check teacher.weights, and "
            "that every node may read it"
        ) from error
    try:
        yield path
    finally:
        release()


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a local file, in hexadecimal: what identifies a teacher in run folders and response caches."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_settings(options: Any, *, version: int) -> str:
    """The identity of a teacher that has no weights: a hash over its options (a dataclass) and its algorithm's version.

    Args:
        options: Frozen options dataclass of JSON-ready values.
        version: A constant that its author raises whenever the same options start to give other responses.
    """
    settings = {"class": type(options).__name__, "version": version, **asdict(options)}
    if PRECISION in settings:
        settings[PRECISION] = FLOAT32  # how it computes says not what it is
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def teacher_record(spec: TeacherSpec) -> dict[str, Any]:
    """What a run writes about its teacher (`teacher.json`), JSON-ready: name, hash, licence, mpp, responses and the rest."""
    return json.loads(json.dumps(asdict(spec)))  # tuples and enums become what JSON would make of them


def _size(tile_px: int | tuple[int, int]) -> str:
    edges = {tile_px} if isinstance(tile_px, int) else dict.fromkeys(tile_px)
    return " x ".join(map(str, edges))


def _no_such_file(path: Path, *, teacher: str, expected: str) -> str:
    folder = path.parent
    if path.is_dir():
        found = f"that is a folder, holding: {some(sorted(os.listdir(path)))}"
    elif folder.is_dir():
        found = f"{folder} holds: {some(sorted(os.listdir(folder)))}"
    else:
        found = f"the folder {folder} does not exist on this machine"
    return (
        f"teacher {teacher!r}: there is no weights file {path} ({found}). Expected {expected}. Correct teacher.weights; "
        "on a cluster, the path must exist on every node, or be an s3:// URI"
    )
