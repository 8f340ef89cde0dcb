"""The launcher: a job in a group of two ranks on Ray, and in this process; what becomes of a loss that is not finite."""

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import ray.data
from ray.train import TrainingFailedError

from csat.columns import POSITION
from csat.errors import NonFiniteLossError, StoppedError
from csat.runs.folder import RunFolder
from workflows.shell import watch
from workflows.shell.config import RayConfig, WorkerConfig
from workflows.shell.group import Job, train_here, train_in_group

ROWS = 6  # of each stream


@dataclass(frozen=True, kw_only=True)
class Summing(Job):
    """Adds up the positions that come, over all ranks; rank 0 writes the sum."""

    run_folder: str
    num_positions: int = 2 * ROWS
    workers: WorkerConfig = field(default_factory=lambda: WorkerConfig(num_workers=2, cpus_per_worker=0.25))
    ray: RayConfig = field(default_factory=RayConfig)
    stage: str | None = None
    names: tuple[str, ...] = ()
    breaks: bool = False
    waits: bool = False  # until it is asked to stop

    def streams(self):
        return {name: Numbers(1 + index) for index, name in enumerate(self.names)}

    def on_stream(self, name: str) -> None:
        RunFolder(self.run_folder).write_text(f"begun-{name}", "")

    def read_here(self, batch_size, context):
        yield {POSITION: np.arange(ROWS) + context.rank}

    def work(self, context) -> dict[str, Any]:
        mine = sum(
            int(rows[POSITION].sum()) for _ in range(context.num_streams) for rows in context.batches(ROWS) if rows is not None
        )
        while self.waits:
            time.sleep(0.05)
            if any(context.gather(context.is_stopped())):  # a rank may hear of it before another
                raise StoppedError("asked")
        if self.breaks:
            raise NonFiniteLossError("step 1 (student): loss term x is not finite")
        context.on_validation({"sum": mine})
        total = sum(context.gather(mine))
        if context.rank == 0:
            RunFolder(self.run_folder).write_json("sum.json", [total, context.world_size])
        return {"sum": total}


@dataclass(frozen=True)
class Numbers:
    """A stream of so many times 0 … ROWS - 1."""

    times: int

    def __call__(self):
        return ray.data.from_items([{POSITION: self.times * index} for index in range(ROWS)])


def test_in_this_process(tmp_path):
    seen = []
    train_here(Summing(run_folder=str(tmp_path)), on_validation=seen.append)
    assert RunFolder(str(tmp_path)).read_json("sum.json") == [15, 1] and seen == [{"sum": 15}]
    with pytest.raises(StoppedError):
        train_here(Summing(run_folder=str(tmp_path), waits=True), is_stopped=lambda: True)
    with pytest.raises(NonFiniteLossError, match="^warm-up: step 1"):
        train_here(Summing(run_folder=str(tmp_path), stage="warm-up", breaks=True))


@pytest.mark.ray
def test_a_group_takes_its_streams_one_after_the_other(ray_cluster, tmp_path):
    folder = RunFolder(str(tmp_path))
    train_in_group(Summing(run_folder=folder.uri, names=("first", "second")))
    assert folder.read_json("sum.json") == [15 + 2 * 15, 2], "every row of both, once"
    assert (tmp_path / "begun-first").exists() and (tmp_path / "begun-second").exists()
    assert folder.read_json("attempts.json") == {"attempts": 1}
    assert folder.read_json("attempt-001.json")["wall_s"] > 0


@pytest.mark.ray
def test_a_loss_that_is_not_finite_ends_the_group_and_names_the_stage(ray_cluster, tmp_path):
    folder = RunFolder(str(tmp_path))
    with pytest.raises(NonFiniteLossError, match="^warm-up: step 1"):
        train_in_group(Summing(run_folder=folder.uri, stage="warm-up", breaks=True))
    status = folder.read_json("status.json")
    assert status["state"] == "failed" and status["kind"] == "NonFiniteLossError", "and it was not tried again"
    with pytest.raises(StoppedError):
        folder.set_status("running")
        train_in_group(Summing(run_folder=folder.uri, waits=True), is_stopped=lambda: True)
    assert folder.read_json("attempts.json") == {"attempts": 2}


@pytest.mark.ray
def test_a_group_that_does_not_come_though_the_cluster_has_room_ends_in_an_error(ray_cluster, tmp_path, monkeypatch, caplog):
    """Something else holds the CPUs: Ray Train would wait for them without end, and without a word."""
    monkeypatch.setattr(watch, "SAY_EVERY_S", 1.0)
    monkeypatch.setattr(watch, "LEAST_S", 3.0)
    folder = RunFolder(str(tmp_path))
    holder = ray.remote(num_cpus=3.75)(Holder).remote()
    ray.get(holder.hold.remote())
    with pytest.raises(TrainingFailedError, match="no worker .* for .* s; the workers need 0.5 CPUs, of which 0.25 are free"):
        train_in_group(Summing(run_folder=folder.uri, ray=RayConfig(stall_timeout_s=1.0)))
    assert folder.read_json("status.json")["state"] == "failed"
    assert folder.read_json("attempt-001.json")["wall_s"] > 1, "an attempt has its cost, however it ended"
    assert "the run ends after 3 s (ray.stall_timeout_s)" in caplog.text
    ray.kill(holder)


class Holder:
    """Takes CPUs."""

    def hold(self) -> None:
        """It has them."""


@pytest.mark.parametrize(
    ("workers", "has_room", "told"),
    [
        (dict(num_workers=2, cpus_per_worker=0.5), True, "the workers need 1 CPUs, of which 0.25 are free"),
        (dict(num_workers=2, gpus_per_worker=1), True, "need 2 CPUs, of which 0.25 are free and 2 GPUs, of which 1 are free"),
        (dict(num_workers=4), False, "need 4 CPUs and the cluster has 2 now. The run goes on when a node comes"),
    ],
)
def test_room_for_workers(workers, has_room, told):
    found = watch.room_for(WorkerConfig(**workers), {"CPU": 2.0, "GPU": 2.0}, {"CPU": 0.25, "GPU": 1.0})
    assert found[0] == has_room and told in found[1]
