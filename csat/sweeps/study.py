"""The search of one cell: which settings are tried, in an order that a kill does not change.

Nothing of the searcher is kept but what it suggested: `search.json` in the cell's folder lists the settings, each before its
trial starts. How a trial went is in its run folder. A study that is opened again learns from both; the k-th suggestion follows
from the seed, from k, and from what is known by then. There is no generator with a state to save, and no pickle to trust.
"""

import json
import time
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.trial import TrialState, create_trial

from csat.storage import files
from csat.sweeps.space import Dimension, grid
from csat.sweeps.trial import FAILED, PRUNED, Trial, best_trial, read_trial

SEARCHERS = ("optuna", "random", "grid")
GRID = "grid"
TRIALS, SEEDS = "trials", "seeds"  # folders of a cell
RECORD = "search.json"
LEAST_RANDOM, RANDOM_SHARE = 3, 1 / 3  # trials that are drawn at random before TPE has something to learn from
MOST_RANDOM = 10  # Optuna's own number


class Study:
    """Suggests settings and learns how they did.

    Args:
        folder: URI of the cell's folder.
        space: What is searched.
        searcher: "optuna" (TPE, Bergstra et al. 2011), "random", or "grid" (all choices, in order).
        num_trials: In all; at most as many as a grid has.
        seed: Equal seeds draw the same first settings in every cell, so that cells start alike.
    """

    def __init__(self, folder: str, space: tuple[Dimension, ...], *, searcher: str, num_trials: int, seed: int):
        self.folder, self.searcher, self.num_trials, self.seed = folder, searcher, num_trials, seed
        self._distributions = {dimension.name: dimension.distribution() for dimension in space}
        self._grid = grid(space) if searcher == GRID else None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._study = optuna.create_study(direction="maximize")
        self._asked: dict[int, optuna.Trial] = {}
        path = files.join(folder, RECORD)
        record = json.loads(files.read_bytes(path)) if files.exists(path) else {"trials": [], "wall_s": 0.0}
        self._recorded: list[dict[str, Any]] = record["trials"]
        self._wall_before_s, self._opened = record["wall_s"], time.monotonic()
        self._trials = {number: self._read(number) for number in range(len(self._recorded))}
        self._interrupted = [number for number, trial in self._trials.items() if not trial.has_ended]
        for trial in self.ended():
            self._study.add_trial(_to_optuna(trial, self._distributions))

    @property
    def wall_s(self) -> float:
        """That the cell has taken until now, over all attempts."""
        return self._wall_before_s + time.monotonic() - self._opened

    @property
    def num_left(self) -> int:
        """Trials that have not ended, those that were never begun included."""
        return self.num_trials - len(self.ended())

    def ended(self) -> list[Trial]:
        """Trials that are over."""
        return [trial for trial in self._trials.values() if trial.has_ended]

    def best(self) -> Trial | None:
        return best_trial(self.ended())

    def suggest(self) -> tuple[int, dict[str, Any]] | None:
        """Number and settings of a trial that is to be run, interrupted ones first; None: there is none left."""
        if self._interrupted:
            number = self._interrupted.pop(0)
            params = self._recorded[number]["params"]
            self._study.enqueue_trial(params)
            self._asked[number] = self._study.ask(self._distributions)
            return number, params
        number = len(self._recorded)
        if number >= self.num_trials:
            return None
        if self._grid is not None:
            self._study.enqueue_trial(self._grid[number])
        self._study.sampler = self._sampler(number)
        self._asked[number] = self._study.ask(self._distributions)
        params = self._asked[number].params
        self._recorded.append({"params": params, "seconds": 0.0})
        self.save()
        self._trials[number] = self._read(number)
        return number, params

    def tell(self, number: int, *, seconds: float) -> Trial:
        """A trial is over, or interrupted, after `seconds` of this attempt: its run folder says how it went."""
        self._recorded[number]["seconds"] += seconds
        trial = self._trials[number] = self._read(number)
        asked = self._asked.pop(number)
        if not trial.has_ended:
            pass  # interrupted: it resumes the next time
        elif trial.state == FAILED or trial.metric is None:
            self._study.tell(asked, state=TrialState.FAIL)
        elif trial.state == PRUNED:
            for step, (_, metric) in enumerate(trial.curve):
                asked.report(metric, step)
            self._study.tell(asked, state=TrialState.PRUNED)
        else:
            self._study.tell(asked, trial.metric)
        self.save()
        return trial

    def save(self) -> None:
        """Settings and seconds so far, whole or not at all: one small file."""
        record = {"trials": self._recorded, "wall_s": self.wall_s}
        files.write_bytes(files.join(self.folder, RECORD), (json.dumps(record, indent=1) + "\n").encode())

    def _read(self, number: int) -> Trial:
        recorded = self._recorded[number]
        place = files.join(self.folder, TRIALS, trial_name(number))
        return read_trial(place, number=number, params=recorded["params"], seconds=recorded["seconds"])

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        seed = (self.seed * 1_000_003 + number) % 2**32
        if self.searcher == "random":
            return optuna.samplers.RandomSampler(seed=seed)
        num_random = min(MOST_RANDOM, max(LEAST_RANDOM, round(self.num_trials * RANDOM_SHARE)))
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=num_random, constant_liar=True)


def trial_name(number: int) -> str:
    """Folder of a trial."""
    return f"{number:03d}"


def _to_optuna(trial: Trial, distributions: Mapping[str, Any]) -> optuna.trial.FrozenTrial:
    about = dict(params=trial.params, distributions=dict(distributions))
    if trial.state == FAILED or trial.metric is None:
        return create_trial(**about, state=TrialState.FAIL)
    if trial.state == PRUNED:
        values = [metric for _, metric in trial.curve]
        return create_trial(**about, state=TrialState.PRUNED, value=values[-1], intermediate_values=dict(enumerate(values)))
    return create_trial(**about, value=trial.metric)
