"""The failure lab: a Ray cluster of several nodes on this machine, a small run on it, a SIGKILL, and the count of its tiles.

Nothing is simulated: nodes are `ray start` in process groups of their own, the run is `python workflows/pretrain.py`, and a
killed process gets no chance to say goodbye. Where and when is drawn from a seed.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from csat.data.synthetic import make_slides
from csat.training.checkpoints import Checkpoints
from tests.cluster.nodes import BIN, environment, kill_all_from, wait_for
from tests.workflows.conftest import ROOT, arguments, kill_group

RUN_LIMIT_S = 300.0  # without a new checkpoint, or until the end: longer is a hang, and a failure of the lab
NUM_EPOCHS = 6
STREAM_GB = 0.006  # so little that readers and teachers are at work until shortly before the end
# The title that Ray gives to the process that plays each part.
TITLES = {"teacher": "TeacherStage", "reader": "PlannedReader", "worker": "TrainWorker"}
# What each fault kills, and what is promised to happen.
PROMISES = {
    "teacher": "the run goes on; another actor answers again what was on its way",
    "reader": "the run goes on; another actor reads again what was on its way",
    "worker": "the run goes on: all workers restart from the last committed checkpoint",
    "node": "the run goes on once another node has come",
    "driver": "the same command, with another number of workers, goes on",
    "head": "the driver ends; the same command, with another number of workers, goes on on a new cluster",
}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One run with one fault."""

    fault: str
    seed: int
    tiles: int  # to train, over all epochs
    lost: int  # positions of the plan that the run never counted as done
    doubled: int  # rows that were counted beyond once each
    done_at_kill: float  # share of the tiles that were committed then
    recovery_s: float  # from the kill to the next committed checkpoint
    end_s: float | None = None  # from the kill to the driver's own end, where it was to end


class Cluster:
    """A head without CPUs and two nodes of one CPU each, so that any run lies on both, as on a cluster of spot instances."""

    def __init__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="csat-lab-", dir="/tmp"))  # short: Ray puts sockets below it
        with socket.create_server(("127.0.0.1", 0)) as first, socket.create_server(("127.0.0.1", 0)) as second:
            self.port, dashboard_port = first.getsockname()[1], second.getsockname()[1]
        self._started: list[subprocess.Popen] = []
        # A driver that has lost its head gives up after this many seconds, not after Ray's minute.
        self.variables = environment(RAY_AUTH_MODE="disabled", RAY_gcs_rpc_server_reconnect_timeout_s="15")
        self.variables |= {"RAY_raylet_start_wait_time_s": "120", "RAY_worker_niceness": "0"}
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

    def node_of_the_run(self, rng: random.Random) -> subprocess.Popen:
        """A node that has some part of the run, and not the driver's own: that one is the head, which is another fault.

        A driver that is started beside several nodes of one machine may join any of them; Ray Train's controller shows which.
        """
        titles = {node.pid: " ".join(_title(process) for process in _below(node)) for node in self.nodes}
        parts = [node for node in self.nodes if any(title in titles[node.pid] for title in TITLES.values())]
        return rng.choice([node for node in parts if "TrainController" not in titles[node.pid]])

    def kill_node(self, node: subprocess.Popen) -> None:
        """SIGKILL to all of a node's processes at once, as a spot instance that goes away."""
        _kill_tree(node)
        if node in self.nodes:
            self.nodes.remove(node)

    def stop(self) -> None:
        """SIGKILL to what is left, and the folder goes."""
        for node in self._started:
            _kill_tree(node)
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


class Lab:
    """Runs faults one after another, on one cluster for as long as it lives."""

    def __init__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="csat-lab-runs-"))
        self.slides = make_slides(self.folder / "slides", num_slides=2, size_px=512, seed=5)
        self._cluster: Cluster | None = None
        self._drivers: list[subprocess.Popen] = []

    def __enter__(self) -> "Lab":
        return self

    def __exit__(self, *exception: object) -> None:
        for driver in self._drivers:
            kill_group(driver)
        if self._cluster is not None:
            self._cluster.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, fault: str, seed: int) -> Outcome:
        """One run, one SIGKILL at a moment drawn from the seed, and the run's end.

        Raises:
            AssertionError: the run took longer than it may, or ended otherwise than promised; with the log's end.
        """
        rng = random.Random(f"{fault}-{seed}")
        if self._cluster is None:
            self._cluster = Cluster()
        cluster = self._cluster
        run_folder, log = self.folder / f"{fault}-{seed}", self.folder / f"{fault}-{seed}.log"
        num_workers = rng.choice([1, 2])
        driver = self._drive(run_folder, log, num_workers)
        share = rng.uniform(0.02, 0.6)
        self._wait_until_done(run_folder, log, driver, share)
        time.sleep(rng.uniform(0, 0.3))

        committed, end_s = _committed(run_folder), None
        killed_at = time.monotonic()
        if fault in TITLES:
            found = cluster.processes(fault)
            assert found and driver.poll() is None, f"the run had no {fault} left to kill\n" + log.read_text()[-4000:]
            rng.choice(found).kill()
        elif fault == "node":
            cluster.kill_node(cluster.node_of_the_run(rng))
            cluster.add_node()
        elif fault == "driver":
            kill_group(driver)
            driver = self._drive(run_folder, log, 3 - num_workers)
        else:
            _kill_tree(cluster.head)
            code = self._end(driver, log)
            end_s = time.monotonic() - killed_at
            assert code != 0, "the driver said that all went well, without a cluster"
            cluster.stop()
            self._cluster = cluster = Cluster()
            driver = self._drive(run_folder, log, 3 - num_workers)
        self._wait_until_done(run_folder, log, driver, committed[1] + 1e-9)
        recovery_s = time.monotonic() - killed_at
        self._wait_until_counted(run_folder, log, driver)
        tiles, lost, doubled = count_tiles(run_folder, NUM_EPOCHS)
        shutil.rmtree(run_folder)
        return Outcome(
            fault=fault,
            seed=seed,
            tiles=tiles,
            lost=lost,
            doubled=doubled,
            done_at_kill=round(committed[1], 3),
            recovery_s=round(recovery_s, 1),
            end_s=end_s and round(end_s, 1),
        )

    def _drive(self, run_folder: Path, log: Path, num_workers: int) -> subprocess.Popen:
        settings = dict(
            train__epochs=NUM_EPOCHS,
            train__checkpoint_every_steps=2,
            train__keep_checkpoints=2,
            workers__num_workers=num_workers,
            workers__cpus_per_worker=0.5,
            pool__cpus_per_actor=0.5,
            ray__address=self._cluster.address,
            ray__stream_gb=STREAM_GB,
            ray__stall_timeout_s=120,
        )
        with log.open("ab") as file:
            driver = subprocess.Popen(
                [str(BIN / "python"), "workflows/pretrain.py", *arguments(self.slides, run_folder, **settings)],
                cwd=ROOT,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=self._cluster.variables,
            )
        self._drivers.append(driver)
        return driver

    def _wait_until_done(self, run_folder: Path, log: Path, driver: subprocess.Popen, share: float) -> None:
        """Until at least that share of the tiles is committed, or the driver has ended."""
        seen, deadline = "", time.monotonic() + RUN_LIMIT_S
        while (committed := _committed(run_folder))[1] < share and driver.poll() is None:
            if committed[0] != seen:
                seen, deadline = committed[0], time.monotonic() + RUN_LIMIT_S
            assert time.monotonic() < deadline, f"no progress in {RUN_LIMIT_S} s\n" + log.read_text(errors="replace")[-4000:]
            time.sleep(0.05)

    def _wait_until_counted(self, run_folder: Path, log: Path, driver: subprocess.Popen) -> None:
        """Until the run has written its accounting. Judging the student and the report come after, and are not waited for."""
        deadline = time.monotonic() + RUN_LIMIT_S
        while not (run_folder / "accounting.json").exists():
            assert driver.poll() in (None, 0), log.read_text(errors="replace")[-4000:]
            assert time.monotonic() < deadline, f"no end in {RUN_LIMIT_S} s\n" + log.read_text(errors="replace")[-4000:]
            time.sleep(0.05)
        kill_group(driver)

    def _end(self, driver: subprocess.Popen, log: Path) -> int:
        try:
            return driver.wait(timeout=RUN_LIMIT_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"no end in {RUN_LIMIT_S} s\n" + log.read_text(errors="replace")[-4000:]) from None


def count_tiles(run_folder: Path, num_epochs: int) -> tuple[int, int, int]:
    """(tiles to train, lost, doubled) by what the run wrote.

    The committed cursor says *which* positions are done, as intervals, and accounting.json *how many* rows were trained,
    quarantined or filtered in each epoch: two counts of the same rows, kept apart from the row to the file.
    """
    num_tiles = json.loads((run_folder / "manifest" / "index.json").read_text())["num_tiles"]
    done = Checkpoints(str(run_folder / "checkpoints")).latest_cursor().done
    rows = json.loads((run_folder / "accounting.json").read_text())["epochs"]
    counted = sum(row["trained"] + row["quarantined"] + row["filtered"] for row in rows)
    inside = sum(min(stop, num_epochs * num_tiles) - start for start, stop in done.pairs())
    assert [row["epoch"] for row in rows] == list(range(num_epochs)) and len(done) == inside
    return num_epochs * num_tiles, num_epochs * num_tiles - inside, counted - inside


def write_outcome(outcome: Outcome, path: Path) -> None:
    """One more line of a .jsonl file."""
    with path.open("a") as file:
        file.write(json.dumps(asdict(outcome)) + "\n")


def _committed(run_folder: Path) -> tuple[str, float]:
    """(name of the committed checkpoint, share of the tiles that it has as done); ("", 0.0) where there is none."""
    for _ in range(20):  # the checkpoint may be replaced and deleted between the two reads
        with contextlib.suppress(OSError, ValueError):
            folder = run_folder / "checkpoints"
            if not (folder / "latest.json").exists():
                return "", 0.0
            name = json.loads((folder / "latest.json").read_text())["name"]
            done = json.loads((folder / name / "cursor.json").read_text())["done"]
            total = NUM_EPOCHS * json.loads((run_folder / "manifest" / "index.json").read_text())["num_tiles"]
            return name, sum(stop - start for start, stop in done) / total
    raise AssertionError(f"no readable checkpoint in {run_folder}")


def _below(node: subprocess.Popen) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        return psutil.Process(node.pid).children(recursive=True)
    return []


def _title(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def _kill_tree(node: subprocess.Popen) -> None:
    for process in _below(node):
        with contextlib.suppress(psutil.Error):
            process.send_signal(signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(node.pid, signal.SIGKILL)
    node.wait(timeout=30)
