import pickle
import threading
from types import SimpleNamespace

import pytest
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from csat.errors import ConfigError
from csat.runs.folder import RunFolder
from csat.sweeps.trial import Trial
from workflows.sweep.config import AshaConfig
from workflows.sweep.search import Progress, Resources, _CellSchedulers, make_scheduler

ASHA = AshaConfig(grace=0.125, reduction_factor=2)


def ended(number, *metrics, state="finished"):
    curve = tuple((float(epoch), metric) for epoch, metric in enumerate(metrics, start=1))
    return Trial(number=number, params={}, state=state, metric=max(metrics, default=None), curve=curve)


def decide(scheduler, folder, metric, *, epoch=1.0, epochs=8, **more):
    trial = SimpleNamespace(trial_id=str(folder), config={"settings": {"run_folder": str(folder)}})
    if trial.trial_id not in scheduler._trial_info:
        scheduler.on_trial_add(None, trial)
    return scheduler.on_trial_result(None, trial, {"metric": metric, "epoch": epoch, "share": epoch / epochs, **more})


def test_what_lags_behind_earlier_trials_is_stopped_and_marked(tmp_path):
    scheduler = make_scheduler("asha", ASHA, epochs=8, history=[ended(0, 0.8, 0.9), ended(1, 0.7)])
    assert decide(scheduler, tmp_path / "good", 0.85) == TrialScheduler.CONTINUE
    assert decide(scheduler, tmp_path / "bad", 0.5) == TrialScheduler.STOP
    assert RunFolder(str(tmp_path / "bad")).read_json("status.json") == {"state": "pruned", "epoch": 1.0, "metric": 0.5}
    assert not (tmp_path / "good").exists()


def test_what_was_decided_before_stands(tmp_path):
    scheduler = make_scheduler("asha", ASHA, epochs=8, history=[ended(0, 0.8, 0.8, 0.9), ended(1, 0.7)])
    assert decide(scheduler, tmp_path / "replayed", 0.5, stands=True) == TrialScheduler.CONTINUE
    assert decide(scheduler, tmp_path / "replayed", 0.55, epoch=2.0) == TrialScheduler.STOP


def test_no_trial_is_stopped_at_its_end(tmp_path):
    scheduler = make_scheduler("asha", ASHA, epochs=2, history=[ended(0, 0.8, 0.9)])
    assert decide(scheduler, tmp_path / "a", 0.85, epochs=2) == TrialScheduler.CONTINUE
    assert decide(scheduler, tmp_path / "a", 0.2, epoch=2.0, epochs=2) == TrialScheduler.CONTINUE


def test_without_a_scheduler_every_trial_runs_to_its_end():
    assert type(make_scheduler("none", ASHA, epochs=2, history=[])) is FIFOScheduler


@pytest.mark.parametrize(
    ("settings", "word"), [({"grace": 0}, "grace"), ({"grace": 2}, "share"), ({"reduction_factor": 1}, "reduction")]
)
def test_rungs_that_cannot_be(settings, word):
    with pytest.raises(ConfigError, match=word):
        AshaConfig(**settings)


def test_a_trial_is_compared_with_those_of_its_cell(tmp_path):
    easy = make_scheduler("asha", ASHA, epochs=8, history=[ended(0, 0.8), ended(1, 0.9)])
    hard = make_scheduler("asha", ASHA, epochs=8, history=[ended(0, 0.1), ended(1, 0.2)])
    scheduler = _CellSchedulers({"easy": easy, "hard": hard})
    for cell, action in (("easy", TrialScheduler.STOP), ("hard", TrialScheduler.CONTINUE)):
        trial = SimpleNamespace(trial_id=cell, config={"settings": {"run_folder": str(tmp_path / cell)}, "cell": cell})
        scheduler.on_trial_add(None, trial)
        result = {"metric": 0.5, "epoch": 1.0, "share": 1 / 8}
        assert scheduler.on_trial_result(None, trial, result) == action
        scheduler.on_trial_complete(None, trial, {**result, "share": 1.0})


class TestProgress:
    def test_the_line_says_where_the_sweep_is(self):
        progress = Progress(num_runs=20, num_done=5)
        progress.begin("lung x rckd", "trials", total=4, ended=[ended(0, 0.4)])
        assert progress.line("lung x rckd") == "lung x rckd: trials 1/4 | best 0.400"
        progress.ended("lung x rckd", ended(1, 0.6, state="pruned"))
        progress.ended("lung x rckd", ended(2, state="failed"))
        line = progress.line("lung x rckd")
        assert line.startswith("lung x rckd: trials 3/4 (1 pruned, 1 failed) | best 0.600 | ETA 0:00:")

    def test_two_cells_at_once(self):
        progress = Progress(num_runs=20, num_done=0)
        progress.begin("lung x rckd", "seeds", total=2, ended=[])
        progress.begin("lung x scratch", "trials", total=2, ended=[])
        trial = SimpleNamespace(config={"cell": "lung x rckd"})
        progress.on_trial_result(0, [], trial, {"metric": 0.7})
        progress.ended("lung x scratch", ended(0, 0.5))
        assert progress.line("lung x rckd").startswith("lung x rckd: seeds 0/2 | best 0.700 | ETA")
        assert progress.line("lung x scratch").startswith("lung x scratch: trials 1/2 | best 0.500 | ETA")

    def test_tune_may_copy_it(self):
        progress = Progress(num_runs=20, num_done=0)
        progress._shown = threading.Lock()  # no more to be copied than what a bar writes to
        assert pickle.loads(pickle.dumps(progress)).num_runs == 20


def test_a_trial_asks_for_what_it_uses_itself():
    assert Resources(max_concurrent=1, cpus=0.5, gpus=0.25, is_group=False).request() == {"cpu": 0.5, "gpu": 0.25}
    assert Resources(max_concurrent=1, cpus=0.5, gpus=0.25, is_group=True).request() == {"cpu": 0.1}
