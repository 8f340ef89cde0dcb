"""A teacher stage grows the cluster and lets it shrink again, under Ray's real autoscaler with nodes on this machine."""

import json
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
import yaml

from tests.cluster.files import ROOT
from tests.cluster.nodes import BIN, environment, kill_all_from, start, wait_for
from tests.cluster.test_local import free_ports

pytestmark = [pytest.mark.ray, pytest.mark.thorough]

HEAD_ID = "f" * 51 + "0" * 5  # the provider gives its own nodes the numbers after it
HEAD = "127.0.0.2"


def autoscaler_file(gcs_address: str) -> dict:
    """A cluster whose teachers each are a node of their own.

    Their type says its memory, as those of our files do: Ray Data asks for some with all but the first teacher. The provider
    is named as an external one, because the defaults of `type: fake_multinode` are missing from the wheel of Ray 2.60.
    """
    commands = ["setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray", "initialization"]
    return {
        "cluster_name": "fake",
        "max_workers": 3,
        "idle_timeout_minutes": 0.1,
        "upscaling_speed": 10,
        "provider": {
            "type": "external",
            "module": "tests.cluster.provider.Provider",
            "launch_multiple": True,
            "head_node_id": HEAD_ID,
            "gcs_address": gcs_address,
        },
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 2}, "node_config": {}, "min_workers": 0, "max_workers": 0},
            "teachers": {
                "resources": {"teacher": 1, "memory": 1_000_000_000, "object_store_memory": 100_000_000},
                "node_config": {},
                "min_workers": 0,
                "max_workers": 3,
            },
        },
        **{f"{name}_commands": [] for name in commands},
        **{"auth": {}, "docker": {}, "file_mounts": {}, "cluster_synced_files": []},
    }


@pytest.fixture
def gcs_address():
    """The address of a head whose autoscaler may start up to three teacher nodes."""
    folder = tempfile.mkdtemp(prefix="csat-fake-", dir="/tmp")  # short: Ray puts sockets below it
    gcs_port, dashboard_port = free_ports(2)
    config, log = Path(folder, "fake.yaml"), Path(folder, "head.log")
    config.write_text(yaml.safe_dump(autoscaler_file(f"{HEAD}:{gcs_port}")))
    command = [str(BIN / "ray"), "start", "--head", "--block", "--node-ip-address", HEAD, "--port", str(gcs_port)]
    command += ["--autoscaling-config", str(config), "--temp-dir", f"{folder}/ray", "--disable-usage-stats"]
    command += ["--dashboard-host", "127.0.0.1", "--dashboard-port", str(dashboard_port), "--num-cpus", "2"]
    command += ["--object-store-memory", "200000000", "--dashboard-agent-listen-port", "0"]
    command += ["--min-worker-port", "0", "--max-worker-port", "0"]
    variables = environment(
        PYTHONPATH=str(ROOT),
        RAY_AUTH_MODE="disabled",
        RAY_FAKE_CLUSTER="1",
        AUTOSCALER_UPDATE_INTERVAL_S="1",
        RAY_enable_autoscaler_v2="1",
        RAY_CLOUD_INSTANCE_ID=HEAD_ID,
        RAY_OVERRIDE_NODE_ID_FOR_TESTING=HEAD_ID,
        RAY_raylet_start_wait_time_s="240",
    )
    head = start(command, log, variables)
    try:
        wait_for("Ray runtime started", log, head)
        yield f"{HEAD}:{gcs_port}"
    finally:
        kill_all_from(folder)
        head.kill()
        head.wait(timeout=30)
        shutil.rmtree(folder, ignore_errors=True)


def test_teachers_come_with_the_work_and_go_after_it(gcs_address, tmp_path):
    stage = subprocess.run(
        [str(BIN / "python"), "tests/cluster/teacher_stage.py"],
        cwd=ROOT,
        env=environment(RAY_ADDRESS=gcs_address, RAY_AUTH_MODE="disabled"),
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert stage.returncode == 0, stage.stdout[-2000:] + stage.stderr[-3000:]
    (line,) = [line for line in stage.stdout.splitlines() if line.startswith("RESULT ")]
    result = json.loads(line.removeprefix("RESULT "))
    assert result["ids"] == list(range(result["num_batches"])), "no row lost, none twice"
    counts = [count for _, count in result["changes"]]
    most = counts.index(max(counts))
    assert counts[0] == 0 and counts[-1] == 0, result
    assert 2 <= counts[most] <= 3, result
    assert counts[: most + 1] == sorted(counts[: most + 1]), result
    assert counts[most:] == sorted(counts[most:], reverse=True), result
    assert result["changes"][-1][0] > result["finished_s"], "nodes must not go before the work is done"
