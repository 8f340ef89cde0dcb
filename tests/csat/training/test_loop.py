"""The loop on a toy method: accounting, resuming, ranks of different length, and a loss that is not finite."""

import json
import os
from dataclasses import replace

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

CONFIG = TrainConfig(epochs=2, batch_size=4, log_every_steps=2, checkpoint_every_steps=3, checkpoint_every_s=None)


SIZES = ((TILE_PX, TILE_PX), (TILE_PX, 2 * TILE_PX), (12, TILE_PX))


class Killed(Exception):
    pass


def cut_after(stream, num_batches):
    for index, rows in enumerate(stream):
        if index == num_batches:
            raise Killed
        yield rows


def make_trainer(folder, positions, *, method=None, config=CONFIG, plan=None, cut=None, **options):
    def batches(size):
        stream = toy_stream(positions, size, **options)
        return cut_after(stream, cut) if cut else stream

    plan = plan or toy_plan()
    return Trainer(method or ToyMethod(), plan, TrainContext(batches), config, run_folder=str(folder), tile_px=TILE_PX)


def weights_of(trainer):
    return {name: tensor.clone() for name, tensor in trainer.learner.method.state_dict().items()}


def test_streams_follow_each_other_as_if_they_were_one(tmp_path):
    """Epoch 0 from one stream, epoch 1 from the next: the same steps, checkpoints and weights as from a single one."""
    parts = [range(24), range(24, 48)]
    asked = iter(parts)
    context = TrainContext(lambda size: toy_stream(next(asked), size), num_streams=2)
    trainer = Trainer(ToyMethod(), toy_plan(), context, CONFIG, run_folder=str(tmp_path / "two"), tile_px=TILE_PX)
    assert trainer.run().done.pairs() == [[0, 48]]
    assert next(asked, None) is None
    single = make_trainer(tmp_path / "one", range(48))
    single.run()
    for name, tensor in weights_of(single).items():
        torch.testing.assert_close(weights_of(trainer)[name], tensor, rtol=0, atol=0)


def test_a_run_trains_everything_once_and_learns(tmp_path):
    trainer = make_trainer(tmp_path, range(48), bad=(5, 29), config=TrainConfig(epochs=2, batch_size=4, log_every_steps=1))
    cursor = trainer.run()
    assert cursor.counts == {0: [23, 1, 0], 1: [23, 1, 0]}
    assert cursor.done.pairs() == [[0, 48]]
    lines = read_metrics(str(tmp_path))
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert lines[-1]["loss"] < lines[0]["loss"]
    first = lines[0]
    assert first["loss"] == pytest.approx(first["loss/squared"] + 0.5 * first["loss/absolute"], rel=1e-5)
    quarantine = Checkpoints(str(tmp_path / "checkpoints")).load().quarantine.to_pylist()
    assert [(row["position"], row["x_px"], row["reason"]) for row in quarantine] == [
        (5, 50, "unreadable"),
        (29, 290, "unreadable"),
    ]


def test_a_lost_tile_is_noticed(tmp_path):
    with pytest.raises(RuntimeError, match="tile accounting failed: 24 tiles an epoch"):
        make_trainer(tmp_path, [*range(20), *range(21, 48)]).run()


def test_a_doubled_tile_is_noticed(tmp_path):
    make_trainer(tmp_path, range(12), cut=3)._save()  # nothing done yet
    first = make_trainer(tmp_path, range(48), cut=7)
    with pytest.raises(Killed):
        first.run()
    with pytest.raises(RuntimeError, match="came down the stream again"):
        make_trainer(tmp_path, range(48)).run()


@pytest.mark.parametrize(("accumulate", "sizes"), [(1, None), (2, None), (2, SIZES)])
def test_a_killed_run_ends_with_the_weights_of_one_that_was_not(tmp_path, accumulate, sizes):
    config = TrainConfig(
        epochs=2, batch_size=4, accumulate=accumulate, log_every_steps=2, checkpoint_every_steps=3, checkpoint_every_s=None
    )
    options = dict(bad=(7,), config=config, sizes=sizes)
    whole = make_trainer(tmp_path / "whole", range(48), **options)
    whole.run()

    with pytest.raises(Killed):
        make_trainer(tmp_path / "cut", range(48), cut=8 * accumulate, **options).run()
    cursor = Checkpoints(str(tmp_path / "cut" / "checkpoints")).latest_cursor()
    assert 0 < len(cursor.done) < 32, "some steps after the last checkpoint are lost and made again"
    rest = [p for p in range(48) if not cursor.done.contains(np.array([p]))[0]]
    resumed = make_trainer(tmp_path / "cut", rest, **options)
    end = resumed.run()

    assert end.counts == whole.accounts.cursor.counts
    assert resumed.accounts.quarantine.equals(whole.accounts.quarantine), "what was quarantined before the kill is still told"
    assert resumed.accounts.quarantine.num_rows == 1
    for name, tensor in weights_of(whole).items():
        assert torch.equal(tensor, weights_of(resumed)[name]), name
    for name, tensor in whole.learner.average.tensors.items():
        assert torch.equal(tensor, resumed.learner.average.tensors[name]), name
    steps = [line["step"] for line in read_metrics(str(tmp_path / "cut"))]
    assert steps == sorted(set(steps)), "no line is doubled"


def test_a_checkpoint_of_networks_that_are_built_otherwise_is_refused_in_one_sentence(tmp_path):
    """By the trainer, and by the driver before there is one; a checkpoint that fits changes nothing there."""
    make_trainer(tmp_path, range(48)).run()
    checkpoints, method = Checkpoints(str(tmp_path / "checkpoints")), ToyMethod()
    before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    checkpoints.check_fits(method)
    assert all(torch.equal(tensor, before[name]) for name, tensor in method.state_dict().items())
    method.more = torch.nn.Linear(2, 2)
    for resume in (lambda: make_trainer(tmp_path, range(48), method=method), lambda: checkpoints.check_fits(method)):
        with pytest.raises(ConfigError, match=r"does not fit the networks .*more.weight.*train again with another") as caught:
            resume()
        assert "\n" not in str(caught.value)
    Checkpoints(str(tmp_path / "none")).check_fits(method)


def test_images_of_one_step_weigh_alike_however_they_are_grouped(tmp_path):
    """All of a step by size, or one by one: the same weights."""
    ends = []
    for accumulate in (1, 6):
        config = TrainConfig(epochs=2, batch_size=6, accumulate=accumulate, log_every_steps=1)
        trainer = make_trainer(tmp_path / str(accumulate), range(48), bad=(7,), config=config, sizes=SIZES)
        assert trainer.run().counts == {0: [23, 1, 0], 1: [24, 0, 0]}
        ends.append(weights_of(trainer))
    for name, tensor in ends[0].items():
        torch.testing.assert_close(ends[1][name], tensor, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("warmup", [0.0, 0.25])
def test_a_step_has_the_rate_of_the_tiles_done_before_it(tmp_path, warmup):
    """The first step has the whole rate where there is no warm-up; zero is only reached after the last; resumed runs agree."""
    optim = OptimConfig(lr=0.01, warmup=warmup, final_lr=0.0)
    config = replace(CONFIG, log_every_steps=1, optim=optim)

    def rates(folder):
        return [line["lr"] for line in read_metrics(str(tmp_path / folder))]

    make_trainer(tmp_path / "whole", range(48), config=config).run()
    assert rates("whole") == pytest.approx([optim.lr_at(step / 12) for step in range(12)])
    assert rates("whole")[0] == pytest.approx(0.01 if warmup == 0 else 0.0001) and rates("whole")[-1] > 1e-5
    with pytest.raises(Killed):
        make_trainer(tmp_path / "cut", range(48), config=config, cut=8).run()
    done = Checkpoints(str(tmp_path / "cut" / "checkpoints")).latest_cursor().done
    make_trainer(tmp_path / "cut", [p for p in range(48) if not done.contains(np.array([p]))[0]], config=config).run()
    assert rates("cut") == rates("whole")
    make_trainer(tmp_path / "bad", range(48), config=config, bad=(0, 1, 2, 3)).run()  # the first step has no good tile
    assert rates("bad") == rates("whole")[1:]


def test_a_finished_run_does_nothing_more(tmp_path):
    make_trainer(tmp_path, range(48)).run()

    def never(size):
        raise AssertionError("the stream was asked for")

    trainer = Trainer(ToyMethod(), toy_plan(), TrainContext(never), CONFIG, run_folder=str(tmp_path), tile_px=TILE_PX)
    assert trainer.run().step == 12


def test_a_loss_that_is_not_finite_stops_the_run_and_is_named(tmp_path):
    trainer = make_trainer(tmp_path, range(48), method=ToyMethod(nan_at=17))
    with pytest.raises(NonFiniteLossError, match=r"step 5 \(student\): loss term absolute is not finite"):
        trainer.run()
    committed = Checkpoints(str(tmp_path / "checkpoints")).load()
    assert committed.cursor.step == 3
    assert all(torch.isfinite(tensor).all() for tensor in committed.state["method"].values())


def test_a_batch_that_cannot_be_divided_is_refused():
    with pytest.raises(ConfigError, match="10 does not divide into 4 workers x 1 accumulated parts: use 8"):
        TrainConfig(batch_size=10).rows_per_worker(4)


def test_half_precision_trains(tmp_path):
    config = TrainConfig(epochs=2, batch_size=4, precision="bfloat16", log_every_steps=1)
    make_trainer(tmp_path, range(48), config=config).run()
    lines = read_metrics(str(tmp_path))
    assert lines[-1]["loss"] < lines[0]["loss"]


# Rank r of two takes these positions: of every step's four tiles the first two and the last two; the end is ragged.
ALL = list(range(0, 22))
SHARES = [[p for p in ALL if p % 4 in (0, 1)], [p for p in ALL if p % 4 in (2, 3)]]


def _rank(rank, folder, port, sizes):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    config = TrainConfig(epochs=1, batch_size=4, log_every_steps=1, optim=OptimConfig(weight_decay=0.0))
    plan = toy_plan(22, 1)
    trainer = make_trainer(folder, SHARES[rank], config=config, plan=plan, bad=(6, 7), sizes=sizes)
    cursor = trainer.run()
    assert cursor.counts == {0: [20, 2, 0]}
    torch.save(trainer.learner.method.state_dict(), f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("sizes", [None, SIZES], ids=["tiles", "images"])
def test_two_processes_agree_with_one(tmp_path, free_port, sizes):
    """Two ranks with unequal shares, one of them once without a single good tile, end with the weights of one process."""
    config = TrainConfig(epochs=1, batch_size=4, log_every_steps=1, optim=OptimConfig(weight_decay=0.0))
    one = make_trainer(tmp_path / "one", ALL, config=config, plan=toy_plan(22, 1), bad=(6, 7), sizes=sizes)
    one.run()
    (tmp_path / "two").mkdir()
    in_two_processes(_rank, str(tmp_path / "two"), free_port, sizes)
    ranks = [torch.load(tmp_path / "two" / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
    for name, tensor in weights_of(one).items():
        assert torch.equal(ranks[0][name], ranks[1][name]), name
        torch.testing.assert_close(ranks[0][name], tensor, rtol=2e-4, atol=2e-5)
    lines = [read_metrics(str(tmp_path / which)) for which in ("one", "two")]
    assert len(lines[0]) == len(lines[1]) == 6
    np.testing.assert_allclose([line["loss"] for line in lines[0]], [line["loss"] for line in lines[1]], rtol=1e-4)


def test_a_save_that_dies_half_way_leaves_the_last_one(tmp_path):
    with pytest.raises(Killed):
        make_trainer(tmp_path, range(48), cut=4).run()
    half_written = tmp_path / "checkpoints" / "step-00000099"
    half_written.mkdir()
    (half_written / "state.pt").write_bytes(b"half")
    checkpoints = Checkpoints(str(tmp_path / "checkpoints"))
    assert checkpoints.load().cursor.step == 3
    assert json.loads((tmp_path / "checkpoints" / "latest.json").read_text())["name"] == "step-00000003"
