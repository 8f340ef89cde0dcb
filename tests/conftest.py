"""What every test shares: its tier, the real data, where there are any, and a quiet, bounded use of this machine."""

import os
import socket
from pathlib import Path

import hypothesis
import pytest

from tests.support.verbs import ray_cluster, run_alone, slides  # noqa: F401 (fixtures)

# Before torch or Ray are imported: tests share a few cores, and a first `ray.init` would write a token to the home folder.
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("CSAT_BEST_PRECISION", "float32")  # to the last digit, whatever the machine's best is

hypothesis.settings.register_profile("patient", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("patient")

LIMIT_S = 300  # of any test, its fixtures included; pyproject.toml has the same
SHARED_DATA = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"


def pytest_collection_modifyitems(config, items):
    """Tiers are kept as they are meant, and what takes longest, the tests on the session's cluster, comes first."""
    for item in items:
        check_tier(item)
    items.sort(key=lambda item: not _is_on_the_cluster(item))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """A process that dies takes one test with it."""
    from tests.support.spread import Spread  # where pytest-xdist is used

    return Spread(config, log)


def check_tier(item) -> None:
    """Refuse a test whose marks and fixtures do not fit together, and one that may take too long."""
    names = {mark.name for mark in item.iter_markers()}
    for mark in item.iter_markers("timeout"):
        if mark.args[0] > LIMIT_S and "gpu" not in names:
            raise pytest.UsageError(f"{item.nodeid}: a test may take {LIMIT_S} s, not {mark.args[0]} s")
    if _is_on_the_cluster(item) and "ray" not in names:
        raise pytest.UsageError(f"{item.nodeid} takes the session's Ray cluster: mark it ray")
    if "run_alone" in item.fixturenames and not {"ray", "thorough"} <= names:
        raise pytest.UsageError(f"{item.nodeid} starts a Ray of its own: mark it ray and thorough")
    if "ray" in names and not ("thorough" in names or _is_on_the_cluster(item)):
        raise pytest.UsageError(f"{item.nodeid} needs Ray: take the session's cluster (ray_cluster), or mark it thorough")


def _is_on_the_cluster(item) -> bool:
    return "ray_cluster" in item.fixturenames


@pytest.fixture(scope="session")
def shared_data():
    """`shared_data("slides")` is the folder of that real data set; the test is skipped where it is absent."""

    def folder(name: str) -> Path:
        path = (SHARED_DATA / name).resolve()
        if not path.is_dir():
            pytest.skip(f"needs the real data set ../shared/data/{name}, which is not here")
        return path

    return folder


@pytest.fixture
def free_port() -> int:
    """A TCP port on loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def s3_server():
    """An S3 server on the loopback interface: real HTTP, real multipart, no mocking of clients."""
    from moto.server import ThreadedMotoServer  # slow to import: most tests need no bucket

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(s3_server, monkeypatch, request):
    """A fresh bucket, as "s3://name", reached through the standard environment as a user would."""
    import boto3

    for name, value in {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "not-so-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": "127.0.0.1,localhost",
    }.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    bucket = f"bucket-{abs(hash(request.node.nodeid)):x}"[:60]
    client.create_bucket(Bucket=bucket)
    yield f"s3://{bucket}"
    for item in client.list_objects_v2(Bucket=bucket).get("Contents", []):
        client.delete_object(Bucket=bucket, Key=item["Key"])
    client.delete_bucket(Bucket=bucket)
