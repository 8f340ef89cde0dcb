"""report.html of a run: one file, readable offline, for a person who has to believe it or not."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from csat.evaluation.reports.page import figure_uri, render
from csat.runs.folder import RunFolder

PICTURE_INCHES = 2.0  # edge of one picture in the grid


def write_pretraining_report(
    folder: RunFolder,
    *,
    metrics: list[dict[str, Any]],
    accounts: dict[str, Any],
    throughput: dict[str, Any],
    evaluation: dict[str, dict[str, float]],
    pictures: list[dict[str, np.ndarray]],
) -> None:
    """Write `report.html` into the run folder.

    Args:
        metrics: Lines of metrics.jsonl.
        accounts: As in accounting.json.
        throughput: As in throughput.json.
        evaluation: figure → value, low, high, tiles, groups; {} where nothing was held out.
        pictures: Held-out tiles: `slide`, `tile` uint8 [H, W, 3], `teacher.<name>` and `student.<name>` [C, n, n], `known`
            bool [H, W] where the nuclei are known, and `covered_px` (from, to) where the responses cover the inner part only.
    """
    page = render(
        "pretraining.html",
        config=folder.path("config.yaml"),
        run_folder=folder.uri,
        teacher=folder.read_json("teacher.json"),
        index=folder.read_json("manifest/index.json"),
        accounts=accounts,
        throughput=throughput,
        evaluation=evaluation,
        curves=_curves(metrics),
        pictures=_pictures(pictures),
        num_pictures=len(pictures),
    )
    folder.write_text("report.html", page)


def _curves(metrics: list[dict[str, Any]]) -> str | None:
    """Loss terms, learning rate and rates over the steps, as a data URI."""
    if not metrics:
        return None
    steps = [line["step"] for line in metrics]
    names = ["loss", *sorted({name for line in metrics for name in line if name.startswith("loss/")})]
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    loss, rate, waiting = figure.subplots(1, 3)
    for name in names:
        loss.plot(steps, [line.get(name, np.nan) for line in metrics], label=name, lw=2.2 if name == "loss" else 1.2)
    loss.set(title="loss and its unweighted terms", xlabel="step", yscale="log")
    loss.legend(fontsize=7)
    rate.plot(steps, [line["tiles_per_s"] for line in metrics], color="tab:green")
    rate.set(title="tiles/s", xlabel="step", ylim=(0, None))
    waiting.plot(steps, [line["wait_share"] for line in metrics], color="tab:red", label="trainer waiting (share)")
    top = max(line["lr"] for line in metrics) or 1.0
    waiting.plot(steps, [line["lr"] / top for line in metrics], color="tab:gray", ls="--", label=f"learning rate / {top:.1e}")
    waiting.set(title="waiting and schedule", xlabel="step", ylim=(0, 1.05))
    waiting.legend(fontsize=7)
    return figure_uri(figure)


def _pictures(pictures: list[dict[str, np.ndarray]]) -> str | None:
    """One row per tile: the tile, then for every response the teacher's and the student's side by side."""
    if not pictures:
        return None
    names = [name.removeprefix("teacher.") for name in pictures[0] if name.startswith("teacher.")]
    panels = [("tile", "tile", 0)]
    for name in names:
        channels = pictures[0][f"teacher.{name}"].shape[0]
        # A field shows each of its two components; a distribution shows its most likely channel.
        for channel in range(channels) if channels <= 2 else [None]:
            label = (
                name if channels == 1 else f"{name} {'hv'[channel] if name == 'hv' else channel}" if channels == 2 else name
            )
            panels += [(f"teacher.{name}", f"teacher: {label}", channel), (f"student.{name}", f"student: {label}", channel)]
    if any("known" in picture for picture in pictures):
        panels.insert(1, ("known", "known nuclei", 0))
    size = (PICTURE_INCHES * len(panels), PICTURE_INCHES * len(pictures) + 0.3)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(pictures), len(panels), squeeze=False)
    for row, picture in zip(axes, pictures, strict=True):
        for axis, (key, title, channel) in zip(row, panels, strict=True):
            axis.set_axis_off()
            if axis in axes[0]:
                axis.set_title(title, fontsize=9)
            if key in picture:
                _show(axis, key, picture[key], channel)
                if key in ("tile", "known") and "covered_px" in picture:
                    start, stop = picture["covered_px"]
                    axis.add_patch(Rectangle((start, start), stop - start, stop - start, ec="cyan", ls="--", fill=False))
    return figure_uri(figure)


def _show(axis: Any, key: str, values: np.ndarray, channel: int | None) -> None:
    if key == "tile":
        axis.imshow(values)
    elif key == "known":
        axis.imshow(values, cmap="gray", vmin=0, vmax=1)
    elif channel is None:
        axis.imshow(values.argmax(0), cmap="tab10", vmin=0, vmax=9, interpolation="nearest")
    elif values.shape[0] == 1:
        axis.imshow(values[0].astype(np.float32), cmap="magma", vmin=0, vmax=1)
    else:
        axis.imshow(values[channel].astype(np.float32), cmap="RdBu", vmin=-1, vmax=1)
