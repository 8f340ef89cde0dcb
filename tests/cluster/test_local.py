"""The recipe of two nodes on one machine, run as the README says: started, given a job, stopped."""

import re
import subprocess
import time
from pathlib import Path

import pytest

from tests.cluster.files import CLUSTER, ROOT
from tests.cluster.nodes import end, environment, running_from, start, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.thorough]

JOB = """
import os, ray, csat
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On
ray.init(log_to_driver=False)
where = ray.remote(lambda: ray.util.get_node_ip_address())
nodes = sorted((node["NodeManagerAddress"], node["Resources"]["CPU"], node["NodeID"]) for node in ray.nodes())
print("NODES", [node[:2] for node in nodes])
worked = [where.options(scheduling_strategy=On(node[2], soft=False)).remote() for node in nodes]
print("WORKED", ray.get(worked, timeout=120), os.environ["CSAT_CLUSTER_LIMITS"])
"""


def submit(command: list[str], variables: dict[str, str]) -> subprocess.CompletedProcess:
    """The job, tried again while the node's agent is not there yet."""
    deadline = time.monotonic() + 120
    while True:
        done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=250)
        if "No available agent" not in done.stderr or time.monotonic() > deadline:
            return done
        time.sleep(1)


def free_ports(count: int) -> list[int]:
    import socket

    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def test_two_nodes_take_a_job_and_leave_nothing(tmp_path):
    gcs_port, dashboard_port = free_ports(2)
    # What a cluster's file gives its nodes must reach the driver that a job starts.
    variables = environment(
        CPUS="1",
        GCS_PORT=str(gcs_port),
        DASHBOARD_PORT=str(dashboard_port),
        OBJECT_STORE_BYTES=str(100 * 2**20),
        CSAT_CLUSTER_LIMITS="CPU=7",
    )
    log, folder = tmp_path / "cluster.log", None
    script = start([str(CLUSTER / "local/two_nodes.sh")], log, variables)
    try:
        said = wait_for("Ctrl-C stops both nodes", log, script)
        folder = re.search(r"RAY_AUTH_TOKEN_PATH=(\S+)/token", said).group(1)
        token = Path(folder, "token")
        assert token.stat().st_mode & 0o077 == 0 and re.fullmatch("[0-9a-f]{64}", token.read_text())
        address = re.search(r"ray job submit --address (\S+) --working-dir \.", said).group(1)
        command = ["ray", "job", "submit", "--address", address, "--working-dir", ".", "--", "python", "-c", JOB]

        refused = submit(command, environment(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="another"))
        assert refused.returncode != 0 and "NODES" not in refused.stdout

        job = submit(command, environment(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(token)))
        assert job.returncode == 0, job.stdout[-3000:] + job.stderr[-3000:]
        assert "NODES [('127.0.0.2', 1.0), ('127.0.0.3', 1.0)]" in job.stdout
        assert "WORKED ['127.0.0.2', '127.0.0.3'] CPU=7" in job.stdout

        secret = token.read_text()
        logs = [path for path in Path(folder).rglob("*") if path.is_file() and path != token]
        assert len(logs) > 10
        assert not [path for path in logs if secret.encode() in path.read_bytes()], "the token was logged"
    finally:
        status = end(script)
        left = running_from(folder) if folder is not None else []
        for process in left:
            process.kill()
    assert status == 143 and not left and not Path(folder).exists()
