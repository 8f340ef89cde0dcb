import json

import pytest

from csat.errors import ConfigError
from csat.sweeps.space import grid, read_space
from csat.sweeps.study import Study
from tests.support.made_up_sweeps import write_trial

SPACE = read_space({"train.optim.lr": {"loguniform": [1e-4, 1e-1]}, "data.sampling": {"choice": ["natural", "balanced"]}})


def make(folder, searcher="optuna", num_trials=12, seed=0):
    return Study(str(folder), SPACE, searcher=searcher, num_trials=num_trials, seed=seed)


def score(params):
    """Best at the lower end."""
    return 1 - params["train.optim.lr"]


def run(study, num=None, *, state="finished"):
    """End the next trials well. Returns their settings."""
    done = []
    while num is None or len(done) < num:
        suggested = study.suggest()
        if suggested is None:
            break
        number, params = suggested
        write_trial(f"{study.folder}/trials/{number:03d}", [score(params) / 2, score(params)], state=state)
        study.tell(number, seconds=2.0)
        done.append(params)
    return done


@pytest.mark.parametrize("searcher", ["optuna", "random"])
def test_a_study_that_is_opened_again_goes_on_as_if_nothing_had_happened(tmp_path, searcher):
    whole = run(make(tmp_path / "whole", searcher))
    first = run(make(tmp_path / "halves", searcher), 7)
    again = make(tmp_path / "halves", searcher)
    assert again.num_left == 5
    assert first + run(again) == whole
    assert again.num_left == 0 and again.suggest() is None
    assert len({json.dumps(params) for params in whole}) == 12


def test_optuna_learns_and_random_does_not(tmp_path):
    seen = {searcher: run(make(tmp_path / searcher, searcher, num_trials=30)) for searcher in ("optuna", "random")}
    late = {searcher: sum(score(params) for params in found[-10:]) / 10 for searcher, found in seen.items()}
    assert late["optuna"] > late["random"]


def test_a_grid_is_tried_in_order_and_resumed(tmp_path):
    space = read_space(
        {"train.optim.lr": {"choice": [1e-3, 1e-2, 1e-1]}, "data.sampling": {"choice": ["natural", "balanced"]}}
    )
    points = grid(space)
    assert [tuple(point.values()) for point in points] == [
        *((1e-3, "natural"), (1e-3, "balanced"), (1e-2, "natural"), (1e-2, "balanced"), (1e-1, "natural"), (1e-1, "balanced"))
    ]
    study = lambda: Study(str(tmp_path), space, searcher="grid", num_trials=len(points), seed=0)  # noqa: E731
    first = run(study(), 4)
    assert first + run(study()) == points
    assert study().suggest() is None and study().best().params == points[0]
    with pytest.raises(ConfigError, match="search.train.optim.lr is a range: give {choice"):
        Study(str(tmp_path / "range"), SPACE, searcher="grid", num_trials=2, seed=0)


def test_interrupted_trials_come_first_with_their_own_settings(tmp_path):
    study = make(tmp_path)
    (first, first_params), (second, second_params) = study.suggest(), study.suggest()
    write_trial(f"{tmp_path}/trials/000", [0.2], state="running")
    again = make(tmp_path)
    assert again.suggest() == (first, first_params)
    assert again.suggest() == (second, second_params)
    assert again.suggest()[0] == 2
    assert again.num_left == 12


def test_a_failed_trial_counts_and_teaches_nothing(tmp_path):
    study = make(tmp_path, num_trials=2)
    number, _ = study.suggest()
    write_trial(f"{tmp_path}/trials/000", [], state="failed", error="loss is not finite")
    assert study.tell(number, seconds=1.0).error == "loss is not finite"
    assert study.best() is None
    again = make(tmp_path, num_trials=2)
    assert again.num_left == 1
    run(again)
    assert again.best().number == 1


def test_a_pruned_trial_is_not_the_best_while_one_ran_to_its_end(tmp_path):
    study = make(tmp_path, num_trials=2)
    for metric, state in ((0.9, "pruned"), (0.4, "finished")):
        number, _ = study.suggest()
        write_trial(f"{tmp_path}/trials/{number:03d}", [metric], state=state)
        study.tell(number, seconds=1.0)
    assert study.best().number == 1
    assert make(tmp_path, num_trials=2).best().number == 1


def test_time_adds_up_over_attempts(tmp_path):
    run(make(tmp_path), 1)
    study = make(tmp_path)
    number, _ = study.suggest()
    write_trial(f"{tmp_path}/trials/001", [0.1], state="running")
    study.save()
    record = json.loads((tmp_path / "search.json").read_text())
    assert [trial["seconds"] for trial in record["trials"]] == [2.0, 0.0]
    assert 0 < record["wall_s"] <= make(tmp_path).wall_s
