import json

from csat.sweeps.trial import CellResult, Trial, best_trial, read_trial
from tests.support.made_up_sweeps import write_trial


def test_a_trial_is_what_its_run_folder_says(tmp_path):
    trial = read_trial(write_trial(tmp_path / "a", [0.2, 0.6, 0.5]), number=3, params={"train.optim.lr": 0.1}, seconds=4.0)
    assert (trial.state, trial.metric, trial.epochs, trial.seconds) == ("finished", 0.6, 3.0, 4.0)
    assert trial.curve == ((1.0, 0.2), (2.0, 0.6), (3.0, 0.5))
    assert trial.has_ended


def test_a_trial_without_a_folder_waits(tmp_path):
    trial = read_trial(str(tmp_path / "nothing"), number=0, params={})
    assert (trial.state, trial.metric, trial.curve, trial.has_ended) == ("waiting", None, (), False)


def test_a_failed_trial_keeps_its_error(tmp_path):
    trial = read_trial(write_trial(tmp_path, [0.1], state="failed", error="out of memory"), number=0, params={})
    assert (trial.state, trial.error, trial.metric) == ("failed", "out of memory", 0.1)


def test_the_last_figure_of_a_pruned_trial_is_known_where_its_lines_are_not(tmp_path):
    write_trial(tmp_path, [0.3, 0.4], state="pruned")
    (tmp_path / "validation.jsonl").unlink()
    assert read_trial(str(tmp_path), number=0, params={}).curve == ((2.0, 0.4),)


def test_the_first_of_equals_is_the_best():
    trials = [
        Trial(number=number, params={}, state="finished", metric=metric) for number, metric in enumerate([0.1, 0.7, 0.7])
    ]
    assert best_trial(trials).number == 1
    assert best_trial([]) is None
    assert best_trial([Trial(number=0, params={}, state="failed", metric=0.9)]) is None


def test_a_result_survives_json():
    trial = Trial(number=2, params={"a": 1}, state="pruned", metric=0.5, curve=((1.0, 0.5),))
    result = CellResult(data_set="lung", start="rckd", trials=(trial,), best=2, seeds=("a", "b"), wall_s=3.0)
    assert CellResult.from_json(json.loads(json.dumps(result.to_json()))) == result
    assert result.params == {"a": 1}
