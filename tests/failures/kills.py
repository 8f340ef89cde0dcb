"""SIGKILL to one part of a run, or to all of a node, at a moment drawn from a seed."""

import random
import time

from tests.failures.cluster import TITLES, kill_tree
from tests.failures.lab import LONGER, Lab, Outcome, SmallRun

ACTOR_STARTS_WITHIN_S = 60.0
# What is killed, and what is promised to happen.
PROMISES = {
    "teacher": "the run continues; another actor answers again what was on its way",
    "reader": "the run continues; another actor reads again what was on its way",
    "worker": "the run continues: all workers restart from the last committed checkpoint",
    "node": "the run continues once another node has come",
    "driver": "the same command, with another number of workers, resumes",
    "head": "the driver ends; the same command, with another number of workers, resumes on a new cluster",
}


def kill(lab: Lab, fault: str, seed: int) -> Outcome:
    """One run, one SIGKILL at a moment drawn from the seed, and the run's end.

    Raises:
        AssertionError: the run took longer than it may, or ended otherwise than promised; with the log's end.
    """
    rng = random.Random(f"{fault}-{seed}")
    run = lab.run(f"{fault}-{seed}", **(LONGER if fault == "reader" else {}))
    num_workers = rng.choice([1, 2])
    run.start(lab.cluster(), num_workers=num_workers)
    run.wait_until_done(rng.uniform(0.02, 0.3 if fault == "reader" else 0.6))
    struck = strike(lab, run, fault, rng, num_workers=3 - num_workers)
    run.wait_until_counted()
    return Outcome(fault=fault, seed=seed, **run.count(), **struck)


def strike(lab: Lab, run: SmallRun, fault: str, rng: random.Random, *, num_workers: int) -> dict[str, float | None]:
    """One SIGKILL to a run that trains, and its next checkpoint; `done_at_kill`, `recovery_s` and `end_s` of an `Outcome`.

    Args:
        num_workers: With which the command is given again, where that is needed.

    Raises:
        AssertionError: as `kill`.
    """
    time.sleep(rng.uniform(0, 0.3))
    cluster, share, end_s, killed_at = lab.cluster(), run.committed()[1], None, time.monotonic()
    if fault in TITLES:
        deadline = time.monotonic() + ACTOR_STARTS_WITHIN_S  # the one that was killed before may not be back yet
        while not (found := cluster.processes(fault)) and not run.has_ended() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert found and not run.has_ended(), f"the run had no {fault} left to kill\n{run.said()}"
        rng.choice(found).kill()
    elif fault == "node":
        cluster.kill_node(cluster.node_of_the_run(rng))
        cluster.add_node()
    elif fault == "driver":
        run.start(cluster, num_workers=num_workers)
    else:
        kill_tree(cluster.head)
        assert run.wait_until_ended() != 0, "the driver said that all went well, without a cluster"
        end_s = round(time.monotonic() - killed_at, 1)
        lab.end_cluster()
        run.start(lab.cluster(), num_workers=num_workers)
    if fault in ("driver", "head"):  # a driver's workers may commit once more before they notice
        run.wait_until_it_commits()
    run.wait_until_done(share + 1e-9)  # and what the log says may be the commit before
    return dict(done_at_kill=round(share, 3), recovery_s=round(time.monotonic() - killed_at, 1), end_s=end_s)
