"""A small seeded part of the kill matrix; `python -m tests.failures.table` runs all of it."""

import json
from dataclasses import asdict

import pytest

from csat.runs.checkpoints import Checkpoint, Checkpoints, Cursor
from csat.runs.plan import Intervals
from csat.runs.quarantine import QUARANTINE_SCHEMA
from tests.failures.kills import PROMISES, kill
from tests.failures.lab import Lab, Outcome, count_tiles, read_file
from tests.failures.table import as_markdown


@pytest.fixture(scope="module")
def lab():
    """One lab, whose cluster lives on until the head is killed."""
    with Lab() as lab:
        yield lab


@pytest.mark.ray
@pytest.mark.thorough
@pytest.mark.parametrize("fault", PROMISES)
def test_whoever_is_killed_no_tile_is_lost_or_doubled(lab, fault):
    outcome = kill(lab, fault, seed=100)
    assert (outcome.lost, outcome.doubled) == (0, 0), outcome
    assert outcome.tiles > 200 and 0 < outcome.done_at_kill < 1, outcome


def test_the_table_sums_up_and_hides_nothing():
    runs = [
        asdict(Outcome(fault="node", seed=seed, tiles=100, lost=lost, doubled=0, recovery_s=seconds))
        for seed, lost, seconds in ((0, 0, 10.0), (1, 3, 30.0))
    ]
    assert "| 2 | 200 | 3 | 0 | 0 |  | 20, 30 |" in as_markdown(runs)


@pytest.mark.parametrize(
    ("done", "trained", "lost", "doubled"),
    [([(0, 20)], [9, 9], 0, 0), ([(0, 13), (14, 20)], [9, 8], 1, 0), ([(0, 20)], [9, 11], 0, 2), ([(1, 20)], [9, 9], 1, 1)],
)
def test_the_count_sees_what_is_lost_and_what_is_doubled(tmp_path, done, trained, lost, doubled):
    """Two epochs of ten tiles, one of them quarantined; also a tile lost and another one doubled, which no sum would show."""
    (tmp_path / "manifest").mkdir()
    (tmp_path / "manifest" / "index.json").write_text(json.dumps({"num_tiles": 10}))
    rows = [dict(epoch=epoch, trained=count, quarantined=1, filtered=0) for epoch, count in enumerate(trained)]
    (tmp_path / "accounting.json").write_text(json.dumps({"epochs": rows}))
    cursor = Cursor(step=1, done=Intervals(done))
    Checkpoints(str(tmp_path / "checkpoints")).save(Checkpoint(cursor, {}, QUARANTINE_SCHEMA.empty_table()))
    assert count_tiles(lambda name: read_file(tmp_path, name), 2) == (20, lost, doubled)
