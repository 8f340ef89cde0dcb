"""The figures of the reports on fine-tuned models, each as a data URI for a page."""

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from skimage.segmentation import find_boundaries

from csat.evaluation.metrics.classification import BINS, LOWER_IS_BETTER
from csat.evaluation.reports.page import figure_uri, image_uri, label
from csat.evaluation.scores import NO_METRIC
from csat.tasks import IGNORE

ALONE_PX, BESIDE_PX = 270, 360  # longest edge of a picture on a page: of the image alone, and of each of several side by side
TINT = 0.35  # how much of a class's colour lies over the image
OUTLINE = (255, 235, 0)
GAP_PX = 6
LETTER_INCHES = 0.06  # width of a letter of a class's name
MOST_NUMBERS = 15  # classes from which a confusion matrix has colours only
FROM_0 = 1.5  # times that it costs of the cheapest, from which the axis begins at 0
MARKERS = "oDs^v"  # each for as many groups as there are colours
LOG_FROM = 10.0  # times that the dearest model costs of the cheapest, from which the axis is logarithmic
# Of a cost: its key, unit, title of its axis, and whether more of it is better.
Costs = tuple[tuple[str, float, str, bool], ...]
OF_IMAGES: Costs = (("macs", 1e9, "GMAC (less is better)", False), ("images_per_s", 1.0, "images/s (more is better)", True))
FEW_COLORS, MANY_COLORS = "tab10", "tab20"  # palettes


def learning_curves(
    metrics: Sequence[Mapping[str, Any]], validation: Sequence[Mapping[str, Any]], *, metric: str, best_step: int | None
) -> str | None:
    """Loss, validation metrics and learning rate over the steps; None where nothing was logged.

    Args:
        metrics: Lines of metrics.jsonl.
        validation: Lines of validation.jsonl.
        metric: That chose the weights: drawn thick.
        best_step: Of the chosen weights.
    """
    if not metrics and not validation:
        return None
    figure = Figure(figsize=(12, 3.4), layout="constrained")
    loss, measured, rate = figure.subplots(1, 3)
    _plot(loss, metrics, "loss", name="training", color="tab:blue")
    _plot(loss, validation, "loss", name="validation", color="tab:orange", marker="o")
    loss.set(title="loss", xlabel="step", yscale="log")
    names = dict.fromkeys(name for line in validation for name in line)
    for name in names:
        if name not in NO_METRIC and name not in LOWER_IS_BETTER and ("/" not in name or name == metric):
            _plot(measured, validation, name, name=label(name), lw=2.4 if name == metric else 1.0, marker="o")
    if best_step is not None and validation:
        measured.axvline(best_step, color="0.5", ls="--", lw=1)
    measured.set(title="validation (dashed: the weights that were kept)", xlabel="step")
    for axes in (loss, measured):
        if axes.lines:
            axes.legend(fontsize=7)
    _plot(rate, metrics, "lr", name="learning rate", color="tab:gray")
    rate.set(title="learning rate", xlabel="step", ylim=(0, None))
    return figure_uri(figure)


def confusion_matrix(confusion: np.ndarray, classes: Sequence[str], *, as_shares: bool) -> str:
    """Labelled class by row, said class by column, coloured by the share of the row.

    Args:
        confusion: `[K, K]` counts.
        as_shares: Write the shares of the row (pixels) instead of the counts (samples).
    """
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    size, names = len(classes), [label(name) for name in classes]
    edge, beside = min(9.0, 2.2 + 0.62 * size), LETTER_INCHES * max(map(len, names))
    figure = Figure(figsize=(edge + 1.2 + beside, edge + 0.6 * beside), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, fraction=0.046, label="share of the labelled class")
    axes.set_xticks(range(size), names, rotation=40, ha="right", fontsize=8)
    axes.set_yticks(range(size), names, fontsize=8)
    axes.set(xlabel="said", ylabel="labelled")
    if size <= MOST_NUMBERS:
        for row in range(size):
            for column in range(size):
                text = f"{shares[row, column]:.2f}" if as_shares else f"{confusion[row, column]:,}"
                color = "white" if shares[row, column] > 0.55 else "black"
                axes.text(column, row, text, ha="center", va="center", fontsize=8, color=color)
    return figure_uri(figure)


def reliability(bins: np.ndarray) -> str:
    """How often the most likely class is right, over how likely it was called; below, how many samples that are.

    Args:
        bins: `[BINS, 3]`, see `ClassificationTally.bins`.
    """
    count, confidence, right = bins.T
    filled = count > 0
    centres = (np.arange(BINS) + 0.5) / BINS
    figure = Figure(figsize=(4.6, 4.6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    above.plot([0, 1], [0, 1], color="0.6", ls="--", lw=1)
    above.bar(centres[filled], right[filled] / count[filled], width=0.9 / BINS, color="tab:blue", alpha=0.6)
    above.plot(confidence[filled] / count[filled], right[filled] / count[filled], "o", color="tab:blue", ms=4)
    above.set(ylabel="share that is right", ylim=(0, 1.02), xlim=(0, 1))
    below.bar(centres, count, width=0.9 / BINS, color="0.6")
    below.set(xlabel="confidence (probability of the most likely class)", ylabel="samples")
    return figure_uri(figure)


def forest(groups: Mapping[str, Mapping[str, Any]], *, metric: str, single: Mapping[str, Sequence[float | None]]) -> str:
    """One line per group: its value with the 95% interval, and every run as a point of its own.

    Args:
        groups: Name → figure with `value`, `low`, `high`.
        single: Name → the value of each run.
    """
    figure = Figure(figsize=(7.5, 0.9 + 0.42 * len(groups)), layout="constrained")
    axes = figure.subplots()
    for place, (name, found) in enumerate(groups.items()):
        runs = [value for value in single[name] if value is not None]
        axes.plot(runs, [place] * len(runs), "o", color="0.65", ms=5, zorder=1)
        if found["value"] is not None:
            axes.plot([found["low"], found["high"]], [place, place], color=_color(place), lw=2, zorder=2)
            axes.plot(found["value"], place, _marker(place), color=_color(place), ms=7, zorder=3)
    axes.set_yticks(range(len(groups)), [label(name) for name in groups])
    axes.set(xlabel=label(metric), ylim=(len(groups) - 0.4, -0.6))
    axes.grid(axis="x", color="0.9")
    return figure_uri(figure)


def pareto(
    groups: Mapping[str, Mapping[str, Any]],
    costs: Mapping[str, Mapping[str, Any]],
    *,
    metric: str,
    panels: Costs = OF_IMAGES,
) -> str | None:
    """The metric over what a model costs; the line joins those that no other one beats in both. None where no cost is known.

    Names stand in a legend: beside their points, those of models that are nearly as good and as dear would cover each other.

    Args:
        groups: Name → figure with `value`, `low`, `high`.
        costs: Name → the keys of `panels`; any may be None or absent.
        panels: What is drawn over.
    """
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    is_empty = True
    for axes, (key, unit, title, more_is_better) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        points = [
            (costs[name][key] / unit, found, place)
            for place, (name, found) in enumerate(groups.items())
            if found["value"] is not None and costs.get(name, {}).get(key)
        ]
        is_empty = is_empty and not points
        for cost, found, place in points:
            limits = [[found["value"] - found["low"]], [found["high"] - found["value"]]]
            axes.errorbar(cost, found["value"], yerr=limits, fmt=_marker(place), color=_color(place), ms=7, lw=1, capsize=3)
        best = frontier([(cost, found["value"]) for cost, found, _ in points], more_is_better=more_is_better)
        axes.plot(*zip(*best, strict=True), color="0.6", ls="--", lw=1, zorder=0) if best else None
        axes.set(xlabel=title, ylabel=label(metric))
        axes.grid(color="0.93")
        axes.margins(x=0.15)
        costs_shown = [cost for cost, _, _ in points]
        if costs_shown and max(costs_shown) > LOG_FROM * min(costs_shown):
            axes.set_xscale("log")
        elif costs_shown and max(costs_shown) > FROM_0 * min(costs_shown):
            axes.set_xlim(left=0)
    if is_empty:
        return None
    handles = [
        Line2D([], [], marker=_marker(place), color=_color(place), ls="", ms=7, label=label(name))
        for place, name in enumerate(groups)
    ]
    figure.legend(handles=handles, loc="outside right center", fontsize=8, frameon=False)
    return figure_uri(figure)


def frontier(points: Sequence[tuple[float, float]], *, more_is_better: bool) -> list[tuple[float, float]]:
    """Those of `(cost, value)` that no other point beats: dearer ones are there only where their value is higher."""
    best: list[tuple[float, float]] = []
    for cost, value in sorted(points, key=lambda point: (-point[0] if more_is_better else point[0], -point[1])):
        if not best or value > best[-1][1]:
            best.append((cost, value))
    return best


def picture(image: np.ndarray, maps: Sequence[np.ndarray], *, num_classes: int | None) -> str:
    """One sample: the image, and beside it what was labelled and what each model said, where there are maps.

    Args:
        image: uint8 `[H, W, 3]`.
        maps: Each int `[H, W]`, class indices or ids of nuclei.
        num_classes: Of class indices: all classes but the first are tinted, and ignored pixels are white. None: the maps are
            ids, and nuclei are outlined.
    """
    height, width = image.shape[:2]
    scale = min(1.0, (BESIDE_PX if maps else ALONE_PX) / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = np.ascontiguousarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA))
    panels = [small]
    for each in maps:
        scaled = cv2.resize(each.astype(np.int32), size, interpolation=cv2.INTER_NEAREST)
        panels.append(_outlined(small, scaled) if num_classes is None else _tinted(small, scaled, num_classes))
    gap = np.full((size[1], GAP_PX, 3), 255, np.uint8)
    return image_uri(np.concatenate([part for panel in panels for part in (gap, panel)][1:], axis=1))


def class_colors(num_classes: int) -> np.ndarray:
    """uint8 `[K, 3]`. The first class, shown without one, takes the blue that tissue hides."""
    palette = colormaps[FEW_COLORS if num_classes <= colormaps[FEW_COLORS].N else MANY_COLORS]
    return (255 * np.array([palette(index % palette.N)[:3] for index in range(num_classes)])).astype(np.uint8)


def _outlined(image: np.ndarray, instances: np.ndarray) -> np.ndarray:
    shown = image.copy()
    shown[find_boundaries(instances, mode="inner")] = OUTLINE
    return shown


def _tinted(image: np.ndarray, mask: np.ndarray, num_classes: int) -> np.ndarray:
    colors = np.full((IGNORE + 1, 3), 255, np.uint8)
    colors[:num_classes] = class_colors(num_classes)
    edge = find_boundaries(mask, mode="inner") & (mask > 0)
    strength = np.where(edge, 1.0, np.where(mask > 0, TINT, 0.0))[..., None]
    return ((1 - strength) * image + strength * colors[mask]).astype(np.uint8)


def _color(place: int) -> tuple[float, ...]:
    """Of the group at this place, in every figure."""
    palette = colormaps[FEW_COLORS]
    return palette(place % palette.N)


def _marker(place: int) -> str:
    return MARKERS[place // colormaps[FEW_COLORS].N % len(MARKERS)]


def _plot(axes: Axes, lines: Sequence[Mapping[str, Any]], key: str, *, name: str, **style: Any) -> None:
    points = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
    if points:
        style = {"ms": 3, **style}
        axes.plot(*zip(*points, strict=True), label=name, **style)
