"""The same job through a cluster of its own: `ray start --head` and `ray job submit --working-dir .`."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.workflows.conftest import ROOT, arguments, kill_group

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

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
    with (tmp_path / "head.log").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
    try:
        wait_for_port(dashboard, process)
        yield f"127.0.0.1:{gcs}", f"http://127.0.0.1:{dashboard}"
    finally:
        kill_group(process)


def test_a_submitted_job_trains_and_reports(head, slides, tmp_path):
    _, dashboard = head
    folder = tmp_path / "run"
    script = [sys.executable, "workflows/pretrain.py", *arguments(slides, folder)]
    submit = [RAY, "job", "submit", "--address", dashboard, "--working-dir", ".", "--", *script]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    deadline = time.monotonic() + 60
    while True:
        job = subprocess.run(submit, cwd=ROOT, capture_output=True, text=True, timeout=700, env=environment)
        # The dashboard listens a few seconds before the node's agent can take jobs.
        if "No available agent" not in job.stderr or time.monotonic() > deadline:
            break
        time.sleep(1)
    assert job.returncode == 0, job.stdout[-3000:] + job.stderr[-2000:]
    assert "succeeded" in job.stdout
    assert f"report:  {folder / 'report.html'}" in job.stdout
    epochs = json.loads((folder / "accounting.json").read_text())["epochs"]
    assert epochs[0]["trained"] == epochs[0]["manifest"] > 50
    assert json.loads((folder / "status.json").read_text())["state"] == "finished"
