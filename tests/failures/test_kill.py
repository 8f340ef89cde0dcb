"""A small seeded part of the kill matrix; `python -m tests.failures.table` runs all of it."""

import pytest

from tests.failures.lab import Lab
from tests.failures.table import as_markdown

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.mark.timeout(900)
def test_a_killed_node_and_a_killed_driver_cost_no_tile():
    """On three nodes: first a node is lost while the run goes on, then the driver of another run."""
    with Lab() as lab:
        for fault in ("node", "driver"):
            outcome = lab.run(fault, seed=100)
            assert (outcome.lost, outcome.doubled) == (0, 0), outcome
            assert outcome.tiles > 200 and 0 < outcome.done_at_kill < 1, outcome


def test_the_table_sums_up_and_hides_nothing():
    runs = [
        dict(fault="node", seed=seed, tiles=100, lost=lost, doubled=0, done_at_kill=0.5, recovery_s=seconds, end_s=None)
        for seed, lost, seconds in ((0, 0, 10.0), (1, 3, 30.0))
    ]
    assert "| 2 | 200 | 3 | 0 | 20, 30 |" in as_markdown(runs)
