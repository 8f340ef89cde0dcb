"""The same job through a cluster of its own: `ray start --head` and `ray job submit --working-dir .`."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from csat.runs.checkpoints import Checkpoints
from csat.runs.recorder import read_metrics
from tests.support.verbs import ROOT, arguments, kill_group

pytestmark = [pytest.mark.ray, pytest.mark.thorough]

RAY = str(Path(sys.executable).with_name("ray"))


def wait_for_port(port: int, process: subprocess.Popen, timeout_s: float = 240) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        assert process.poll() is None, "the head node ended"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.5)
    raise AssertionError(f"nothing listens on port {port} after {timeout_s} s")


@pytest.fixture
def head(tmp_path):
    """A head node with job server on loopback; (GCS address, dashboard address)."""
    ports = []
    for _ in range(3):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            ports.append(probe.getsockname()[1])
    gcs, dashboard, agent = ports
    command = [RAY, "start", "--head", "--block", "--port", str(gcs), "--node-ip-address", "127.0.0.1"]
    command += ["--dashboard-host", "127.0.0.1", "--dashboard-port", str(dashboard), "--num-cpus", "4"]
    command += ["--dashboard-agent-listen-port", str(agent)]  # another Ray on this machine may hold the usual one
    command += ["--object-store-memory", str(300 * 2**20), "--temp-dir", f"/tmp/ray-{os.getpid()}", "--disable-usage-stats"]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_JOB_STOP_WAIT_TIME_S": "40"}
    with (tmp_path / "head.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, env=variables)
    try:
        wait_for_port(dashboard, process)
        yield f"127.0.0.1:{gcs}", f"http://127.0.0.1:{dashboard}"
    finally:
        kill_group(process)


def test_a_submitted_job_trains_and_reports(head, slides, tmp_path):
    """Stopped on the way by `ray job stop`, it commits all that it had trained; submitted again, it ends."""
    _, dashboard = head
    folder = tmp_path / "run"
    settings = dict(train__epochs=6, train__log_every_steps=1, train__checkpoint_every_s=None)
    script = [sys.executable, "workflows/pretrain.py", *arguments(slides, folder, **settings)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def job(*command):
        options = dict(cwd=ROOT, capture_output=True, text=True, timeout=280, env=environment)
        return subprocess.run([RAY, "job", command[0], "--address", dashboard, *command[1:]], **options)

    deadline = time.monotonic() + 60
    while True:
        first = job("submit", "--submission-id", "first", "--no-wait", "--working-dir", ".", "--", *script)
        # The dashboard listens a few seconds before the node's agent can take jobs.
        if "No available agent" not in first.stderr or time.monotonic() > deadline:
            break
        time.sleep(1)
    assert first.returncode == 0, first.stdout[-3000:] + first.stderr[-2000:]
    deadline = time.monotonic() + 250
    while not read_metrics(str(folder)):
        assert time.monotonic() < deadline, job("logs", "first").stdout[-3000:]
        time.sleep(0.1)
    job("stop", "first")
    said = job("logs", "first").stdout
    done = len(Checkpoints(str(folder / "checkpoints")).latest_cursor().done)
    metrics = read_metrics(str(folder))
    assert 0 < done == metrics[-1]["tiles"] < metrics[-1]["tiles_total"] and f"kept: {done:,} of " in said, said[-3000:]

    second = job("submit", "--working-dir", ".", "--", *script)
    assert second.returncode == 0, second.stdout[-3000:] + second.stderr[-2000:]
    assert "succeeded" in second.stdout
    assert f"report:  {folder / 'report.html'}" in second.stdout
    epochs = json.loads((folder / "accounting.json").read_text())["epochs"]
    assert epochs[0]["trained"] == epochs[0]["manifest"] > 50
    assert json.loads((folder / "status.json").read_text())["state"] == "finished"
