"""Several students in one loop: each learns what it would learn alone, resumes exactly, and stops alone where it diverges."""

import logging
import os

import numpy as np
import pytest
import torch
import torch.distributed as dist

from csat.errors import ConfigError, NonFiniteLossError
from csat.runs.checkpoints import Checkpoints
from csat.runs.recorder import read_metrics
from csat.training.config import TrainConfig
from csat.training.context import TrainContext
from csat.training.loop import Trainer
from csat.training.optim import OptimConfig
from tests.support.forks import in_two_processes
from tests.support.toy import TILE_PX, ToyMethod, toy_plan, toy_stream

CONFIG = TrainConfig(epochs=2, batch_size=4, log_every_steps=3, checkpoint_every_steps=3, checkpoint_every_s=None)
NAN_AT = 30  # of the student that diverges: in step 8 of 12
TIMES = ("tiles_per_s", "wait_share", "eta_s", "peak_rss_bytes")  # of a line of metrics


class Killed(Exception):
    pass


def students(nan_at=None):
    return {"wide": ToyMethod(width=6, noise=0.2), "broken": ToyMethod(nan_at), "narrow": ToyMethod(width=2)}


def make_trainer(folder, positions, methods, *, config=CONFIG, plan=None, cut=None, bad=(7,)):
    def batches(size):
        for index, rows in enumerate(toy_stream(positions, size, bad=bad)):
            if index == cut:
                raise Killed
            yield rows

    plan = plan or toy_plan()
    return Trainer(methods, plan, TrainContext(batches), config, run_folder=str(folder), tile_px=TILE_PX)


def rest_of(folder):
    done = Checkpoints(str(folder / "checkpoints")).latest_cursor().done
    return [p for p in range(48) if not done.contains(np.array([p]))[0]]


def learned(folder):
    """What its lines say, apart from the clock."""
    return [{name: value for name, value in line.items() if name not in TIMES} for line in read_metrics(str(folder))]


def states_of(trainer):
    """Student → weights and average."""
    return {
        learner.name: {**learner.method.state_dict(), **{f"mean.{n}": t for n, t in learner.averaged_state().items()}}
        for learner in trainer.learners
    }


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def test_each_learns_what_it_would_learn_alone(tmp_path):
    together = make_trainer(tmp_path / "all", range(48), students())
    cursor = together.run()
    assert cursor.counts == {0: [23, 1, 0], 1: [24, 0, 0]}, "a row counts once, however many learn from it"
    for name, method in students().items():
        alone = make_trainer(tmp_path / name, range(48), method)
        assert alone.run().counts == cursor.counts
        assert_same(states_of(alone)[None], states_of(together)[name])
        assert learned(tmp_path / name) == learned(tmp_path / "all" / "students" / name)
        assert cursor.meters[f"student_tiles/{name}"] == 47 and cursor.meters[f"student_s/{name}"] > 0
    lines = read_metrics(str(tmp_path / "all"))
    assert len(lines) == 4 and {"loss/wide", "loss/broken", "loss/narrow", "wait_share"} <= lines[-1].keys()
    assert lines[-1]["loss/wide"] == learned(tmp_path / "wide")[-1]["loss"]


def test_a_killed_run_ends_as_one_that_was_not(tmp_path):
    whole = make_trainer(tmp_path / "whole", range(48), students())
    whole.run()
    with pytest.raises(Killed):
        make_trainer(tmp_path / "cut", range(48), students(), cut=8).run()
    resumed = make_trainer(tmp_path / "cut", rest_of(tmp_path / "cut"), students())
    assert resumed.step == 6
    assert resumed.run().counts == whole.accounts.cursor.counts
    for name, state in states_of(whole).items():
        assert_same(state, states_of(resumed)[name])
        assert learned(tmp_path / "cut" / "students" / name) == learned(tmp_path / "whole" / "students" / name)


def test_one_that_diverges_stops_alone_and_stays_stopped(tmp_path, caplog):
    """Named in the log; its weights are those before; the others end with the figures that they would have had."""
    whole = make_trainer(tmp_path / "whole", range(48), students())
    whole.run()
    with caplog.at_level(logging.WARNING):
        broken = make_trainer(tmp_path / "broken", range(48), students(NAN_AT))
        assert broken.run().counts == whole.accounts.cursor.counts
    why = "step 8 (student): loss term absolute is not finite"
    assert [record.getMessage() for record in caplog.records] == [
        f"student broken has diverged and stops, the others continue: {why}"
    ]
    before = make_trainer(tmp_path / "before", range(28), ToyMethod(NAN_AT), plan=toy_plan())
    with pytest.raises(RuntimeError, match="accounting"):
        before.run()  # seven steps of the same plan
    assert_same(states_of(before)[None], states_of(broken)["broken"])
    assert learned(tmp_path / "broken" / "students" / "broken") == learned(tmp_path / "before")[:2]
    assert broken.accounts.cursor.meters["student_tiles/broken"] == 27

    with pytest.raises(Killed):
        make_trainer(tmp_path / "cut", range(48), students(NAN_AT), cut=10).run()
    resumed = make_trainer(tmp_path / "cut", rest_of(tmp_path / "cut"), students(NAN_AT))
    assert resumed.step == 9 and str(resumed.learners[1].fault) == why, "the checkpoint knows"
    resumed.run()
    for name in ("wide", "narrow"):
        for trainer in (broken, resumed):
            assert_same(states_of(whole)[name], states_of(trainer)[name])
        assert learned(tmp_path / "cut" / "students" / name) == learned(tmp_path / "whole" / "students" / name)
    assert_same(states_of(broken)["broken"], states_of(resumed)["broken"])


def test_the_run_stops_when_none_is_left(tmp_path):
    methods = {"early": ToyMethod(17), "late": ToyMethod(NAN_AT, width=2)}
    expected = (
        r"every student has diverged: early: step 5 \(student\): loss term absolute is not finite; late: step 8 .* "
        "The last checkpoint is intact"
    )
    with pytest.raises(NonFiniteLossError, match=expected):
        make_trainer(tmp_path, range(48), methods).run()
    assert Checkpoints(str(tmp_path / "checkpoints")).latest_cursor().step == 6


def test_a_checkpoint_of_other_networks_is_refused(tmp_path):
    make_trainer(tmp_path, range(48), students()).run()
    others = {**students(), "narrow": ToyMethod(width=3)}
    with pytest.raises(ConfigError, match="does not fit the networks of this version"):
        Checkpoints(str(tmp_path / "checkpoints")).check_fits(others)
    Checkpoints(str(tmp_path / "checkpoints")).check_fits(students())


ALL = list(range(0, 22))
# Rank r of two takes these positions: of every step's four tiles the first two and the last two; the end is ragged.
SHARES = [[p for p in ALL if p % 4 in (0, 1)], [p for p in ALL if p % 4 in (2, 3)]]
RANKS = TrainConfig(epochs=1, batch_size=4, log_every_steps=1, optim=OptimConfig(weight_decay=0.0))


def ranked(folder, positions):
    """Students without dropout, which draws by rank; one diverges by a tile that only one of two ranks has."""
    methods = {"wide": ToyMethod(width=6), "broken": ToyMethod(14)}
    return make_trainer(folder, positions, methods, config=RANKS, plan=toy_plan(22, 1), bad=(6, 7))


def _rank(rank, folder, port):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    trainer = ranked(folder, SHARES[rank])
    assert trainer.run().counts == {0: [20, 2, 0]}
    torch.save({name: dict(state) for name, state in states_of(trainer).items()}, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_agree_with_one(tmp_path, free_port):
    one = ranked(tmp_path / "one", ALL)
    one.run()
    (tmp_path / "two").mkdir()
    in_two_processes(_rank, str(tmp_path / "two"), free_port)
    ranks = [torch.load(tmp_path / "two" / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
    for name, state in states_of(one).items():
        assert_same(ranks[0][name], ranks[1][name])
        for key, tensor in state.items():
            torch.testing.assert_close(ranks[0][name][key], tensor, rtol=2e-4, atol=2e-5)
    checkpoint = Checkpoints(str(tmp_path / "two" / "checkpoints")).load()
    assert checkpoint.state_of("broken")["fault"]["step"] == 4, "position 14 is in the fourth step"
    assert len(read_metrics(str(tmp_path / "two" / "students" / "broken"))) == 3
