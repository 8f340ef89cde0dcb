"""What every test shares: the real data, where there is any, and a quiet, bounded use of this machine."""

import os
import socket
from pathlib import Path

import pytest

# Before torch or Ray are imported: tests share a few cores, and a first `ray.init` would write a token to the home folder.
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("OMP_NUM_THREADS", "2")

SHARED_DATA = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"


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
