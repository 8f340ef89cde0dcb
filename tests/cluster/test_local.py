"""The recipe of two nodes on one machine, run as the README says: started, given jobs, stopped; the tests are its steps."""

import json
import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from csat.runs.checkpoints import Checkpoints
from csat.runs.recorder import read_metrics
from tests.cluster.files import CLUSTER, ROOT
from tests.cluster.nodes import BIN, end, environment, running_from, start, wait_for
from tests.support import predicting
from tests.support.verbs import arguments

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


@dataclass
class TwoNodes:
    """The cluster of the script, as it says that it is reached."""

    script: subprocess.Popen
    folder: Path  # its logs, and its token
    address: str  # for jobs

    def job(self, *command: str, **variables: str) -> subprocess.CompletedProcess:
        """`ray job …` with the cluster's token; tried again while the node's agent is not there yet."""
        reached = variables or {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.folder / "token")}
        line = [str(BIN / "ray"), "job", command[0], "--address", self.address, *command[1:]]
        deadline = time.monotonic() + 120
        while True:
            done = subprocess.run(line, cwd=ROOT, env=environment(**reached), capture_output=True, text=True, timeout=280)
            if "No available agent" not in done.stderr or time.monotonic() > deadline:
                return done
            time.sleep(1)


@pytest.fixture(scope="module")
def two_nodes(tmp_path_factory):
    gcs_port, dashboard_port = free_ports(2)
    # What a cluster's file gives its nodes must reach the driver that a job starts.
    variables = environment(
        CPUS="1",
        GCS_PORT=str(gcs_port),
        DASHBOARD_PORT=str(dashboard_port),
        OBJECT_STORE_BYTES=str(100 * 2**20),
        CSAT_CLUSTER_LIMITS="CPU=7",
        RAY_JOB_STOP_WAIT_TIME_S="40",
    )
    log, folder = tmp_path_factory.mktemp("two") / "cluster.log", None
    script = start([str(CLUSTER / "local/two_nodes.sh")], log, variables)
    try:
        said = wait_for("Ctrl-C stops both nodes", log, script)
        folder = re.search(r"RAY_AUTH_TOKEN_PATH=(\S+)/token", said).group(1)
        yield TwoNodes(script, Path(folder), re.search(r"ray job submit --address (\S+) --working-dir \.", said).group(1))
    finally:
        if script.poll() is None:
            end(script)
        for process in running_from(folder) if folder is not None else []:
            process.kill()


def free_ports(count: int) -> list[int]:
    import socket

    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def test_a_job_sees_both_nodes_and_a_stranger_none(two_nodes):
    token = two_nodes.folder / "token"
    assert token.stat().st_mode & 0o077 == 0 and re.fullmatch("[0-9a-f]{64}", token.read_text())
    command = ["submit", "--working-dir", ".", "--", "python", "-c", JOB]
    refused = two_nodes.job(*command, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="another")
    assert refused.returncode != 0 and "NODES" not in refused.stdout
    job = two_nodes.job(*command)
    assert job.returncode == 0, job.stdout[-3000:] + job.stderr[-3000:]
    assert "NODES [('127.0.0.2', 1.0), ('127.0.0.3', 1.0)]" in job.stdout
    assert "WORKED ['127.0.0.2', '127.0.0.3'] CPU=7" in job.stdout


@pytest.fixture(scope="module")
def pretraining(slides, tmp_path_factory):
    """Run folder and command of a job. Of many epochs: the command that stops it takes some of them to start."""
    folder = tmp_path_factory.mktemp("job") / "run"
    settings = dict(train__epochs=12, train__log_every_steps=1, train__checkpoint_every_s=None)
    return folder, [str(BIN / "python"), "workflows/pretrain.py", *arguments(slides, folder, **settings)]


def test_a_job_that_is_stopped_commits_all_that_it_had_trained(two_nodes, pretraining):
    folder, script = pretraining
    first = two_nodes.job("submit", "--submission-id", "first", "--no-wait", "--working-dir", ".", "--", *script)
    assert first.returncode == 0, first.stdout[-3000:] + first.stderr[-2000:]
    deadline = time.monotonic() + 250
    while not read_metrics(str(folder)):
        assert time.monotonic() < deadline, two_nodes.job("logs", "first").stdout[-3000:]
        time.sleep(0.1)
    two_nodes.job("stop", "first")
    said = two_nodes.job("logs", "first").stdout
    done = len(Checkpoints(str(folder / "checkpoints")).latest_cursor().done)
    metrics = read_metrics(str(folder))
    assert 0 < done == metrics[-1]["tiles"] < metrics[-1]["tiles_total"] and f"kept: {done:,} of " in said, said[-3000:]


def test_submitted_again_it_ends_and_reports(two_nodes, pretraining):
    folder, script = pretraining
    again = two_nodes.job("submit", "--working-dir", ".", "--", *script)
    assert again.returncode == 0, again.stdout[-3000:] + again.stderr[-2000:]
    assert "succeeded" in again.stdout
    assert f"report:  {folder / 'report.html'}" in again.stdout
    epochs = json.loads((folder / "accounting.json").read_text())["epochs"]
    assert len(epochs) == 12 and all(row["trained"] == row["manifest"] > 50 for row in epochs)
    assert json.loads((folder / "status.json").read_text())["state"] == "finished"


def test_a_prediction_is_a_job_as_well(two_nodes, slides, tmp_path):
    folder = tmp_path / "out"
    command = [str(BIN / "python"), "workflows/predict.py", *predicting.arguments(slides, folder)]
    job = two_nodes.job("submit", "--working-dir", ".", "--", *command)
    assert job.returncode == 0, job.stdout[-3000:] + job.stderr[-2000:]
    assert f"report: {folder / 'report.html'}" in job.stdout
    accounts = predicting.check_accounts(lambda name: json.loads((folder / name).read_text()))
    assert accounts["slides"]["done"] == len(slides) and accounts["tiles"]["predicted"] == accounts["tiles"]["manifest"]
    assert len(predicting.contents(folder)) == 2 * len(slides)


def test_the_script_leaves_nothing_and_told_nobody_the_token(two_nodes):
    secret = (two_nodes.folder / "token").read_text()
    logs = [path for path in two_nodes.folder.rglob("*") if path.is_file() and path.name != "token"]
    assert len(logs) > 10
    assert not [path for path in logs if secret.encode() in path.read_bytes()], "the token was logged"
    assert end(two_nodes.script) == 143
    assert not running_from(str(two_nodes.folder)) and not two_nodes.folder.exists()
