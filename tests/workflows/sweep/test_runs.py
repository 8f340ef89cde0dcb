"""A cell's runs without running them: what comes next, and what is left when all have ended."""

import json
from pathlib import Path

import pytest

from csat.errors import ConfigError
from csat.settings import read_settings
from csat.sweeps.space import read_space
from csat.sweeps.study import Study
from csat.sweeps.tracking import MlflowTracker
from csat.sweeps.trial import CellResult, Trial
from tests.support.labelled_folders import data_settings, sweep_settings
from tests.support.made_up_sweeps import write_seed, write_trial
from workflows.sweep.cells import make_cells
from workflows.sweep.config import SweepConfig
from workflows.sweep.runs import CellRuns, finished_result
from workflows.sweep.search import Progress


class Sweep:
    """One cell with two trials and two seeds."""

    def __init__(self, folder, **changes):
        settings = {"data_sets": {"a": data_settings("a")}, "run_folder": str(folder), "num_trials": 2, **changes}
        self.config = read_settings(SweepConfig, {**sweep_settings(), **settings}, what="sweep")
        self.space = read_space(self.config.search)
        self.cell, *_ = make_cells(self.config, self.space)
        self.progress = Progress(num_runs=4, num_done=0)

    def study(self):
        num_trials = self.config.num_trials if self.space else 0
        return Study(self.cell.folder, self.space, searcher="optuna", num_trials=num_trials, seed=0)

    def runs(self):
        return CellRuns(self.cell, self.study(), progress=self.progress)

    def end_all(self, runs, *, trial="finished", seed="finished"):
        """Suggested runs end as told. Returns their settings."""
        done = []
        while (suggested := runs.suggest()) is not None:
            place = suggested["settings"]["run_folder"]
            is_seed = "/seeds/" in place
            if is_seed and seed == "finished":
                write_seed(place, seed=len(done))
            else:
                state = seed if is_seed else trial
                write_trial(
                    place, [0.1 * (1 + len(done))], state=state, error="loss is not finite" if state == "failed" else None
                )
            for name in ("checkpoints", "exported"):
                Path(place, name).mkdir()
            runs.tell(place, seconds=1.0)
            done.append(suggested)
        return done

    def finish(self, tracker=None):
        """As a later attempt finds it."""
        runs = self.runs()
        assert runs.num_left == 0
        return runs.finish(tracker)


def test_seeds_come_when_all_trials_have_ended(tmp_path):
    sweep = Sweep(tmp_path)
    runs = sweep.runs()
    first, second = runs.suggest(), runs.suggest()
    assert runs.suggest() is None and runs.num_left == 4
    for suggested, metric in ((first, 0.3), (second, 0.6)):
        write_trial(suggested["settings"]["run_folder"], [metric])
        runs.tell(suggested["settings"]["run_folder"], seconds=1.0)
    seed = runs.suggest()
    assert seed["settings"]["run_folder"].endswith("/seeds/000") and runs.num_left == 2
    assert seed["settings"]["train"]["seed"] == 1 and runs.suggest()["settings"]["train"]["seed"] == 2
    assert seed["settings"]["train"]["optim"] == second["settings"]["train"]["optim"], "the better of the two"
    assert (first["stands"], seed["stands"]) == (False, True)
    assert (first["settings"]["num_bootstraps"], seed["settings"]["num_bootstraps"]) == (200, 100)
    assert runs.suggest() is None


def test_a_cell_that_was_killed_before_its_record_is_recorded(tmp_path):
    sweep = Sweep(tmp_path)
    sweep.end_all(sweep.runs())
    assert finished_result(sweep.cell) is None
    result = Sweep(tmp_path).finish()
    assert finished_result(sweep.cell) == result
    assert (result.best, len(result.seeds), result.error) == (1, 2, None)
    trials = tmp_path / "cells" / "a" / "nano" / "trials"
    assert not (trials / "000" / "checkpoints").exists() and not (trials / "000" / "exported").exists()
    assert (trials / "001" / "checkpoints").exists() and (trials / "001" / "exported").exists()
    assert [trial.metric for trial in result.trials] == pytest.approx([0.1, 0.2])


def test_without_a_trial_that_came_to_something_there_are_no_seeds(tmp_path):
    sweep = Sweep(tmp_path)
    runs = sweep.runs()
    sweep.end_all(runs, trial="failed")
    assert runs.num_left == 0
    result = sweep.finish()
    assert result.error == "all 2 trials failed; the first: loss is not finite"
    assert (result.best, result.seeds) == (None, ())
    assert json.loads((tmp_path / "cells/a/nano/cell.json").read_text())["error"] == result.error


def test_a_seed_that_failed_is_told(tmp_path):
    sweep = Sweep(tmp_path)
    sweep.end_all(sweep.runs(), seed="failed")
    result = sweep.finish()
    assert result.error == "2 of 2 seeds failed; the first: loss is not finite"
    assert result.best is not None and result.seeds == ()


def test_without_a_search_there_are_seeds_only(tmp_path):
    sweep = Sweep(tmp_path, search={})
    done = sweep.end_all(sweep.runs())
    assert [suggested["settings"]["train"]["seed"] for suggested in done] == [1, 2]
    result = sweep.finish()
    assert isinstance(result, CellResult) and (result.trials, result.best, len(result.seeds)) == ((), None, 2)


class TestOneSearchForAnother:
    SETS = {"data_sets": {"tenth": data_settings("b"), "all": data_settings("a")}, "settings_from": {"tenth": "all"}}

    def test_the_cells(self, tmp_path):
        sweep = Sweep(tmp_path, **self.SETS, search_only=["all"])
        tenth, whole = make_cells(sweep.config, sweep.space)
        assert (tenth.num_trials, tenth.num_seeds, tenth.leader) == (0, 2, "all x nano")
        assert (whole.num_trials, whole.num_seeds, whole.leader) == (2, 0, None)

    def test_what_is_searched_alone_gets_no_seeds_and_no_error(self, tmp_path):
        sweep = Sweep(tmp_path, **self.SETS, search_only=["all"])
        _, sweep.cell = make_cells(sweep.config, sweep.space)
        runs = sweep.runs()
        assert len(sweep.end_all(runs)) == 2 and runs.num_left == 0
        result = sweep.finish()
        assert (result.best, result.seeds, result.error) == (1, (), None)

    def runs_after(self, sweep, leader):
        study = Study(sweep.cell.folder, sweep.space, searcher="optuna", num_trials=0, seed=0)
        return CellRuns(sweep.cell, study, progress=sweep.progress, leader=leader)

    def test_its_setting_is_what_the_seeds_get(self, tmp_path):
        sweep = Sweep(tmp_path, **self.SETS)
        given = {"train.optim.lr": 0.0125, "train.optim.weight_decay": 0.1}
        leader = CellResult(
            data_set="all", start="nano", trials=(Trial(number=0, params=given, state="finished"),), best=0, seeds=()
        )
        runs = self.runs_after(sweep, leader)
        done = [suggested["settings"]["train"] for suggested in sweep.end_all(runs)]
        assert [(train["optim"]["lr"], train["seed"]) for train in done] == [(0.0125, 1), (0.0125, 2)]
        result = runs.finish(None)
        assert (result.params, result.best, len(result.seeds), result.error) == (given, None, 2, None)
        assert finished_result(sweep.cell) == result

    def test_without_a_setting_nothing_is_run(self, tmp_path):
        sweep = Sweep(tmp_path, **self.SETS)
        leader = CellResult(data_set="all", start="nano", trials=(), best=None, seeds=(), error="all 2 trials failed")
        runs = self.runs_after(sweep, leader)
        assert (runs.num_left, sweep.progress.num_runs) == (0, 2)
        result = runs.finish(None)
        assert (result.error, result.seeds) == ("all x nano came to no setting", ())

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"settings_from": {"tenth": "half"}}, "settings_from and search_only name 'half'; the data sets are: tenth, all"),
            ({"search_only": ["half"]}, "settings_from and search_only name 'half'"),
            ({"settings_from": {"tenth": "all", "all": "tenth"}}, "settings_from.tenth: all is in settings_from too"),
            ({"search_only": ["tenth"]}, "tenth is in settings_from and in search_only"),
            ({"search": {}}, "are about the search, and nothing is searched"),
        ],
    )
    def test_what_cannot_be(self, tmp_path, settings, message):
        with pytest.raises(ConfigError, match=message):
            Sweep(tmp_path, **{**self.SETS, **settings})


@pytest.mark.slow
def test_every_run_of_a_cell_is_tracked(tmp_path):
    pytest.importorskip("mlflow")
    tracker = MlflowTracker(f"sqlite:///{tmp_path}/mlflow.db", "sweep")
    sweep = Sweep(tmp_path / "run")
    sweep.end_all(sweep.runs())
    sweep.finish(tracker)
    runs = tracker._client.search_runs([tracker._experiment])
    assert sorted((run.data.tags["kind"], run.data.tags["number"]) for run in runs) == [
        *(("seeds", "0"), ("seeds", "1")),
        *(("trials", "0"), ("trials", "1")),
    ]
