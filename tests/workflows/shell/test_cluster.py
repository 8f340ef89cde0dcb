"""Which Ray a verb's processes take for theirs."""

import os
import subprocess
import sys

import pytest

ANOTHER = """
import socket
from ray.cluster_utils import Cluster

with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
head = dict(num_cpus=1, object_store_memory=80 * 2**20, include_dashboard=True, dashboard_port=port)
cluster = Cluster(initialize_head=True, head_node_args=head)  # named in ray_current_cluster, as by `ray start`
print("ready", flush=True)
input()
cluster.shutdown()
"""
OURS = """
import ray
from ray.util.state import get_actor
from workflows.shell import cluster
from workflows.shell.config import RayConfig

@ray.remote(num_cpus=0)
class Watch:
    def knows(self):
        try:
            return get_actor(ray.get_runtime_context().get_actor_id()) is not None
        except Exception:
            return None  # nobody was asked: this Ray has no dashboard that could tell

cluster.connect(RayConfig())
watch = Watch.remote()
ray.get(watch.__ray_ready__.remote())
print("ready", flush=True)
input()
print("asked:", ray.get(watch.knows.remote()), flush=True)
"""


def started(script: str) -> subprocess.Popen:
    process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert any(line == "ready\n" for line in process.stdout)
    return process


@pytest.mark.ray
@pytest.mark.thorough
def test_another_ray_on_this_machine_is_not_asked_about_our_actors(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    ours = started(OURS)
    another = started(ANOTHER)  # the latest: "no such actor", it would say
    try:
        said, _ = ours.communicate("\n", timeout=120)
        assert "asked: None" in said
    finally:
        another.communicate("\n", timeout=120)


def test_a_ray_that_does_not_start_is_a_sentence(tmp_path):
    """As where the machine is so busy that Ray's processes are not there in time: then, too, Ray raises a plain exception."""
    no_folder = tmp_path / "file"
    no_folder.touch()
    verb = [sys.executable, "workflows/pretrain.py", "--config", "demo", "--run_folder", str(tmp_path / "run")]
    names = {"RAY_TMPDIR": str(no_folder / "ray")}
    others = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    ended = subprocess.run(verb, env=others | names, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1 and "Traceback" not in ended.stderr
    assert "Ray stopped: it did not start on this machine (" in ended.stderr and "run the same command" in ended.stderr
