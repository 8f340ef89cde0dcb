"""Every position is counted once, in its epoch; what does not add up stops the run, stopped early or not."""

import numpy as np
import pytest

from csat.columns import OK, QUARANTINED
from csat.runs.checkpoints import Cursor
from csat.runs.plan import Intervals
from csat.runs.quarantine import QUARANTINE_SCHEMA
from csat.training.accounting import Accounts
from csat.training.context import TrainContext
from tests.support.toy import toy_plan, toy_rows

CONTEXT = TrainContext(lambda size: iter(()))


def make_accounts(done=(), counts=None) -> Accounts:
    """Of 2 epochs of 6 tiles."""
    return Accounts(toy_plan(6, 2), Cursor(done=Intervals(done), counts=counts or {}), QUARANTINE_SCHEMA.empty_table())


def test_rows_are_counted_in_their_epoch():
    accounts = make_accounts()
    accounts.add(toy_rows([0, 3, 7], bad=(3,), num_tiles=6))
    cursor = accounts.settle(CONTEXT, step=1)
    assert cursor.counts == {0: [1, 1, 0], 1: [1, 0, 0]}
    assert cursor.done.pairs() == [[0, 1], [3, 4], [7, 8]]
    assert accounts.tiles_done == 3
    assert accounts.quarantine.column("reason").to_pylist() == ["unreadable"]


def test_settling_twice_counts_once():
    accounts = make_accounts()
    accounts.add(toy_rows([0, 1], num_tiles=6))
    accounts.settle(CONTEXT, step=1)
    accounts.add(toy_rows([2], num_tiles=6))
    cursor = accounts.settle(CONTEXT, step=2)
    assert cursor.counts == {0: [3, 0, 0]}
    assert cursor.meters["rows"] == 3
    assert cursor.meters["read_s"] == pytest.approx(0.003)


def test_a_position_that_is_done_is_refused():
    accounts = make_accounts(done=[(0, 4)])
    with pytest.raises(RuntimeError, match="came down the stream again"):
        accounts.add(toy_rows([3], num_tiles=6))


def test_a_whole_plan_adds_up():
    accounts = make_accounts()
    rows = toy_rows(np.arange(12), bad=(5,), num_tiles=6)
    assert set(rows["status"]) == {OK, QUARANTINED}
    accounts.add(rows)
    accounts.settle(CONTEXT, step=3)
    accounts.check()


def test_a_lost_tile_is_named_with_its_epoch():
    accounts = make_accounts(done=[(0, 6), (7, 12)], counts={0: [6, 0, 0], 1: [4, 1, 0]})
    with pytest.raises(RuntimeError, match=r"6 tiles an epoch in the manifest, 11 done in all, but .* \{1: \[4, 1, 0\]\}"):
        accounts.check()


def test_a_run_that_was_stopped_need_not_be_whole_but_must_add_up():
    accounts = make_accounts(done=[(0, 8)], counts={0: [5, 1, 0], 1: [2, 0, 0]})
    accounts.check(is_whole=False)
    with pytest.raises(RuntimeError, match="tile accounting failed"):
        accounts.check()


@pytest.mark.parametrize(
    "counts",
    [
        {0: [6, 0, 0], 1: [3, 0, 0]},  # one was counted twice
        {0: [6, 0, 0], 1: [1, 0, 0]},  # one was lost
        {0: [7, 0, 0], 1: [1, 0, 0]},  # as many as there should be, in the wrong epoch
    ],
)
def test_a_stopped_run_that_does_not_add_up_is_refused(counts):
    with pytest.raises(RuntimeError, match="tile accounting failed"):
        make_accounts(done=[(0, 8)], counts=counts).check(is_whole=False)


def test_a_run_that_was_stopped_before_it_began_adds_up():
    make_accounts().check(is_whole=False)
