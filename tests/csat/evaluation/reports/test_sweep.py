from dataclasses import dataclass
from typing import Any

import pytest
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from csat.evaluation.reports.sweep import (
    correlation,
    draw_curves,
    draw_parallel,
    draw_sensitivity,
    place_of,
    write_sweep_report,
)
from csat.evaluation.sweep_table import Row
from csat.runs.folder import RunFolder
from csat.sweeps.trial import CellResult, Trial


@dataclass(frozen=True)
class Dimension:
    name: str
    kind: str
    values: tuple[Any, ...]
    is_log: bool = False


LR = Dimension("train.optim.lr", "loguniform", (1e-4, 1e-2), is_log=True)
SAMPLING = Dimension("data.sampling", "choice", ("natural", "balanced", None))
SPACE = (LR, SAMPLING)


def trial(number, lr, metric, *, state="finished", sampling="natural", error=None):
    curve = () if metric is None else ((1.0, metric / 2), (2.0, metric))
    params = {LR.name: lr, SAMPLING.name: sampling}
    return Trial(number=number, params=params, state=state, metric=metric, curve=curve, error=error)


TRIALS = [
    trial(0, 1e-4, 0.4),
    trial(1, 3e-4, 0.5),
    trial(2, 1e-3, 0.6, sampling=None),
    trial(3, 1e-2, 0.8),
    trial(4, 5e-3, 0.2, state="pruned", sampling="balanced"),
    trial(5, 9e-3, None, state="failed", error="loss is <not> finite"),
]


@pytest.fixture
def axes():
    return Figure().subplots()


def test_places_on_an_axis():
    assert place_of(LR, 1e-3) == pytest.approx(0.5)
    assert [place_of(SAMPLING, value) for value in SAMPLING.values] == [0.0, 0.5, 1.0]
    assert place_of(Dimension("a", "randint", (2, 6)), 3) == pytest.approx(0.25)


def test_correlation_is_of_finished_trials():
    assert correlation(TRIALS, LR) == pytest.approx(1.0)
    assert correlation(TRIALS, SAMPLING) is None
    assert correlation(TRIALS[:3], LR) is None
    assert correlation([trial(number, 1e-3, 0.1 * number) for number in range(5)], LR) is None


def test_every_trial_with_a_figure_has_a_curve(axes):
    draw_curves(axes, TRIALS, best=3)
    curves = [line for line in axes.lines if len(line.get_xdata()) > 1]
    assert len(curves) == 5
    assert [line.get_linestyle() for line in curves] == ["-"] * 4 + ["--"]
    assert sorted(line.get_linewidth() for line in curves)[-1] > 2


def test_parallel_coordinates_go_through_every_setting_to_the_metric(axes):
    draw_parallel(axes, TRIALS, SPACE, Normalize(0.2, 0.8))
    best = next(line for line in axes.lines if list(line.get_xdata()) == [0, 1, 2] and line.get_ydata()[-1] == 1.0)
    assert list(best.get_ydata()) == pytest.approx([1.0, 0.0, 1.0])
    failed = next(line for line in axes.lines if line.get_color() == "tab:red")
    assert list(failed.get_xdata()) == [0, 1]


def test_sensitivity_names_the_setting_and_the_correlation(axes):
    draw_sensitivity(axes, TRIALS, LR)
    assert axes.get_title() == "train.optim.lr\nrank correlation +1.00"
    assert sorted(len(points.get_offsets()) for points in axes.collections) == [1, 4]


def test_the_page_holds_every_cell(tmp_path):
    folder = RunFolder(str(tmp_path))
    results = [
        CellResult(data_set="lung", start="rckd", trials=tuple(TRIALS), best=3, seeds=("runs/a",)),
        CellResult(data_set="lung", start="none", trials=(TRIALS[5],), best=None, seeds=(), error="all 1 trials failed"),
        CellResult(data_set="glas", start="fixed", trials=(), best=None, seeds=("runs/b",)),
    ]
    row = Row(data_set="lung", start="rckd", metric="dice", part="test", value=0.8, low=0.7, high=0.9, params=TRIALS[3].params)
    write_sweep_report(folder, results=results, rows=[row, Row(data_set="lung", start="none", note="all failed")], space=SPACE)
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 1, "of the cell in which something was measured"
    assert "0.700 … 0.900" in page
    assert "loss is &lt;not&gt; finite" in page
    assert "lr 0.01, sampling natural" in page
    assert page.count('class="main"') == 1
