"""report.html of a run: one file, readable offline, for a person who has to believe it or not."""

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from csat.evaluation.reports.page import figure_uri, image_uri, render
from csat.runs.folder import RunFolder
from csat.runs.students import manifest_of

PICTURE_PX = 150  # edge of one picture
FRAME = (0, 255, 255)  # colour of the frame around what the teacher answers for


def write_pretraining_report(
    folder: RunFolder,
    *,
    metrics: list[dict[str, Any]],
    accounts: dict[str, Any],
    throughput: dict[str, Any],
    evaluation: dict[str, dict[str, float]],
    pictures: list[dict[str, np.ndarray]],
    students: Mapping[str, Mapping[str, Any]] | None = None,
    student: str | None = None,
) -> None:
    """Write `report.html` into the run folder.

    Args:
        folder: Of the run, or of one of its several students.
        metrics: Lines of metrics.jsonl.
        accounts: As in accounting.json.
        throughput: As in throughput.json.
        evaluation: figure → value, low, high, tiles, groups; {} where nothing was held out.
        pictures: Held-out tiles: `slide`, `tile` uint8 [H, W, 3], `teacher.<name>` and `student.<name>` [C, n, n], `known`
            bool [H, W] where the nuclei are known, and `covered_px` [N, 2] (from, to) where responses cover the inner part.
        students: Of a run with several, see `compare_students`: what they share is reported, and where each has its own.
        student: Which of several it is about.
    """
    panels = _panels(pictures)
    page = render(
        "pretraining.html",
        config=folder.path("config.yaml"),
        run_folder=folder.uri,
        teacher=folder.read_json("teacher.json"),
        index=RunFolder(manifest_of(folder.uri)).read_json("index.json"),
        students=students or {},
        figures=list(dict.fromkeys(name for each in (students or {}).values() for name in each["fidelity"])),
        student=student,
        accounts=accounts,
        throughput=throughput,
        evaluation=evaluation,
        curves=_curves(metrics),
        panels=[title for _, title, _ in panels],
        pictures=[picture_row(picture, panels) for picture in pictures],
    )
    folder.write_text("report.html", page)


def _curves(metrics: list[dict[str, Any]]) -> str | None:
    """Loss terms, learning rate and rates over the steps, as a data URI."""
    if not metrics:
        return None
    steps = [line["step"] for line in metrics]
    of_all = ["loss"] if "loss" in metrics[0] else []  # several students have one each
    names = [*of_all, *sorted({name for line in metrics for name in line if name.startswith("loss/")})]
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    loss, rate, waiting = figure.subplots(1, 3)
    for name in names:
        loss.plot(steps, [line.get(name, np.nan) for line in metrics], label=name, lw=2.2 if name == "loss" else 1.2)
    loss.set(title="loss and its unweighted terms" if of_all else "loss of each student", xlabel="step", yscale="log")
    loss.legend(fontsize=7)
    rate.plot(steps, [line["tiles_per_s"] for line in metrics], color="tab:green")
    rate.set(title="tiles/s", xlabel="step", ylim=(0, None))
    waiting.plot(steps, [line["wait_share"] for line in metrics], color="tab:red", label="trainer waiting (share)")
    top = max(line["lr"] for line in metrics) or 1.0
    waiting.plot(steps, [line["lr"] / top for line in metrics], color="tab:gray", ls="--", label=f"learning rate / {top:.1e}")
    waiting.set(title="waiting and schedule", xlabel="step", ylim=(0, 1.05))
    waiting.legend(fontsize=7)
    return figure_uri(figure)


def _panels(pictures: list[dict[str, np.ndarray]]) -> list[tuple[str, str, int | None]]:
    """What is shown of each tile: key, title, and channel; None: the most likely one."""
    if not pictures:
        return []
    panels: list[tuple[str, str, int | None]] = [("tile", "tile", 0)]
    if any("known" in picture for picture in pictures):
        panels.append(("known", "known nuclei", 0))
    # Of several teachers one may have nothing to show of a tile.
    shown = {
        key.removeprefix("teacher."): maps for each in pictures for key, maps in each.items() if key.startswith("teacher.")
    }
    for name, maps in shown.items():
        channels = maps.shape[0]
        # A field shows each of its two components; a distribution shows its most likely channel.
        for channel in range(channels) if channels <= 2 else [None]:
            is_hv = name.rpartition(".")[2] == "hv"
            part = f" {'hv'[channel] if is_hv else channel}" if channels == 2 else ""
            panels += [(f"{who}.{name}", f"{who}: {name}{part}", channel) for who in ("teacher", "student")]
    return panels


def picture_row(picture: dict[str, np.ndarray], panels: list[tuple[str, str, int | None]]) -> list[str | None]:
    """The panels of one tile as data URIs; None where it has none."""
    return [image_uri(_shown(key, picture, channel)) if key in picture else None for key, _, channel in panels]


def _shown(key: str, picture: dict[str, np.ndarray], channel: int | None) -> np.ndarray:
    """uint8 `[H, W, 3]`, with the frame of what the teacher answers for."""
    values = picture[key]
    if key == "tile":
        shown = values
    elif key == "known":
        shown = np.repeat(255 * values.astype(np.uint8)[..., None], 3, -1)
    elif channel is None:
        shown = _colored(values.argmax(0) % 10, "tab10")
    elif values.shape[0] == 1:
        shown = _colored(values[0].astype(np.float32).clip(0, 1), "magma")
    else:
        shown = _colored((values[channel].astype(np.float32).clip(-1, 1) + 1) / 2, "RdBu")
    shown = cv2.resize(shown, (PICTURE_PX, PICTURE_PX), interpolation=cv2.INTER_AREA if key == "tile" else cv2.INTER_NEAREST)
    if key in ("tile", "known") and "covered_px" in picture:
        for covered in np.atleast_2d(picture["covered_px"]):
            first, last = (round(edge * PICTURE_PX / len(values)) for edge in covered)
            cv2.rectangle(shown, (first, first), (last - 1, last - 1), FRAME, 1)
    return shown


def _colored(values: np.ndarray, name: str) -> np.ndarray:
    return (255 * colormaps[name](values)[..., :3]).round().astype(np.uint8)
