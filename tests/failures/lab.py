"""The failure lab: a Ray cluster of several nodes on this machine, a small run on it, and the count of its tiles.

Nothing is simulated: nodes are `ray start` in process groups of their own, the run is `python workflows/pretrain.py`, a bucket
is a real S3 server, and a killed process gets no chance to say goodbye. What goes wrong is in `kills` and `hazards`.
"""

import contextlib
import io
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from csat.runs.plan import Intervals
from csat.slides.synthetic import make_slides
from tests.cluster.nodes import BIN
from tests.failures.bucket import BUCKET, Bucket
from tests.failures.cluster import Cluster
from tests.support.verbs import ROOT, arguments, kill_group

RUN_LIMIT_S = 300.0  # without a new checkpoint, or until the end: longer is a hang, and a failure of the lab
NUM_EPOCHS = 6
# A reader is far ahead of the others, and has nothing left to do early in a short run.
LONGER = {"train__epochs": 18}
STREAM_GB = 0.006  # so little that readers and teachers are at work until shortly before the end


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


class SmallRun:
    """`pretrain.py` on a cluster of the lab, with a run folder and a log of its own."""

    def __init__(self, uri: str, read: Callable[[str], bytes | None], log: Path, slides: list, **settings: Any):
        """
        Args:
            uri: Of the run folder.
            read: A file of the run folder by its name, None where there is none; asks no proxy.
            settings: Those that differ from `tests.support.verbs.SMALL`, with __ for dots.
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

    def wait_until_it_trains(self) -> None:
        """Until there is one more line of metrics than there was."""
        before, deadline = len(self._read("metrics.jsonl") or b""), time.monotonic() + RUN_LIMIT_S
        while len(self._read("metrics.jsonl") or b"") <= before:
            assert not self.has_ended() and time.monotonic() < deadline, self.said()
            time.sleep(0.05)

    def wait_until_it_commits(self) -> None:
        """Until a checkpoint of the command that was given last is committed, or its driver has ended."""
        deadline = time.monotonic() + RUN_LIMIT_S
        while b" committed: " not in self.log.read_bytes()[self._said_before :] and not self.has_ended():
            assert time.monotonic() < deadline, f"no checkpoint in {RUN_LIMIT_S} s\n{self.said()}"
            time.sleep(0.05)

    def wait_until_counted(self) -> None:
        """Until the run has written its accounting. Judging the student and the report come after, and are not waited for."""
        seen, deadline = "", time.monotonic() + RUN_LIMIT_S
        while self._read("accounting.json") is None:
            if (committed := self.committed()[0]) != seen:
                seen, deadline = committed, time.monotonic() + RUN_LIMIT_S
            assert self.driver.poll() in (None, 0), self.said()
            assert time.monotonic() < deadline, f"no progress in {RUN_LIMIT_S} s\n{self.said()}"
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

    def lines(self, name: str) -> list[int]:
        """The steps of the lines of such a file as metrics.jsonl."""
        return [json.loads(line)["step"] for line in self._read(name).splitlines()]

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
