"""One local Ray cluster for the tests that may share one, and slides that are quickly made."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from csat.slides.synthetic import make_slides
from workflows.shell.interruption import EXIT_CODES

ROOT = Path(__file__).resolve().parents[2]
SMALL = {
    "teacher.name": "stain",
    "data.mpp": 0.5,
    "data.tile_px": 64,
    "manifest.chunk_tiles": 16,
    "manifest.holdout_fraction": 0,
    "student.backbone": "csat_nano",
    "student.decoder_channels": 16,
    "train.batch_size": 16,
    "train.log_every_steps": 2,
    "train.optim.lr": 0.004,
    "workers.cpus_per_worker": 0.25,
    "pool.cpus_per_actor": 0.25,
    "pool.batch_size": 16,
    "readers.max_actors": 1,
    "ray.stream_gb": 0.1,
    "report_tiles": 3,
}
HELD_OUT = {  # where the student is judged at the end, too: that starts four more processes
    "manifest__holdout_fraction": 0.15,
    "manifest__holdout_by": "tile",
    "manifest__holdout_block_tiles": 2,
}


def arguments(slides, run_folder, **settings) -> list[str]:
    """Command line of a small run; settings are given with __ for the dots. Several students stand in the place of its own,
    several teachers in that of its teacher and pool."""
    merged = {**SMALL, "run_folder": run_folder, **{key.replace("__", "."): value for key, value in settings.items()}}
    if any(key.startswith("students") for key in merged):
        merged = {key: value for key, value in merged.items() if not key.startswith("student.")}
    if any(key.startswith("teachers") for key in merged):
        merged = {key: value for key, value in merged.items() if not key.startswith(("teacher.", "pool."))}
    listed = [f"--{key}={'null' if value is None else value}" for key, value in merged.items()]
    return [*listed, f"--slides={json.dumps([str(slide) for slide in slides])}"]


@pytest.fixture(scope="session")
def ray_cluster():
    """A local cluster with four logical CPUs, otherwise as a verb starts one."""
    import ray

    from workflows.shell.cluster import own_variables

    os.environ.update(own_variables())
    ray.init(address="local", num_cpus=4, object_store_memory=300 * 2**20, include_dashboard=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def slides(tmp_path_factory) -> list[Path]:
    """Two small synthetic slides with known nuclei: about 200 tiles of 64 px."""
    return make_slides(tmp_path_factory.mktemp("slides"), num_slides=2, size_px=768, seed=5)


@pytest.fixture
def run_alone():
    """`run_alone(argv, log, verb)`: a verb in a process of its own; whatever it started is killed at the end of the test."""
    with runs_alone() as start:
        yield start


@contextlib.contextmanager
def runs_alone():
    """What the fixture `run_alone` gives, for fixtures that live longer."""
    processes: list[subprocess.Popen] = []

    def start(argv: list[str], log: Path, verb: str = "pretrain", **environment: str) -> subprocess.Popen:
        with log.open("ab") as file:
            process = subprocess.Popen(
                [sys.executable, f"workflows/{verb}.py", *argv],
                cwd=ROOT,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
                start_new_session=True,
            )
        processes.append(process)
        return process

    try:
        yield start
    finally:
        for process in processes:
            kill_group(process)


def interrupt(process: subprocess.Popen, log: Path, signum: int, *, to_group: bool) -> str:
    """A signal to a verb, as a terminal or as `kill` sends it. Returns what it said it keeps; nothing is left running."""
    children, started = psutil.Process(process.pid).children(recursive=True), time.monotonic()
    os.killpg(process.pid, signum) if to_group else process.send_signal(signum)
    code = process.wait(timeout=120)
    said = log.read_text(errors="replace")
    assert code == EXIT_CODES[signum] and time.monotonic() - started < 60, said[-3000:]
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not [child for child in alive if child.status() != psutil.STATUS_ZOMBIE]
    *_, (kept, command) = re.findall(r"interrupted .*; kept: (.*)\nresume with: (.*)", said)
    assert "workflows/" in command
    return kept


def wait_for(is_so: Callable[[], object], process: subprocess.Popen, log: Path) -> None:
    """Until it is so, while the process runs; a test's own time limit ends it, too."""
    deadline = time.monotonic() + 280
    while not is_so():
        assert process.poll() is None and time.monotonic() < deadline, log.read_text(errors="replace")[-3000:]
        time.sleep(0.05)


def kill_group(process: subprocess.Popen) -> None:
    """SIGKILL to a process and all that it started, as a machine that goes away."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=30)
