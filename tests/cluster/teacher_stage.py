"""A teacher stage without a teacher: prints, as JSON, how many teacher nodes there were while it worked and after it.

    RAY_ADDRESS=… python tests/cluster/teacher_stage.py

The pool is made as the stream makes it: actors of a fixed share of a node, one at least and three at most.
"""

import json
import time

import ray
import ray.data

NUM_BATCHES = 100
SECONDS_PER_BATCH = 0.5
DOWN_TIMEOUT_S = 120.0


class SlowTeacher:
    """Takes its time, as a large teacher does; what it answers does not matter."""

    def __call__(self, batch):
        time.sleep(SECONDS_PER_BATCH)
        return batch


def num_teacher_nodes() -> int:
    """Living nodes that carry the teachers' resource."""
    return sum(1 for node in ray.nodes() if node["Alive"] and "teacher" in node["Resources"])


def main() -> None:
    ray.init(log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    started = time.monotonic()
    counts: list[tuple[float, int]] = []

    def note() -> int:
        counts.append((round(time.monotonic() - started, 1), num_teacher_nodes()))
        return counts[-1][1]

    note()
    pool = ray.data.ActorPoolStrategy(min_size=1, max_size=3)
    rows = ray.data.range(NUM_BATCHES, override_num_blocks=NUM_BATCHES)
    answered = rows.map_batches(SlowTeacher, batch_size=None, compute=pool, num_cpus=0, resources={"teacher": 1})
    ids = []
    for batch in answered.iter_batches(batch_size=1, prefetch_batches=0):
        ids += batch["id"].tolist()
        note()
    del answered, rows
    finished_s = round(time.monotonic() - started, 1)
    while note() > 0 and time.monotonic() - started < finished_s + DOWN_TIMEOUT_S:
        time.sleep(0.5)
    changes = [counts[i] for i in range(len(counts)) if i == 0 or counts[i][1] != counts[i - 1][1]]
    print(
        "RESULT " + json.dumps({"num_batches": NUM_BATCHES, "ids": sorted(ids), "changes": changes, "finished_s": finished_s})
    )


if __name__ == "__main__":
    main()
