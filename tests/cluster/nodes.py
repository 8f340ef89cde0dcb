"""Starting Ray's nodes in processes of their own, and ending those and no others."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from tests.cluster.files import ROOT

BIN = Path(sys.executable).parent
START_TIMEOUT_S = 300.0


def environment(**variables: str) -> dict[str, str]:
    """This environment, with the `ray` and `python` of the tests first in the path."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_") and name != "PYTHONPATH"}
    return {**kept, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1", **variables}


def start(command: list[str], log: Path, variables: dict[str, str]) -> subprocess.Popen:
    """A command in a process group of its own."""
    with log.open("wb") as file:
        return subprocess.Popen(
            command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, start_new_session=True, env=variables
        )


def wait_for(text: str, log: Path, process: subprocess.Popen) -> str:
    """The log, once it says `text`."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while text not in (said := log.read_text(errors="replace")):
        assert process.poll() is None, said[-3000:]
        assert time.monotonic() < deadline, said[-3000:]
        time.sleep(0.5)
    return said


def end(process: subprocess.Popen) -> int:
    """SIGTERM, as a user or a scheduler sends it; the exit status."""
    process.send_signal(signal.SIGTERM)
    return process.wait(timeout=60)


def running_from(folder: str) -> list[psutil.Process]:
    """Processes that have that folder in their command line: Ray's, when it is their temporary folder."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and any(folder in part for part in process.cmdline()):
                found.append(process)
    return found


def kill_all_from(folder: str) -> None:
    """SIGKILL to what `running_from` finds."""
    for process in running_from(folder):
        with contextlib.suppress(psutil.Error):
            process.kill()
