import csv
import io
import json

import pytest

from csat.evaluation.scores import figures_of
from csat.evaluation.sweep_table import duration, in_words, make_table, to_csv, to_json, to_markdown, to_text
from csat.sweeps.trial import CellResult, Trial
from tests.support.made_up import classified
from tests.support.made_up_sweeps import write_seed

TRIALS = tuple(
    Trial(number=number, params={"train.optim.lr": 0.001 * (number + 1)}, state=state, metric=0.5)
    for number, state in enumerate(["finished", "pruned", "failed", "finished"])
)


def cell(folder, start, *, skill, seeds=(0, 1, 2), data_set="lung", **more):
    uris = tuple(
        write_seed(folder / data_set / start / str(seed), seed=seed, skill=skill, images_per_s=100.0 + seed, **more)
        for seed in seeds
    )
    return CellResult(data_set=data_set, start=start, trials=TRIALS, best=3, seeds=uris, wall_s=3723.0)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    cells = [
        cell(folder, "scratch", skill=1.0),
        cell(folder, "rckd", skill=3.0),
        CellResult(data_set="lung", start="broken", trials=TRIALS[2:3], best=None, seeds=(), error="all 1 trials failed"),
        cell(folder, "scratch", skill=2.0, data_set="glands", seeds=(0,), part="val"),
    ]
    return make_table(cells, num_bootstraps=200)


def test_value_is_the_mean_over_the_seeds(rows):
    values = [figures_of(classified(seed, skill=1.0))["balanced_accuracy"] for seed in range(3)]
    assert rows[0].value == pytest.approx(sum(values) / 3)
    assert rows[0].low < rows[0].value < rows[0].high
    assert rows[0].std > 0
    assert (rows[0].metric, rows[0].part, rows[0].seeds) == ("balanced_accuracy", "test", 3)


def test_the_difference_is_to_the_first_start(rows):
    assert rows[0].difference is None
    assert rows[1].difference == pytest.approx(rows[1].value - rows[0].value)
    assert 0 < rows[1].difference_low < rows[1].difference < rows[1].difference_high


def test_a_table_of_a_question(rows):
    head, rule, lung, glands = to_markdown(rows).splitlines()
    assert head == "|  | scratch | rckd | broken | rckd minus scratch | broken minus scratch |" and rule.count("---") == 6
    scratch, rckd = rows[:2]
    assert lung.split(" | ") == [
        "| lung (balanced_accuracy)",
        f"{scratch.value:.3f} ± {scratch.std:.3f} [{scratch.low:.3f}, {scratch.high:.3f}]",
        f"{rckd.value:.3f} ± {rckd.std:.3f} [{rckd.low:.3f}, {rckd.high:.3f}]",
        "-",
        f"{rckd.difference:+.3f} [{rckd.difference_low:+.3f}, {rckd.difference_high:+.3f}]",
        "- |",
    ]
    assert glands.startswith("| glands (balanced_accuracy) | ") and glands.endswith(" | - | - | - | - |")


def test_cost_and_search(rows):
    assert (rows[1].parameters, rows[1].macs, rows[1].images_per_s) == (2_500_000, 400_000_000, 102.0)
    assert (rows[1].trials, rows[1].pruned, rows[1].failed) == (4, 1, 1)
    assert rows[1].params == {"train.optim.lr": 0.004}


def test_a_cell_without_runs_is_a_row_that_says_why(rows):
    assert (rows[2].start, rows[2].value, rows[2].note) == ("broken", None, "all 1 trials failed")


def test_one_seed_and_no_test_part(rows):
    assert (rows[3].part, rows[3].std, rows[3].seeds, rows[3].difference) == ("val", None, 1, None)


def test_runs_on_different_samples_are_shown_and_not_compared(tmp_path):
    cells = [cell(tmp_path, "scratch", skill=1.0, seeds=(0,)), cell(tmp_path, "rckd", skill=1.0, seeds=(0,), num_samples=40)]
    first, second = make_table(cells, num_bootstraps=50)
    assert second.value is not None and second.difference is None
    assert "not compared" in second.note and "different samples" in second.note


def test_text_is_aligned(rows):
    lines = to_text(rows).splitlines()
    assert len(lines) == 1 + len(rows) + 1  # a header, and one note
    column = lines[0].index("best setting")
    assert lines[1][column:] == "lr 0.004"
    assert lines[3][column:] == "-"
    assert "balanced_accuracy (val)" in lines[4]
    assert "1:02:03" in lines[1]
    assert "4 (1 pruned, 1 failed)" in lines[1]
    assert lines[5] == "lung x broken: all 1 trials failed"


def test_csv_and_json_hold_the_same(rows):
    read = list(csv.DictReader(io.StringIO(to_csv(rows))))
    plain = json.loads(json.dumps(to_json(rows)))
    assert [row["start"] for row in read] == [row["start"] for row in plain] == ["scratch", "rckd", "broken", "scratch"]
    assert float(read[1]["difference"]) == plain[1]["difference"]
    assert read[2]["value"] == ""
    assert json.loads(read[1]["params"]) == plain[1]["params"]


def test_words():
    assert in_words({"train.optim.lr": 0.00123456, "data.sampling": "balanced", "train.batch_size": 8}) == (
        "lr 0.00123, sampling balanced, batch_size 8"
    )
    assert duration(59.6) == "0:01:00"
