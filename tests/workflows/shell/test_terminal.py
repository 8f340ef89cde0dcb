"""What reaches the terminal: our lines without Ray's prefix, and none of Ray's own."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from workflows.shell.terminal import OwnLines

ROOT = Path(__file__).resolve().parents[3]
OURS = {
    "(RayTrainWorker pid=12) INFO csat.training.loop: a checkpoint": "INFO csat.training.loop: a checkpoint",
    "\x1b[36m(MapWorker(MapBatches(TeacherStage)) pid=12)\x1b[0m a tile failed": "a tile failed",
    "(MapWorker(MapBatches(PlannedReader)) pid=3, ip=10.0.0.2) slow store": "slow store",
    "(2 slides) were not read": "(2 slides) were not read",
    "[0.89, 0.91] over 168 tiles": "[0.89, 0.91] over 168 tiles",
    "17:03:12 INFO teacher stain": "17:03:12 INFO teacher stain",
}
RAYS = (
    "2026-11-29 16:54:32,226\tWARNING __init__.py:28 -- Progress bars disabled. To enable, set …",
    "[2026-11-29 16:54:32,069 E 24909 24909] core_worker.cc:2465: Actor with class name …",
    "\x1b[36m(TrainController pid=2348)\x1b[0m Requesting resources: {'CPU': 1.0} * 1",
    "(SplitCoordinator pid=7) Registered dataset logger for dataset train_1_0",
    "(RayTrainWorker pid=12) 2026-11-29 16:54:32,226\tINFO config.py:1 -- Setting up process group",
    "(RayTrainWorker pid=12) INFO ray.train.torch: Setting up",
    "(raylet) [2026-11-29 16:54:32,069 E 24909 24909] (raylet) node_manager.cc:1: …",
    "(pid=51) Token loaded",
    "(RayTrainWorker pid=3088) Setting up process group for: env:// [rank=0, world_size=1]",
    "(TrainController pid=8) anything",
    "(RayTrainWorker pid=12) Reporting training result 1: TrainingReport(checkpoint=None) from rank 0",
    "(PlacementGroupCleaner pid=9) Exception in thread PlacementGroupCleanerMonitor:",
)


def written(*texts):
    """(what is shown, what was put aside) of these writes."""
    shown, aside = io.StringIO(), []
    stream = OwnLines(shown, aside.append)
    for text in texts:
        stream.write(text)
    return shown.getvalue(), aside


@pytest.mark.parametrize("line", OURS)
def test_our_lines_are_shown_without_a_prefix(line):
    assert written(line + "\n") == (OURS[line] + "\n", [])


@pytest.mark.parametrize("line", RAYS)
def test_rays_lines_are_put_aside_as_they_came(line):
    assert written(line + "\n") == ("", [line])


def test_a_line_may_come_in_pieces():
    assert written("(SplitCoordinator ", "pid=7) Regis", "tered\nours", "\n") == (
        "ours\n",
        ["(SplitCoordinator pid=7) Registered"],
    )


def test_a_bar_is_shown_before_its_line_ends():
    assert written("\rtraining:  10%") == ("\rtraining:  10%", [])


def test_a_trace_behind_a_line_of_ray_goes_with_it():
    """And one behind a line of ours stays."""
    trace = ["Traceback (most recent call last):", '  File "x.py", line 1', ""]
    first = "(RayTrainWorker pid=1) 2026-11-29 16:54:32,226\tERROR x.py:1 -- no answer"
    lines = [first, *(f"(RayTrainWorker pid=1) {line}" for line in trace)]
    assert written("\n".join(lines) + "\n") == ("", lines)
    ours = ["(RayTrainWorker pid=2) the teacher failed", *(f"(RayTrainWorker pid=2) {line}" for line in trace)]
    assert written("\n".join(ours) + "\n") == ("\n".join(["the teacher failed", *trace]) + "\n", [])


PROCESS = """
import os, sys
from pathlib import Path
from workflows.shell import terminal
terminal.quieten()
line = "2026-11-29 16:54:32,226\\tINFO worker.py:1 -- "
print(line + "before", file=sys.stderr)
print("ours")
if len(sys.argv) > 1:
    print(terminal.put_aside(Path(sys.argv[1])).name)
print(line + "after", file=sys.stderr)
os.write(2, b"from C++\\n")
print("ours, too", file=sys.stderr)
terminal.show_what_no_file_has()
"""


def run(*arguments):
    return subprocess.run([sys.executable, "-c", PROCESS, *arguments], cwd=ROOT, capture_output=True, text=True, check=True)


def test_what_was_put_aside_lies_in_a_file(tmp_path):
    done = run(str(tmp_path / "logs"))
    assert (done.stdout, done.stderr) == ("ours\ncsat.log\n", "ours, too\n")
    said = [line.rpartition("-- ")[2] for line in (tmp_path / "logs" / "csat.log").read_text().splitlines()]
    assert said == ["before", "after", "from C++"]


def test_without_a_file_nothing_is_lost():
    done = run()
    assert done.stdout == "ours\n"
    assert [line.rpartition("-- ")[2] for line in done.stderr.splitlines()] == ["from C++", "ours, too", "before", "after"]


def test_it_is_a_terminal_where_the_stream_is_one():
    leader, follower = os.openpty()
    try:
        with os.fdopen(follower, "w") as terminal:
            assert OwnLines(terminal, print).isatty() and not OwnLines(io.StringIO(), print).isatty()
    finally:
        os.close(leader)
