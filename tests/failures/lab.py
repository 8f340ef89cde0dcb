"""The failure lab: a Ray cluster of several nodes on this machine, a small run on it, and the count of its tiles.

Nothing is simulated: nodes are `ray start` in process groups of their own, the run is `python workflows/pretrain.py`, a bucket
is a real S3 server, and a killed process gets no chance to say goodbye. What goes wrong is in `kills` and `hazards`.
"""

import contextlib
import io
import json
import logging
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq

from csat.data.plan import Intervals
from csat.data.synthetic import make_slides
from tests.cluster.nodes import BIN, environment, kill_all_from, wait_for
from tests.failures.proxy import FaultyStore
from tests.workflows.conftest import ROOT, arguments, kill_group

RUN_LIMIT_S = 300.0  # without a new checkpoint, or until the end: longer is a hang, and a failure of the lab
NUM_EPOCHS = 6
# A reader is far ahead of the others, and has nothing left to do early in a short run.
LONGER = {"train__epochs": 18}
STREAM_GB = 0.006  # so little that readers and teachers are at work until shortly before the end
# The title that Ray gives to the process that plays each part.
TITLES = {"teacher": "TeacherStage", "reader": "PlannedReader", "worker": "TrainWorker"}
BUCKET = "lab"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One run with one fault."""

    fault: str
    seed: int
    tiles: int  # to train, over all epochs
    lost: int  # positions of the plan that the run never counted as done
    doubled: int  # rows that were counted beyond once each
    quarantined: int = 0  # rows among them that could not be trained, each with its reason
    done_at_kill: float | None = None  # share of the tiles that were committed then
    recovery_s: float | None = None  # from the fault to the next committed checkpoint
    end_s: float | None = None  # from the fault to the driver's own end, where it was to end
    note: str = ""  # what the fault amounted to


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

    def node_of_the_run(self, rng: random.Random) -> subprocess.Popen:
        """A node that has some part of the run, and not the driver's own: that one is the head, which is another fault.

        A driver that is started beside several nodes of one machine may join any of them; Ray Train's controller shows which.
        """
        titles = {node.pid: " ".join(_title(process) for process in _below(node)) for node in self.nodes}
        parts = [node for node in self.nodes if any(title in titles[node.pid] for title in TITLES.values())]
        return rng.choice([node for node in parts if "TrainController" not in titles[node.pid]])

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


class Bucket:
    """A real S3 server on loopback. The cluster sees it through `proxy`, which spoils answers; the lab itself does not."""

    def __init__(self):
        import boto3
        from moto.server import ThreadedMotoServer  # slow to import: most faults need no bucket

        logging.getLogger("werkzeug").setLevel(logging.WARNING)  # not a line for every request
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        host, port = self._server.get_host_and_port()
        keys = {"aws_access_key_id": "testing", "aws_secret_access_key": "not-so-secret", "region_name": "us-east-1"}
        self.client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", **keys)
        self.client.create_bucket(Bucket=BUCKET)
        self.proxy = FaultyStore(f"http://{host}:{port}")

    @property
    def variables(self) -> dict[str, str]:
        """The environment in which a user's programs find the bucket."""
        return {
            "AWS_ENDPOINT_URL": self.proxy.endpoint,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "not-so-secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_MAX_ATTEMPTS": "2",
            "NO_PROXY": "127.0.0.0/8,localhost",
        }

    def put(self, name: str, data: bytes) -> str:
        """Store an object; its URI."""
        self.client.put_object(Bucket=BUCKET, Key=name, Body=data)
        return f"s3://{BUCKET}/{name}"

    def delete(self, name: str) -> None:
        """Remove an object."""
        self.client.delete_object(Bucket=BUCKET, Key=name)

    def read(self, name: str) -> bytes | None:
        """An object's bytes; None where there is none."""
        try:
            return self.client.get_object(Bucket=BUCKET, Key=name)["Body"].read()
        except self.client.exceptions.NoSuchKey:
            return None

    def close(self) -> None:
        """End proxy and server."""
        self.proxy.close()
        self._server.stop()


class SmallRun:
    """`pretrain.py` on a cluster of the lab, with a run folder and a log of its own."""

    def __init__(self, uri: str, read: Callable[[str], bytes | None], log: Path, slides: list, **settings: Any):
        """
        Args:
            uri: Of the run folder.
            read: A file of the run folder by its name, None where there is none; asks no proxy.
            settings: Those that differ from `tests.workflows.conftest.SMALL`, with __ for dots.
        """
        self.uri, self.log, self.slides, self.settings = uri, log, slides, settings
        self.num_epochs = settings.get("train__epochs", NUM_EPOCHS)
        self._read = read
        self.driver: subprocess.Popen | None = None

    def start(self, cluster: Cluster, *, num_workers: int) -> None:
        """Give the command, for the first time or again."""
        self.stop()
        settings = dict(
            train__epochs=self.num_epochs,
            train__checkpoint_every_steps=2,
            train__keep_checkpoints=2,
            workers__num_workers=num_workers,
            workers__cpus_per_worker=0.5,
            pool__cpus_per_actor=0.5,
            ray__address=cluster.address,
            ray__stream_gb=STREAM_GB,
            ray__stall_timeout_s=120,
        )
        argv = arguments(self.slides, self.uri, **(settings | self.settings))
        self._said_before = self.log.stat().st_size
        with self.log.open("ab") as file:
            self.driver = subprocess.Popen(
                [str(BIN / "python"), "workflows/pretrain.py", *argv],
                cwd=ROOT,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=cluster.variables,
            )

    def stop(self) -> None:
        """SIGKILL to the driver, if there is one."""
        if self.driver is not None:
            kill_group(self.driver)

    def has_ended(self) -> bool:
        """Whether the driver ended by itself."""
        return self.driver.poll() is not None

    def wait_until_done(self, share: float) -> None:
        """Until at least that share of the tiles is committed, or the driver has ended."""
        seen, deadline = "", time.monotonic() + RUN_LIMIT_S
        while (committed := self.committed())[1] < share and not self.has_ended():
            if committed[0] != seen:
                seen, deadline = committed[0], time.monotonic() + RUN_LIMIT_S
            assert time.monotonic() < deadline, f"no progress in {RUN_LIMIT_S} s\n{self.said()}"
            time.sleep(0.05)

    def wait_until_it_commits(self) -> None:
        """Until a checkpoint of the command that was given last is committed, or its driver has ended."""
        deadline = time.monotonic() + RUN_LIMIT_S
        while b" committed: " not in self.log.read_bytes()[self._said_before :] and not self.has_ended():
            assert time.monotonic() < deadline, f"no checkpoint in {RUN_LIMIT_S} s\n{self.said()}"
            time.sleep(0.05)

    def wait_until_counted(self) -> None:
        """Until the run has written its accounting. Judging the student and the report come after, and are not waited for."""
        deadline = time.monotonic() + RUN_LIMIT_S
        while self._read("accounting.json") is None:
            assert self.driver.poll() in (None, 0), self.said()
            assert time.monotonic() < deadline, f"no end in {RUN_LIMIT_S} s\n{self.said()}"
            time.sleep(0.1)
        self.stop()

    def wait_until_ended(self) -> int:
        """The driver's exit code."""
        try:
            return self.driver.wait(timeout=RUN_LIMIT_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"no end in {RUN_LIMIT_S} s\n{self.said()}") from None

    def said(self, num_chars: int = 4000) -> str:
        """The end of the log. Ray's own lines may come after what the driver said last."""
        return self.log.read_text(errors="replace")[-num_chars:]

    def committed(self) -> tuple[str, float]:
        """(name of the committed checkpoint, share of the tiles that it has as done); ("", 0.0) where there is none."""
        for _ in range(20):  # the checkpoint may be replaced and deleted between the two reads
            with contextlib.suppress(OSError, ValueError, TypeError):
                if (latest := self._read("checkpoints/latest.json")) is None:
                    return "", 0.0
                name = json.loads(latest)["name"]
                done = json.loads(self._read(f"checkpoints/{name}/cursor.json"))["done"]
                total = self.num_epochs * json.loads(self._read("manifest/index.json"))["num_tiles"]
                return name, sum(stop - start for start, stop in done) / total
        raise AssertionError(f"no readable checkpoint in {self.uri}")

    def count(self) -> dict[str, int]:
        """`tiles`, `lost`, `doubled` and `quarantined`, as an `Outcome` has them."""
        tiles, lost, doubled = count_tiles(self._read, self.num_epochs)
        return dict(tiles=tiles, lost=lost, doubled=doubled, quarantined=len(self.quarantine()))

    def quarantine(self) -> list[dict[str, Any]]:
        """The tiles that the committed checkpoint has as quarantined or filtered, a row each."""
        table = self._read(f"checkpoints/{self.committed()[0]}/quarantine.parquet")
        return pq.read_table(io.BytesIO(table)).to_pylist()

    def read_json(self, name: str) -> Any:
        """A file of the run folder, decoded."""
        return json.loads(self._read(name))


class Lab:
    """Where faults happen one after another, on one cluster for as long as it lives."""

    def __init__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="csat-lab-runs-"))
        self.slides = make_slides(self.folder / "slides", num_slides=2, size_px=512, seed=5)
        self._cluster: Cluster | None = None
        self._bucket: Bucket | None = None
        self._runs: list[SmallRun] = []

    def __enter__(self) -> "Lab":
        return self

    def __exit__(self, *exception: object) -> None:
        for run in self._runs:
            run.stop()
        self.end_cluster()
        if self._bucket is not None:
            self._bucket.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def cluster(self, **variables: str) -> Cluster:
        """The cluster; a new one where there is none, or one with other variables in its environment."""
        if self._cluster is None or self._cluster.given != variables:
            self.end_cluster()
            self._cluster = Cluster(**variables)
        return self._cluster

    def end_cluster(self) -> None:
        """SIGKILL to all of the cluster."""
        if self._cluster is not None:
            self._cluster.stop()
        self._cluster = None

    def bucket(self) -> Bucket:
        """The bucket, made when it is first asked for."""
        if self._bucket is None:
            self._bucket = Bucket()
        return self._bucket

    def run(self, name: str, *, slides: list | None = None, folder: Path | None = None, **settings: Any) -> SmallRun:
        """A run with its folder on this disk."""
        folder = folder or self.folder / name
        run = SmallRun(str(folder), lambda file: read_file(folder, file), self._log(name), slides or self.slides, **settings)
        self._runs.append(run)
        return run

    def run_in_bucket(self, name: str, *, slides: list, **settings: Any) -> SmallRun:
        """A run with its folder in the bucket."""
        bucket, prefix = self.bucket(), f"runs/{name}"
        settings |= {"readers__cache_folder": self.folder / f"{name}-cache"}
        run = SmallRun(
            f"s3://{BUCKET}/{prefix}", lambda file: bucket.read(f"{prefix}/{file}"), self._log(name), slides, **settings
        )
        self._runs.append(run)
        return run

    def _log(self, name: str) -> Path:
        log = self.folder / f"{name}.log"
        log.touch()
        return log


def read_file(folder: Path, name: str) -> bytes | None:
    """A file's bytes; None where there is none."""
    path = folder / name
    return path.read_bytes() if path.exists() else None


def count_tiles(read: Callable[[str], bytes | None], num_epochs: int) -> tuple[int, int, int]:
    """(tiles to train, lost, doubled) by what the run wrote.

    The committed cursor says *which* positions are done, as intervals, and accounting.json *how many* rows were trained,
    quarantined or filtered in each epoch: two counts of the same rows, kept apart from the row to the file.

    Args:
        read: A file of the run folder, by its name.
    """
    num_tiles = json.loads(read("manifest/index.json"))["num_tiles"]
    name = json.loads(read("checkpoints/latest.json"))["name"]
    done = Intervals(json.loads(read(f"checkpoints/{name}/cursor.json"))["done"])
    rows = json.loads(read("accounting.json"))["epochs"]
    counted = sum(row["trained"] + row["quarantined"] + row["filtered"] for row in rows)
    inside = sum(min(stop, num_epochs * num_tiles) - start for start, stop in done.pairs())
    assert [row["epoch"] for row in rows] == list(range(num_epochs)) and len(done) == inside
    return num_epochs * num_tiles, num_epochs * num_tiles - inside, counted - inside


def write_outcome(outcome: Outcome, path: Path) -> None:
    """One more line of a .jsonl file."""
    with path.open("a") as file:
        file.write(json.dumps(asdict(outcome)) + "\n")


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
