"""What a model said of labelled samples, reduced to what every metric can be computed from: small enough to keep."""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from csat.errors import DatasetError
from csat.storage import files
from csat.tasks import Task

# Name → what a sample's row of it holds. K classes, T types of nuclei.
ARRAYS = {
    Task.CLASSIFICATION: {
        "probs": "float32 [K]",
        "label": "int64 []",
    },
    Task.SEGMENTATION: {
        "confusion": "int64 [K, K], pixels by true class (row) and predicted class (column)",
    },
    Task.NUCLEI: {
        "pixels": "int64 [3]: nucleus pixels that are true positives, false positives, false negatives",
        "calibration": "float64 [15, 3]: pixels by the confidence in nucleus or not; how many, sum of confidences, right ones",
        "aji": "int64 [2]: intersection and union of the aggregated Jaccard index",
        "aji_plus": "int64 [2]: the same of AJI+",
        "detection": "int64 [3]: nuclei found by centroid: true positives, false positives, false negatives",
        "hovernet": "int64 [3]: the same by HoVer-Net's pairing",
        "match": "float64 [4]: nuclei matched by IoU > 0.5: true positives, false positives, false negatives, sum of IoU",
        "match_by_type": "float64 [T, 4]: the same among the nuclei of each type; absent where there are no types",
        "hovernet_by_type": "int64 [T, 5]: of HoVer-Net's pairs true positives, false positives, false negatives by type, and "
        "the nuclei of each type without a partner: false positives, false negatives; absent where there are no types",
    },
}
LATER = ("calibration", "aji_plus", "hovernet", "hovernet_by_type")  # predictions of earlier versions lack these
PREFIX = b"csat"  # key of the table's metadata


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """A model's predictions of one split of a data set, one row per sample.

    Attributes:
        arrays: Name → `[N, …]`, see `ARRAYS`. Of nuclei only `pixels` where instances were not asked for; predictions of
            earlier versions lack `LATER`.
        loss: float64 `[N]`: mean negative log-likelihood of the truth, by image or by counted pixel; how wrong a sample is.
        views: Of each image that predictions are averaged over.
        unreadable: `(key, reason)` of samples that could not be judged.
    """

    task: Task
    classes: tuple[str, ...]  # as DatasetInfo has them
    keys: tuple[str, ...] = field(repr=False)
    groups: tuple[str, ...] = field(repr=False)
    loss: np.ndarray = field(repr=False)
    arrays: dict[str, np.ndarray] = field(repr=False)
    views: int = 1
    unreadable: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.keys)

    def select(self, rows: Sequence[int]) -> "Predictions":
        """Some of the rows, in that order."""
        rows = np.asarray(rows, np.int64)
        return Predictions(
            task=self.task,
            classes=self.classes,
            keys=tuple(self.keys[row] for row in rows),
            groups=tuple(self.groups[row] for row in rows),
            loss=self.loss[rows],
            arrays={name: array[rows] for name, array in self.arrays.items()},
            views=self.views,
            unreadable=self.unreadable,
        )

    def without(self, names: Sequence[str]) -> "Predictions":
        """The same without some of the arrays."""
        return replace(self, arrays={name: array for name, array in self.arrays.items() if name not in names})

    def to_table(self) -> pa.Table:
        """For parquet: sample, group, loss, and a column per array; task, classes and shapes in the schema's metadata."""
        columns = {"sample": pa.array(self.keys, pa.string()), "group": pa.array(self.groups, pa.string())}
        columns["loss"] = pa.array(self.loss, pa.float64())
        for name, array in self.arrays.items():
            flat = pa.array(array.ravel())
            size = int(np.prod(array.shape[1:]))
            columns[name] = flat if array.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, size)
        about = {
            "task": self.task,
            "classes": self.classes,
            "views": self.views,
            "unreadable": self.unreadable,
            "shapes": {name: array.shape[1:] for name, array in self.arrays.items()},
        }
        return pa.table(columns).replace_schema_metadata({PREFIX: json.dumps(about).encode()})

    @classmethod
    def from_table(cls, table: pa.Table) -> "Predictions":
        """What `to_table` wrote. Raises DatasetError for any other table."""
        about = (table.schema.metadata or {}).get(PREFIX)
        if about is None:
            raise DatasetError(
                f"these are no predictions of finetune.py: the table has the columns {', '.join(table.column_names)} and no "
                f"metadata {PREFIX.decode()!r}"
            )
        about = json.loads(about)
        arrays = {}
        for name, shape in about["shapes"].items():
            column = table[name].combine_chunks()
            flat = column.flatten() if shape else column
            arrays[name] = flat.to_numpy(zero_copy_only=False).reshape(len(table), *shape)
        return cls(
            task=Task(about["task"]),
            classes=tuple(about["classes"]),
            keys=tuple(table["sample"].to_pylist()),
            groups=tuple(table["group"].to_pylist()),
            loss=table["loss"].to_numpy(),
            arrays=arrays,
            views=about["views"],
            unreadable=tuple(tuple(pair) for pair in about["unreadable"]),
        )


def read_predictions(uri: str) -> Predictions:
    """Of a parquet file, local or remote.

    Raises:
        StorageError: there is no such file.
        DatasetError: it holds something else.
    """
    try:
        table = pq.read_table(io.BytesIO(files.read_bytes(uri)))
    except pa.ArrowInvalid as error:
        raise DatasetError(f"{uri} cannot be read as parquet: {error}") from error
    return Predictions.from_table(table)


def write_predictions(uri: str, predictions: Predictions) -> None:
    """Write a parquet file, whole or not at all."""
    buffer = io.BytesIO()
    pq.write_table(predictions.to_table(), buffer)
    files.write_bytes(uri, buffer.getvalue())


def concatenate(shares: Sequence[Predictions]) -> Predictions:
    """The predictions of several processes, sorted by key: the same table however the samples were divided.

    A process that had no sample to judge may give an empty share.
    """
    filled = [share for share in shares if len(share)] or list(shares[:1])
    first = filled[0]
    together = Predictions(
        task=first.task,
        classes=first.classes,
        keys=tuple(key for share in filled for key in share.keys),
        groups=tuple(group for share in filled for group in share.groups),
        loss=np.concatenate([share.loss for share in filled]),
        arrays={name: np.concatenate([share.arrays[name] for share in filled]) for name in first.arrays},
        views=first.views,
        unreadable=tuple(sorted(pair for share in shares for pair in share.unreadable)),
    )
    return together.select(sorted(range(len(together)), key=together.keys.__getitem__))
