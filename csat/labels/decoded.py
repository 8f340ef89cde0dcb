"""Decoded samples at the working resolution, as Arrow tables: the processes of a node share them without copies."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from csat.errors import SlideError
from csat.labels.augment import resize
from csat.labels.datasets.contract import Decoded, Sample
from csat.labels.datasets.registry import load_sample

# Of an image that is seen as a whole: its shorter edge is kept at up to this many times the tile's, so that a random part of
# it is not enlarged, or not by much.
SPARE_RESOLUTION = 1.5
ARRAYS = {"image": np.uint8, "mask": np.uint8, "instances": np.int32, "types": np.uint8}
SCHEMA = pa.schema(
    [
        ("index", pa.int64()),  # of the sample
        ("reason", pa.string()),  # "" where it was decoded, else "code: message"
        ("height_px", pa.int64()),
        ("width_px", pa.int64()),
        ("scale", pa.float64()),  # as `Decoded` has it
        *((name, pa.large_binary()) for name in ARRAYS),  # row-major bytes; null: this set has no such array
    ]
)


class SampleSource(Protocol):
    """Gives decoded samples by index."""

    def get(self, index: int) -> Decoded:
        """Raises SlideError for a sample that cannot be used."""


class SampleDecoder:
    """Decodes samples from their files, at the working resolution.

    Args:
        samples: Of the run, in the order of their indices.
        mpp: Resolution to bring them to, um/px; None: as they are.
        whole_px: Edge of the tile where images are seen as a whole: larger ones are shrunk to what that needs; else None.
    """

    def __init__(self, samples: Sequence[Sample], *, mpp: float | None, whole_px: int | None):
        self.samples, self.mpp, self.whole_px = samples, mpp, whole_px

    def get(self, index: int) -> Decoded:
        """The sample. Raises SlideError where it cannot be read, DatasetError where image and mask contradict each other."""
        sample = self.samples[index]
        decoded = load_sample(sample)
        height, width = decoded.image.shape[:2]
        scale = 1.0 if self.mpp is None else sample.mpp / self.mpp
        if self.whole_px is not None:
            scale = min(scale, SPARE_RESOLUTION * self.whole_px / min(height, width))
        resized = resize(decoded, max(1, round(height * scale)), max(1, round(width * scale)))
        return replace(resized, scale=scale)


def to_row(index: int, source: SampleSource) -> dict[str, Any]:
    """One sample as a row of `SCHEMA`; one that cannot be read becomes a row with the reason."""
    empty = dict.fromkeys(ARRAYS)
    try:
        decoded = source.get(index)
    except SlideError as error:
        return {"index": index, "reason": f"{error.reason}: {error}", "height_px": 0, "width_px": 0, "scale": 1.0, **empty}
    height, width = decoded.image.shape[:2]
    arrays = {
        name: None if (array := getattr(decoded, name)) is None else np.ascontiguousarray(array, dtype).tobytes()
        for name, dtype in ARRAYS.items()
    }
    return {"index": index, "reason": "", "height_px": height, "width_px": width, "scale": decoded.scale, **arrays}


class DecodedTables:
    """A `SampleSource` over tables of `SCHEMA`. Arrays are read-only views into them: nothing is copied."""

    def __init__(self, tables: Sequence[pa.Table]):
        self._rows: dict[int, tuple[pa.RecordBatch, int]] = {}
        for table in tables:
            for batch in table.to_batches():
                for row, index in enumerate(batch.column("index").to_pylist()):
                    self._rows[index] = batch, row

    def get(self, index: int) -> Decoded:
        batch, row = self._rows[index]
        if reason := batch.column("reason")[row].as_py():
            code, _, message = reason.partition(": ")
            raise SlideError(code, message)
        shape = batch.column("height_px")[row].as_py(), batch.column("width_px")[row].as_py()
        arrays = {name: _view(batch.column(name)[row], dtype, shape, name) for name, dtype in ARRAYS.items()}
        return Decoded(**arrays, scale=batch.column("scale")[row].as_py())

    def unreadable(self) -> dict[int, str]:
        """Index → reason of the samples that could not be decoded."""
        reasons = {index: batch.column("reason")[row].as_py() for index, (batch, row) in self._rows.items()}
        return {index: reason for index, reason in reasons.items() if reason}


def _view(value: pa.LargeBinaryScalar, dtype: type, shape: tuple[int, int], name: str) -> np.ndarray | None:
    if not value.is_valid:
        return None
    array = np.frombuffer(value.as_buffer(), dtype)
    array.flags.writeable = False  # others read the same memory
    return array.reshape(*shape, 3) if name == "image" else array.reshape(shape)
