"""Which run comes next where several cells have some, without running any."""

from types import SimpleNamespace

import pytest

from workflows.sweep.side_by_side import RunQueue


class MadeUpRuns:
    """A cell's runs: its trials, and when they have ended, its seeds."""

    def __init__(self, cell, *, ended=0):
        self.cell, self.ended, self.suggested = cell, ended, ended

    @property
    def num_left(self):
        return self.cell.num_runs - self.ended

    def suggest(self):
        may_begin = self.cell.num_trials if self.ended < self.cell.num_trials else self.cell.num_runs
        if self.suggested >= may_begin:
            return None
        self.suggested += 1
        return {"settings": {"run_folder": f"{self.cell.name}/{self.suggested}"}, "stands": False}

    def tell(self, run_folder, *, seconds):
        assert run_folder.startswith(f"{self.cell.name}/")
        self.ended += 1


def cell(name, *, num_trials=3, num_seeds=2):
    return SimpleNamespace(name=name, num_trials=num_trials, num_runs=num_trials + num_seeds)


@pytest.fixture
def ended():
    return []


def queue_of(cells, ended, **before):
    """Args: before: Runs of a cell that ended in an earlier attempt."""
    return RunQueue(
        cells, lambda each: MadeUpRuns(each, ended=before.get(each.name, 0)), lambda runs: ended.append(runs.cell.name)
    )


def run(queue, *, at_once):
    """Everything, each run as long as the others. Returns how many ran at a time."""
    counts, running = [], []
    while queue.num_left:
        while len(running) < at_once and (suggested := queue.suggest()):
            assert suggested["settings"]["run_folder"].startswith(suggested["cell"])
            running.append(suggested["settings"]["run_folder"])
        counts.append(len(running))
        for folder in running:
            queue.tell(folder, seconds=1.0)
        running.clear()
    return counts


def test_a_cell_that_waits_leaves_what_is_free_to_the_next(ended):
    queue = queue_of([cell("a"), cell("b")], ended)
    first = [queue.suggest()["settings"]["run_folder"] for _ in range(4)]
    assert first == ["a/1", "a/2", "a/3", "b/1"]
    queue.tell("a/1", seconds=1.0)
    assert queue.suggest()["settings"]["run_folder"] == "b/2", "seeds of a wait for all of its trials"
    queue.tell("a/2", seconds=1.0)
    queue.tell("a/3", seconds=1.0)
    assert queue.suggest()["settings"]["run_folder"] == "a/4", "the first cell's runs come first"


def test_nothing_is_idle_before_the_last_cell(ended):
    assert run(queue_of([cell(name) for name in "abcd"], ended), at_once=2) == [2] * 10
    assert ended == ["a", "b", "c", "d"]


def test_one_at_a_time_is_one_cell_after_the_other(ended):
    queue = queue_of([cell("a"), cell("b")], ended)
    folders = []
    while suggested := queue.suggest():
        folders.append(suggested["settings"]["run_folder"])
        queue.tell(folders[-1], seconds=1.0)
    assert folders == [f"{name}/{number}" for name in "ab" for number in range(1, 6)]
    assert (queue.num_left, ended) == (0, ["a", "b"])


def test_what_was_done_before_is_ended_at_once_and_not_run(ended):
    queue = queue_of([cell("a"), cell("b"), cell("c")], ended, a=5, b=4, c=5)
    assert (ended, queue.num_left) == (["a"], 1 + 5)
    assert queue.suggest()["settings"]["run_folder"] == "b/5"
    assert queue.suggest() is None and ended == ["a", "c"], "c has nothing left either"
    queue.tell("b/5", seconds=1.0)
    assert (ended, queue.num_left) == (["a", "c", "b"], 0)


def test_where_nothing_is_left_all_cells_are_ended(ended):
    assert queue_of([cell("a"), cell("b")], ended, a=5, b=5).num_left == 0
    assert ended == ["a", "b"]
