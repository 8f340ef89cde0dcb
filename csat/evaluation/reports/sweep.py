"""report.html of a sweep: the table, and what each cell's search looked like. One file, readable offline."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from csat.evaluation.reports.page import figure_uri, label, render
from csat.evaluation.sweep_table import Row, duration, in_words
from csat.runs.folder import RunFolder
from csat.sweeps.trial import FAILED, FINISHED, PRUNED, CellResult, Trial

PANEL_INCHES = (3.4, 2.8)
MOST_DIMENSIONS = 6  # that a panel of their own is drawn for
LEAST_FOR_CORRELATION = 4  # trials
STYLES = {FINISHED: "-", PRUNED: "--"}


class Dimension(Protocol):
    """One searched setting."""

    name: str
    kind: str  # choice, or a range
    values: tuple[Any, ...]  # the choices, or the two ends
    is_log: bool


def write_sweep_report(
    folder: RunFolder, *, results: Sequence[CellResult], rows: Sequence[Row], space: Sequence[Dimension]
) -> None:
    """Write `report.html` into the sweep's folder."""
    cells = [
        {
            "name": f"{result.data_set} x {result.start}",
            "figure": _figure(result.trials, result.best, space)
            if space and any(trial.metric is not None for trial in result.trials)
            else None,
            "trials": sorted(result.trials, key=lambda trial: -np.inf if trial.metric is None else trial.metric, reverse=True),
            "best": result.best,
            "seeds": [(uri, _report_below(folder, uri)) for uri in result.seeds],
            "error": result.error,
        }
        for result in results
    ]
    page = render("sweep.html", run_folder=folder.uri, rows=rows, cells=cells, duration=duration, in_words=in_words)
    folder.write_text("report.html", page)


def _report_below(folder: RunFolder, uri: str) -> str | None:
    """The report of a run as a link from the sweep's own; None where it lies elsewhere: a bucket may be copied."""
    start = folder.uri.rstrip("/") + "/"
    return f"{uri.removeprefix(start)}/report.html" if uri.startswith(start) else None


def _figure(trials: Sequence[Trial], best: int | None, space: Sequence[Dimension]) -> str:
    """Learning curves, parallel coordinates and one panel per searched setting, as a data URI."""
    shown = space[:MOST_DIMENSIONS]
    width, height = PANEL_INCHES
    figure = Figure(figsize=(width * (3 + len(shown)), height), layout="constrained")
    curves, parallel, *panels = figure.subplots(1, 2 + len(shown), width_ratios=[1, 2, *(1 for _ in shown)], squeeze=False)[0]
    measured = [trial.metric for trial in trials if trial.metric is not None]
    scale = Normalize(min(measured, default=0.0), max(measured, default=1.0))
    draw_curves(curves, trials, best)
    draw_parallel(parallel, trials, space, scale)
    for panel, dimension in zip(panels, shown, strict=True):
        draw_sensitivity(panel, trials, dimension)
    return figure_uri(figure)


def draw_curves(axes: Axes, trials: Sequence[Trial], best: int | None) -> None:
    """The validation metric of every trial over its epochs; the best one thick, pruned ones dashed with a cross at the end."""
    for trial in trials:
        if trial.curve:
            epochs, metrics = zip(*trial.curve, strict=True)
            is_best = trial.number == best
            color = "tab:orange" if is_best else "tab:red" if trial.state == FAILED else "tab:blue"
            axes.plot(
                epochs,
                metrics,
                STYLES.get(trial.state, ":"),
                lw=2.4 if is_best else 1.0,
                color=color,
                zorder=3 if is_best else 2,
            )
            if trial.state != FINISHED:
                axes.plot(epochs[-1], metrics[-1], "x", color=color, ms=5)
    axes.set(title="learning curves (validation)", xlabel="epoch", ylabel="metric")


def draw_parallel(axes: Axes, trials: Sequence[Trial], space: Sequence[Dimension], scale: Normalize) -> None:
    """One line per trial through its settings to its metric, coloured by the metric; trials without one are red."""
    positions = np.arange(len(space) + 1)
    for trial in sorted(trials, key=lambda trial: -np.inf if trial.metric is None else trial.metric):
        heights = [place_of(dimension, trial.params[dimension.name]) for dimension in space]
        if trial.metric is None:
            axes.plot(positions[:-1], heights, ":", color="tab:red", lw=1.0)
        else:
            share = float(scale(trial.metric)) if scale.vmax > scale.vmin else 1.0
            color = colormaps["viridis"](share)
            axes.plot(positions, [*heights, share], STYLES.get(trial.state, ":"), color=color, lw=1.4)
    for position, dimension in enumerate(space):
        axes.axvline(position, color="0.6", lw=0.8, zorder=0)
        for value in dimension.values:
            axes.annotate(_text(value), (position, place_of(dimension, value)), fontsize=7, color="0.3")
    axes.axvline(positions[-1], color="0.2", lw=1.0, zorder=0)
    for share, value in ((0.0, scale.vmin), (1.0, scale.vmax)):
        axes.annotate(f"{value:.3f}", (positions[-1], share), fontsize=7, color="0.1")
    axes.set_xticks(positions, [*(dimension.name.rpartition(".")[2] for dimension in space), "metric"])
    axes.set(title="trials (pruned: dashed)", yticks=[], ylim=(-0.08, 1.08))


def draw_sensitivity(axes: Axes, trials: Sequence[Trial], dimension: Dimension) -> None:
    """The metric over one setting: finished trials filled, pruned ones hollow; the rank correlation is of the finished."""
    for state, face in ((FINISHED, "tab:blue"), (PRUNED, "none")):
        points = [
            (place_of(dimension, trial.params[dimension.name]), trial.metric)
            for trial in trials
            if trial.state == state and trial.metric is not None
        ]
        if points:
            axes.scatter(*zip(*points, strict=True), s=22, facecolors=face, edgecolors="tab:blue")
    title = dimension.name
    if (rank := correlation(trials, dimension)) is not None:
        title += f"\nrank correlation {rank:+.2f}"
    places = [place_of(dimension, value) for value in dimension.values]
    axes.set_xticks(places, [_text(value) for value in dimension.values])
    axes.set_title(title, fontsize=9)
    axes.set(xlim=(-0.08, 1.08), ylabel="metric")


def place_of(dimension: Dimension, value: Any) -> float:
    """Where a value lies, 0 … 1: among the choices, or between the ends of its range (by the logarithm where it has that)."""
    if dimension.kind == "choice":
        return dimension.values.index(value) / max(1, len(dimension.values) - 1)
    low, high, value = np.log([*dimension.values, value]) if dimension.is_log else np.array([*dimension.values, value], float)
    return float((value - low) / (high - low))


def correlation(trials: Sequence[Trial], dimension: Dimension) -> float | None:
    """Spearman's, between a setting and the metric of finished trials; None for choices, and where it is not defined."""
    points = [
        (trial.params[dimension.name], trial.metric)
        for trial in trials
        if trial.state == FINISHED and trial.metric is not None
    ]
    if dimension.kind == "choice" or len(points) < LEAST_FOR_CORRELATION:
        return None
    values, metrics = zip(*points, strict=True)
    if len(set(values)) < 2 or len(set(metrics)) < 2:
        return None
    return float(spearmanr(values, metrics).statistic)


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else label(str(value))
