import os

import pytest

from csat.errors import ConfigError
from workflows.rates.commands import role_of, run

BUSY = """
import sys, time
lines, started = open(sys.argv[1], "w"), time.monotonic()
for line in range(3):
    while time.monotonic() - started < 0.6 * (line + 1):
        pass
    print(line, file=lines, flush=True)
time.sleep(0.6)
"""


def test_a_command_is_watched(tmp_path):
    watched = run(["-c", BUSY, str(tmp_path / "lines")], progress=tmp_path / "lines")
    assert watched.seconds > 2.3 and watched.all_bytes > 2**20
    assert 0.6 <= watched.seconds_to(1) < watched.seconds_to(3) < watched.seconds + 1
    seconds, core_s = watched.between(1, 3)
    assert 0.5 < seconds < 3 and 0 < sum(core_s.values()) <= sum(watched.core_s.values()) < watched.seconds + 1
    with pytest.raises(ConfigError, match="too short to be watched"):
        watched.between(7, 9)


FORKS = """
import os, time
for _ in range(2):
    if os.fork() == 0:
        own = bytearray(os.urandom(2**20) * 64)
        time.sleep(1.5)
        os._exit(0)
os.wait(), os.wait()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_that_stays_is_counted_with_its_memory():
    """One that is seen once only, with the command line of its parent, is not: it is about to become another program."""
    watched = run(["-c", FORKS], watch=True)
    assert watched.processes == {"others": 3}
    assert watched.then_bytes == {"others": watched.all_bytes} and watched.all_bytes > 2 * 64 * 2**20


def test_what_a_command_says_is_in_the_error():
    with pytest.raises(ConfigError, match=r"exit code 3\):\nno bread"):
        run(["-c", "import sys; print('no bread'); sys.exit(3)"])
    assert run(["-c", "import sys; sys.exit(3)"], expected=3).seconds > 0


@pytest.mark.parametrize(
    ("command_line", "role"),
    [
        ("ray::MapWorker(MapBatches(PlannedReader)).submit", "reader"),
        ("ray::MapWorker(MapBatches(TeacherStage)).submit", "teacher"),
        ("ray::RayTrainWorker.poll_status", "worker"),
        ("ray::SplitCoordinator.get", "coordinator"),
        ("python workflows/pretrain.py --slides demo", "driver"),
        ("ray::_StatsActor", "ray"),
        ("python handwritten.py", "others"),
    ],
)
def test_processes_have_roles(command_line, role):
    assert role_of(command_line) == role
