"""A teacher's responses kept in storage, so that it answers a tile only once: an option with a budget, never the default.

    URI/KEY/key.json                                  what the responses depend on; KEY is its hash
    URI/KEY/00012/0001543-SHA256.safetensors.zst      tiles of chunk 1543, which lies in shard 12 of the manifest
    URI/KEY/complete.json                             every tile of the manifest has been through the teacher

A file holds, per tile, its responses, or the reason why the teacher has none for it. It appears whole or not at all, and its
name is the hash of its content: a damaged file is detected, deleted and answered again. A chunk may have several files (a
resumed run answers what was left of it), and two writers of the same tiles write the same file or two that say the same.

Probabilities are kept as uint8, k / 255: what is read differs from what the teacher said by at most `PROBABILITY_ERROR`.
Everything else is kept as float16, as it travels anyway: exactly.
"""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from hashlib import sha256
from typing import Any

import numpy as np
import pyarrow as pa
import safetensors.numpy

from csat.errors import ConfigError, StorageError, TeacherError
from csat.precision import FLOAT32
from csat.responses import Kind, ResponseSpec, TeacherSpec
from csat.settings import Free, Often, Place
from csat.storage import files
from teachers.contract import PRECISION

logger = logging.getLogger(__name__)

VERSION = 1  # of the layout: part of the key
KEY, COMPLETE = "key.json", "complete.json"
PROBABILITY_ERROR = 0.5 / 255 + 2.0**-12  # rounding to 255 steps, and the float16 in which k / 255 travels on
PROBABILITY_SLACK = 1e-3  # how far a probability may lie outside [0, 1], for float16's sake
HEADER_BYTES = 128  # at most, of one tensor in a file: its name, shape and place
MAX_LISTINGS = 64  # shards whose files one process remembers
FILE = re.compile(r"(?P<chunk>\d{7,})-(?P<digest>[0-9a-f]{64})\.safetensors\.zst")

Answer = dict[str, np.ndarray] | str  # responses of one tile (float16), or the reason why the teacher has none


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """Where responses are kept: the settings cache.NAME."""

    uri: Often[Place | None] = None  # local path that every node sees, or s3://…; None: the teacher answers in every epoch
    keep: bool | None = None  # whether to; None: where it is cheaper than to answer again, which longer runs measure
    budget_gb: Free[float] = 100.0  # a run whose responses could take more is refused before it starts

    def __post_init__(self):
        if self.budget_gb <= 0:
            raise ConfigError(f"cache.budget_gb must be more than 0, not {self.budget_gb}")


def cache_key(
    teacher: TeacherSpec,
    options: Mapping[str, Any],
    responses: Sequence[ResponseSpec],
    *,
    manifest_fingerprint: str,
    tile_px: int,
    mpp: float | None,
    shrink: int = 1,
) -> dict[str, Any]:
    """All that a cached response depends on, plain values only.

    `shrink` is that of a teacher that sees tiles averaged over squares of so many pixels.

    The tile is always as it was scanned: where a method's pool puts tiles in a view or in colours of their own, every epoch's
    response is another one, and there is nothing to cache.
    """
    return {
        "version": VERSION,
        "teacher": teacher.name,
        "weights_sha256": teacher.weights_sha256,
        "options": _told(options),
        "responses": [{**asdict(spec), "dtype": np.dtype(stored_dtype(spec)).name} for spec in responses],
        "manifest": manifest_fingerprint,
        "tile_px": tile_px,
        "mpp": mpp,
        "view": "as scanned",
        **({} if shrink == 1 else {"shrink": shrink}),
    }


def _told(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as a key has them: float32, which every cache was filled in when there was no choice, goes without saying."""
    return {name: value for name, value in options.items() if (name, value) != (PRECISION, FLOAT32)}


def stored_dtype(spec: ResponseSpec) -> type[np.generic]:
    """uint8 where the range is known, else float16."""
    return np.uint8 if spec.kind == Kind.PROBABILITY else np.float16


def quantised(values: np.ndarray, spec: ResponseSpec) -> np.ndarray:
    """A response as it is stored.

    Args:
        values: float16, finite.

    Raises:
        TeacherError: a probability that is none.
    """
    if stored_dtype(spec) is np.float16:
        return np.ascontiguousarray(values, np.float16)
    low, high = float(values.min(initial=0)), float(values.max(initial=0))
    if low < -PROBABILITY_SLACK or high > 1 + PROBABILITY_SLACK:
        raise TeacherError(
            f"response {spec.name!r} is a probability by the teacher's spec, and holds values from {low:.4g} to {high:.4g}: "
            "it cannot be cached as such. Mend the teacher's kind of response, or leave out cache.uri"
        )
    return np.rint(values.astype(np.float32).clip(0, 1) * 255).astype(np.uint8)


def restored(stored: np.ndarray) -> np.ndarray:
    """What was stored as float16: what `quantised` was given, but for `PROBABILITY_ERROR` where it is uint8."""
    return (stored.astype(np.float32) / 255).astype(np.float16) if stored.dtype == np.uint8 else stored


def projected_bytes(responses: Sequence[ResponseSpec], num_tiles: int, tile_px: int | tuple[int, int]) -> int:
    """The most that the responses to `num_tiles` tiles take, before compression."""
    per_tile = sum(
        np.dtype(stored_dtype(spec)).itemsize * int(np.prod(spec.shape(tile_px))) + HEADER_BYTES for spec in responses
    )
    return num_tiles * per_tile


class ResponseCache:
    """Reads and writes cached responses. Small and picklable; any number of processes may use one place at once.

    Args:
        uri: Of the cache, which holds a folder for each key.
        key: What the responses depend on, see `cache_key`.
        responses: What is kept of each tile.
    """

    def __init__(self, uri: str, key: Mapping[str, Any], responses: Sequence[ResponseSpec]):
        self.uri, self.key, self.responses = uri, key, tuple(responses)
        self._listings = lru_cache(maxsize=MAX_LISTINGS)(self._list_shard)

    def __reduce__(self):
        return ResponseCache, (self.uri, self.key, self.responses)

    @property
    def folder(self) -> str:
        """URI of the folder for this key."""
        return files.join(self.uri, sha256(_canonical(self.key)).hexdigest()[:24])

    def open(self) -> None:
        """Make the folder, and say in it what it is for.

        Raises:
            StorageError: it cannot be written.
            ConfigError: it holds responses that depend on something else.
        """
        place = files.join(self.folder, KEY)
        if files.exists(place):
            found = files.insist(lambda: files.read_bytes(place))
            if found != _canonical(self.key):
                raise ConfigError(f"{place} says another key than its folder: choose another cache.uri, or delete the folder")
            return
        files.insist(lambda: files.write_bytes(place, _canonical(self.key)))

    def is_complete(self) -> bool:
        """Whether the teacher has been asked about every tile of the manifest."""
        return files.insist(lambda: files.exists(files.join(self.folder, COMPLETE)))

    def mark_complete(self) -> None:
        """Every tile of the manifest has been through the teacher; saying it twice is fine."""
        files.insist(lambda: files.write_bytes(files.join(self.folder, COMPLETE), b"{}\n"))

    def read(self, shard: int, chunk: int) -> dict[int, Answer]:
        """What is known of a chunk: row in the chunk → responses (float16) or reason. Empty where nothing is.

        Raises:
            StorageError: the store is out of reach.
        """
        known: dict[int, Answer] = {}
        for uri in self._listings(shard).get(chunk, ()):
            data = self._read_file(uri)
            if data is not None:
                for row, answer in _decode(data).items():
                    known.setdefault(row, answer)
        return known

    def write(self, shard: int, chunk: int, answers: Mapping[int, Answer]) -> dict[int, Answer]:
        """Keep the answers for some rows of a chunk. When it returns they are committed.

        Returns:
            The answers as `read` will give them: what is trained on is the same in every epoch.

        Raises:
            StorageError: they cannot be written.
            TeacherError: as `quantised`.
        """
        data = _encode(answers, self.responses)
        name = f"{chunk:07d}-{sha256(data).hexdigest()}.safetensors.zst"
        uri = files.join(self.folder, f"{shard:05d}", name)
        files.insist(lambda: files.write_bytes(uri, data))
        paths = self._listings(shard)
        paths[chunk] = sorted({*paths.get(chunk, ()), uri})
        return _decode(data)

    def _read_file(self, uri: str) -> bytes | None:
        """The content of a file; None where it went away, or is damaged (then it is deleted)."""
        try:
            data = files.insist(lambda: files.read_bytes(uri))
        except StorageError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return None
            raise
        if sha256(data).hexdigest() == FILE.fullmatch(files.base_name(uri))["digest"]:
            return data
        logger.warning("%s is damaged: it is deleted, and the teacher answers its tiles again", uri)
        files.insist(lambda: files.delete(uri))
        return None

    def _list_shard(self, shard: int) -> dict[int, list[str]]:
        """Chunk → its files, sorted, so that of two answers for a tile everybody takes the same."""
        paths: dict[int, list[str]] = {}
        for uri in files.insist(lambda: files.list_dir(files.join(self.folder, f"{shard:05d}"))):
            if match := FILE.fullmatch(files.base_name(uri)):
                paths.setdefault(int(match["chunk"]), []).append(uri)
        return paths


def check_budget(config: CacheConfig, num_bytes: int, *, num_tiles: int) -> None:
    """Refuse what may come to more than is allowed. Raises ConfigError."""
    if num_bytes > config.budget_gb * 1e9:
        raise ConfigError(
            f"the responses to {num_tiles:,} tiles may take {num_bytes / 1e9:.4g} GB in {config.uri}, more than "
            f"cache.budget_gb {config.budget_gb:g}: allow {num_bytes / 1e9 * 1.01:.4g}, or leave out cache.uri"
        )


def open_cache(
    config: CacheConfig,
    key: Mapping[str, Any],
    responses: Sequence[ResponseSpec],
    *,
    num_tiles: int,
    tile_px: int | tuple[int, int],
) -> tuple[ResponseCache, int]:
    """The cache for this key, and the most bytes that it can come to.

    Args:
        num_tiles: In the manifest.
        tile_px: Edge of the tiles, or (height, width) of the largest image.

    Raises:
        ConfigError: that is over the budget.
        StorageError: the place cannot be written.
    """
    num_bytes = projected_bytes(responses, num_tiles, tile_px)
    check_budget(config, num_bytes, num_tiles=num_tiles)
    cache = ResponseCache(config.uri, key, responses)
    cache.open()
    return cache, num_bytes


def _canonical(key: Mapping[str, Any]) -> bytes:
    return (json.dumps(key, sort_keys=True, indent=1) + "\n").encode()


def _encode(answers: Mapping[int, Answer], responses: Sequence[ResponseSpec]) -> bytes:
    tensors: dict[str, np.ndarray] = {}
    for row, answer in sorted(answers.items()):
        if isinstance(answer, str):
            tensors[str(row)] = np.frombuffer(answer.encode(), np.uint8)
        else:
            tensors |= {f"{row}/{spec.name}": quantised(answer[spec.name], spec) for spec in responses}
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(safetensors.numpy.save(tensors))
    return sink.getvalue().to_pybytes()


def _decode(data: bytes) -> dict[int, Answer]:
    with pa.CompressedInputStream(pa.BufferReader(data), "zstd") as stream:
        tensors = safetensors.numpy.load(stream.read())
    answers: dict[int, Answer] = {}
    for label, tensor in tensors.items():
        row, slash, name = label.partition("/")
        if slash:
            answers.setdefault(int(row), {})[name] = restored(tensor)
        else:
            answers[int(row)] = tensor.tobytes().decode()
    return answers
