"""What a fine-tuning says about its data and its results: in the terminal, data.json, samples.csv and pretrain.csv."""

import csv
import io
import logging
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from csat.labels.sets import LabelledData
from csat.labels.splits import SPLITS
from csat.runs.folder import RunFolder
from workflows.shell import output
from workflows.shell.decode_samples import Prepared

logger = logging.getLogger("finetune")


def tell_data(data: LabelledData) -> None:
    """The splits, with their groups and classes."""
    for split in SPLITS:
        samples = data.splits[split]
        groups = len({sample.group for sample in samples})
        by_class = ""
        if samples and samples[0].label is not None:
            counts = [sum(sample.label == index for sample in samples) for index in range(len(data.info.classes))]
            by_class = ": " + ", ".join(f"{name} {count:,}" for name, count in zip(data.info.classes, counts, strict=True))
        logger.info("%s: %d images of %d groups%s", split, len(samples), groups, by_class)
    if data.unlabelled:
        logger.info("not used (label_fraction): %d images", len(data.unlabelled))
    if data.info.note:
        logger.info("note: %s", data.info.note)


def write_data(folder: RunFolder, prepared: Prepared) -> None:
    """data.json: what was learned from, for reports, model cards and whoever asks later."""
    data = prepared.data
    splits = {
        split: {"samples": len(samples), "groups": sorted({sample.group for sample in samples})}
        for split, samples in data.splits.items()
    }
    unreadable = [{"sample": data.samples[index].key, "reason": reason} for index, reason in prepared.unreadable.items()]
    folder.write_json(
        "data.json",
        {**asdict(data.info), "sets": [asdict(info) for info in data.sets], "parts": splits, "unreadable": unreadable},
    )


def write_samples(folder: RunFolder, prepared: Prepared) -> None:
    """samples.csv, a line per image with its split; pretrain.csv, the training images as `pretrain.py --slides` takes them."""
    data = prepared.data
    reasons = {data.samples[index].key: reason for index, reason in prepared.unreadable.items()}
    splits = {**data.splits, "not used": data.unlabelled}
    lines = [
        [sample.image, split, sample.key, sample.group, "" if sample.label is None else data.info.classes[sample.label]]
        + ["" if sample.mpp is None else sample.mpp, reasons.get(sample.key, "")]
        for split, samples in splits.items()
        for sample in samples
    ]
    _write_csv(folder, "samples.csv", ["image", "part", "sample", "group", "label", "mpp", "reason"], lines)
    # An image of a container (h5, npy) has no file of its own that a slide reader could open; windows of one image have one.
    unlabelled = dict.fromkeys(
        (sample.image, sample.group, "" if sample.mpp is None else sample.mpp)
        for sample in (*data.splits["train"], *data.unlabelled)
        if sample.index is None
    )
    _write_csv(folder, "pretrain.csv", ["slide", "patient", "mpp"], list(unlabelled))


def tell_result(folder: RunFolder, *, first: str | None = None) -> None:
    """How good the model is on the test part, and where a user finds it.

    Args:
        first: Said before that.
    """
    places = folder.path("exported"), folder.path("report.html")
    figures = (folder.read_json("evaluation.json") or {}).get("test", {})
    lines = [
        f"test: {name} {figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"
        for name, figure in figures.items()
        if isinstance(figure, dict) and "low" in figure and "/" not in name
    ]
    lines = [*([first] if first else []), *lines, f"model:  {places[0]}", f"report: {places[1]}"]
    output.result("\n".join(lines), run_folder=folder.uri, model=places[0], report=places[1], figures=figures)


def _write_csv(folder: RunFolder, name: str, header: list[str], lines: Sequence[Sequence[Any]]) -> None:
    table = io.StringIO()
    csv.writer(table).writerows([header, *lines])
    folder.write_text(name, table.getvalue())
