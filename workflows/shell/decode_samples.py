"""Labelled samples, each decoded once through Ray: kept in the object store where they fit, else looked at and let go."""

import logging
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from csat.errors import DatasetError
from csat.labels.datasets.contract import Sample
from csat.labels.decoded import SCHEMA, DecodedTables, SampleDecoder, SampleSource, to_row
from csat.labels.sets import LabelledConfig, LabelledData
from csat.words import printable, some
from workflows.shell.config import RayConfig
from workflows.shell.data import configure_data

logger = logging.getLogger(__name__)

INDEX = "index"
CONTRADICTION = "contradiction"  # in the place of a quarantine code: image and mask do not fit
PROBES = 12  # samples that are decoded to estimate what all of them take
SAMPLES_AT_ONCE = 16  # of one decoding task
NEW_LINE = "\n  "
STORE_SHARE = 0.6  # of the cluster's object store that decoded samples may take


@dataclass(frozen=True)
class Prepared:
    """Labelled data ready to train on; small and picklable. Shared by every trial of a sweep that sees the same data.

    Attributes:
        data: The samples and their parts.
        tables: References to the decoded samples; None: they are decoded when they are read.
        unreadable: Index → "code: message" of samples that cannot be decoded.
    """

    data: LabelledData
    config: LabelledConfig
    tables: list[ray.ObjectRef] | None = field(default=None, repr=False)
    unreadable: dict[int, str] = field(default_factory=dict)

    def source(self) -> SampleSource:
        """Decoded samples, for this process."""
        return _decoder(self.config, self.data.samples) if self.tables is None else DecodedTables(ray.get(self.tables))


def decode(config: LabelledConfig, data: LabelledData, *, cpus_per_task: float = 0.5) -> Prepared:
    """Decode every sample once, through Ray Data, and keep the pixels where memory allows.

    Raises:
        DatasetError: too many samples cannot be read, or a mask does not fit its image.
    """
    samples = data.samples
    total_bytes = _estimate_bytes(config, samples)
    store_bytes = STORE_SHARE * ray.cluster_resources().get("object_store_memory", 0.0)
    keeps = total_bytes <= min(config.memory_gb * 1e9, store_bytes)
    logger.info(
        "%d samples take about %.2f GB decoded: %s",
        len(samples),
        total_bytes / 1e9,
        "kept in memory" if keeps else "checked now, decoded again in each epoch",
    )
    configure_data(RayConfig())
    rows = ray.data.from_items([{INDEX: index} for index in range(len(samples))], override_num_blocks=-(-len(samples) // 64))
    decoded = rows.map_batches(
        _decode_rows,
        fn_kwargs={"decoder": _decoder(config, samples), "keeps": keeps},
        batch_size=SAMPLES_AT_ONCE,
        batch_format="numpy",
        num_cpus=cpus_per_task,
    )
    decoded = decoded.materialize()
    faults = [row for row in decoded.select_columns([INDEX, "reason"]).take_all() if row["reason"]]
    _refuse_contradictions([row["reason"] for row in faults])
    unreadable = {row[INDEX]: row["reason"] for row in faults}
    _report_unreadable(config, samples, unreadable)
    return Prepared(data, config, decoded.to_arrow_refs() if keeps else None, unreadable)


def _decoder(config: LabelledConfig, samples: list[Sample]) -> SampleDecoder:
    return SampleDecoder(samples, mpp=config.mpp, whole_px=config.tile_px if config.fit == "resize" else None)


def _decode_rows(columns: dict[str, np.ndarray], decoder: SampleDecoder, keeps: bool) -> pa.Table:
    rows = []
    for index in columns[INDEX].tolist():
        try:
            row = to_row(index, decoder)
        except DatasetError as error:
            row = {"index": index, "reason": printable(f"{CONTRADICTION}: {error}")}
        rows.append(row if keeps else {"index": index, "reason": row["reason"]})
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def _refuse_contradictions(reasons: list[str]) -> None:
    wrong = [reason.removeprefix(f"{CONTRADICTION}: ") for reason in reasons if reason.startswith(CONTRADICTION)]
    if wrong:
        raise DatasetError(f"image and labels contradict each other:\n  {some(wrong, between=NEW_LINE)}")


def _report_unreadable(config: LabelledConfig, samples: list[Sample], unreadable: dict[int, str]) -> None:
    if not unreadable:
        return
    lines = (f"{samples[index].key}: {reason}" for index, reason in unreadable.items())
    text = f"{len(unreadable)} of {len(samples)} samples cannot be read:\n  {some(lines, between=NEW_LINE)}"
    if len(unreadable) > config.max_unreadable * len(samples):
        raise DatasetError(
            f"{text}\nThat is more than data.max_unreadable {config.max_unreadable:g}: download them again, or raise it"
        )
    logger.warning("%s\nThey are quarantined: neither trained nor judged", text)


def _estimate_bytes(config: LabelledConfig, samples: list[Sample]) -> float:
    """Of all samples, decoded, from a few of them."""
    decoder = _decoder(config, samples)
    sizes: list[Any] = []
    for index in np.unique(np.linspace(0, len(samples) - 1, PROBES).astype(int)).tolist():
        try:
            sizes.append(decoder.get(index).num_bytes)
        except ValueError:  # told with all the others, when all of them are decoded
            continue
    return float(np.mean(sizes)) * len(samples) if sizes else 0.0
