"""A Ray cluster of several nodes on this machine, of which any part can be killed.

Nodes are `ray start` in process groups of their own, at addresses of their own.
"""

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path

import psutil

from tests.cluster.nodes import BIN, environment, kill_all_from, wait_for
from tests.support.verbs import ROOT

# The title that Ray gives to the process that plays each part.
TITLES = {"teacher": "TeacherStage", "reader": "PlannedReader", "worker": "TrainWorker", "picky teacher": "TeacherStage_picky"}


class Cluster:
    """A head without CPUs and two nodes of one CPU each, so that any run lies on both, as on a cluster of spot instances."""

    def __init__(self, **variables: str):
        """
        Args:
            variables: Of the environment of every node.
        """
        self.folder = Path(tempfile.mkdtemp(prefix="csat-lab-", dir="/tmp"))  # short: Ray puts sockets below it
        with socket.create_server(("127.0.0.1", 0)) as first, socket.create_server(("127.0.0.1", 0)) as second:
            self.port, dashboard_port = first.getsockname()[1], second.getsockname()[1]
        self.given = variables
        self._started: list[subprocess.Popen] = []
        # A driver that has lost its head gives up after this many seconds, not after Ray's minute.
        self.variables = environment(RAY_AUTH_MODE="disabled", RAY_gcs_rpc_server_reconnect_timeout_s="15")
        self.variables |= {"RAY_raylet_start_wait_time_s": "120", "RAY_worker_niceness": "0", **variables}
        self.nodes: list[subprocess.Popen] = []
        try:
            self._start_all(dashboard_port)
        except BaseException:
            self.stop()
            raise

    def _start_all(self, dashboard_port: int) -> None:
        options = ["--head", "--port", str(self.port), "--temp-dir", str(self.folder / "ray"), "--num-cpus", "0"]
        self.head = self._start([*options, "--include-dashboard", "false", "--dashboard-port", str(dashboard_port)])
        self.add_node()
        self.add_node()

    @property
    def address(self) -> str:
        return f"127.0.0.2:{self.port}"

    def add_node(self) -> None:
        """One more node of one CPU."""
        self.nodes.append(self._start(["--address", self.address, "--num-cpus", "1"]))

    def processes(self, fault: str) -> list[psutil.Process]:
        """Those of the run that play that part, on any node."""
        return [process for node in self.nodes for process in _below(node) if TITLES[fault] in _title(process)]

    def titles(self, node: subprocess.Popen) -> str:
        """What Ray calls the processes of a node, in one line."""
        return " ".join(_title(process) for process in _below(node))

    def node_of_the_run(self, rng: random.Random) -> subprocess.Popen:
        """A node that has some part of the run, and not the driver's own: that one is the head, which is another fault.

        A driver that is started beside several nodes of one machine may join any of them; Ray Train's controller shows which.
        """
        titles = {node.pid: self.titles(node) for node in self.nodes}
        parts = [node for node in self.nodes if any(title in titles[node.pid] for title in TITLES.values())]
        return rng.choice([node for node in parts if "TrainController" not in titles[node.pid]])

    def node_of_a_trainer(self) -> subprocess.Popen:
        """A node that has a trainer of the run, and not the driver's own."""
        for node in self.nodes:
            titles = self.titles(node)
            if TITLES["worker"] in titles and "TrainController" not in titles:
                return node
        raise AssertionError("every trainer is on the driver's own node: try another seed")

    def kill_node(self, node: subprocess.Popen) -> None:
        """SIGKILL to all of a node's processes at once, as a spot instance that goes away."""
        kill_tree(node)
        if node in self.nodes:
            self.nodes.remove(node)

    def stop(self) -> None:
        """SIGKILL to what is left, and the folder goes."""
        for node in self._started:
            kill_tree(node)
        kill_all_from(str(self.folder))
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start(self, options: list[str]) -> subprocess.Popen:
        number = len(self._started) + 1
        log = self.folder / f"node-{number}.log"
        # Each at an address of its own: Ray takes two nodes at one address for one.
        command = [str(BIN / "ray"), "start", "--block", "--node-ip-address", f"127.0.0.{number + 1}", "--disable-usage-stats"]
        command += options
        command += ["--object-store-memory", str(100 * 2**20), "--dashboard-agent-listen-port", "0"]
        command += ["--min-worker-port", "0", "--max-worker-port", "0"]
        with log.open("wb") as file:
            process = subprocess.Popen(
                command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, start_new_session=True, env=self.variables
            )
        self._started.append(process)
        wait_for("Ray runtime started", log, process)
        return process


def _below(node: subprocess.Popen) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        return psutil.Process(node.pid).children(recursive=True)
    return []


def _title(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def kill_tree(node: subprocess.Popen) -> None:
    """SIGKILL to a process and all below it."""
    for process in _below(node):
        with contextlib.suppress(psutil.Error):
            process.send_signal(signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(node.pid, signal.SIGKILL)
    node.wait(timeout=30)
