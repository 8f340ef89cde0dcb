"""Each kill once, all in one run of two teachers and students; `python -m tests.failures.table` makes many runs of each, at
many moments.
"""

import json
import random
from collections import Counter
from dataclasses import asdict

import pytest

from csat.runs.checkpoints import Checkpoint, Checkpoints, Cursor
from csat.runs.plan import Intervals
from csat.runs.quarantine import QUARANTINE_SCHEMA
from tests.failures.kills import PROMISES, strike
from tests.failures.lab import Lab, Outcome, count_tiles, read_file
from tests.failures.scripted import Picky, save_teacher
from tests.failures.table import as_markdown
from tests.support.verbs import HELD_OUT

SMALL = "{backbone: csat_nano, decoder_channels: %d}"
TWO = {"students__nano": SMALL % 16, "students__small": SMALL % 8}
NUM_EPOCHS = 26  # about 100 steps: something is left to train after each kill
FAULTS = ("reader", "teacher", "picky teacher", "worker", "node", "driver", "head")


def two_teachers(folder) -> dict:
    """Settings: nuclei, and one that cannot answer every second tile; each has actors of its own."""
    picky = save_teacher(Picky(), folder / "picky.pt")
    pools = {f"teachers__{name}__pool__cpus_per_actor": 0.25 for name in ("nuclei", "picky")}
    batches = {"teachers__nuclei__pool__batch_size": 16, "teachers__picky__pool__batch_size": 8}
    return dict(teachers__nuclei="stain", teachers__picky="torchscript", teachers__picky__weights=picky, **pools, **batches)


@pytest.fixture(scope="module")
def lab():
    """One lab, whose cluster lives on until the head is killed."""
    with Lab() as lab:
        yield lab


@pytest.fixture(scope="module")
def struck(lab):
    """A run of two teachers and two students, to be killed in part again and again; what came of each kill, by its name."""
    run = lab.run("chain", train__epochs=NUM_EPOCHS, **TWO, **two_teachers(lab.folder), **HELD_OUT)
    run.start(lab.cluster(), num_workers=2)
    run.wait_until_done(0.02)
    return run, {}


@pytest.mark.ray
@pytest.mark.thorough
class TestWhoeverIsKilled:
    """One run meets every kill; its tiles are counted when it has ended."""

    @pytest.mark.parametrize("fault", FAULTS)
    def test_it_goes_on_as_promised(self, lab, struck, fault):
        run, came_of_it = struck
        if fault == "driver":  # resumed with another pool
            run.settings |= {"teachers__picky__pool__batch_size": 4, "teachers__picky__pool__max_actors": 1}
        came_of_it[fault] = strike(lab, run, fault, random.Random(fault), num_workers=2 if fault == "head" else 1)
        assert 0 < came_of_it[fault]["done_at_kill"] < run.committed()[1], run.said()

    def test_no_tile_is_lost_or_doubled(self, struck):
        run, came_of_it = struck
        run.wait_until_counted()
        counts = run.count()
        assert (counts["lost"], counts["doubled"]) == (0, 0) and counts["tiles"] > 1000, (counts, came_of_it)
        lines = {name: run.lines(f"{name}metrics.jsonl") for name in ("", "students/nano/", "students/small/")}
        for name, steps in lines.items():
            assert steps == lines[""] and steps == sorted(set(steps)), f"{name}: each line once, of each student"
        shares = [struck["done_at_kill"] for struck in came_of_it.values()]
        assert shares == sorted(shares) and shares[-1] < 1, came_of_it

    def test_what_a_teacher_has_not_answered_is_the_same_in_every_epoch_and_costs_no_tile(self, struck):
        """The tile alone says whether it is answered: each of those is there once an epoch, whatever was killed."""
        run, _ = struck
        rows = [row for row in run.quarantine() if row["status"] == "unanswered"]
        places = Counter((row["slide"], row["x_px"], row["y_px"], row["reason"]) for row in rows)
        assert len(places) > 20 and set(places.values()) == {NUM_EPOCHS}
        assert {row["reason"] for row in rows} == {"picky.teacher_error", "picky.teacher_nonfinite"}
        accounts = run.read_json("accounting.json")
        assert accounts["teachers"]["picky"]["unanswered"] == len(rows) and accounts["teachers"]["nuclei"]["unanswered"] == 0
        assert accounts["epochs"][0]["trained"] == accounts["epochs"][0]["manifest"]


def test_every_promise_is_kept_to():
    assert set(PROMISES) <= set(FAULTS)


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
