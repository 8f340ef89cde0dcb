"""How the tests are run: what a test that takes its process down costs, and that each test is in one tier."""

import faulthandler
import os
import signal
import subprocess
import sys

import pytest

from tests.conftest import check_tier
from tests.support.forks import in_a_process
from tests.support.verbs import ROOT

CRASH = "faulthandler._sigsegv()"
CRASHING = f"""
import faulthandler, os, signal

def test_before():
    pass

def test_crashes():
    {CRASH}

def test_between():
    pass

def test_is_killed():
    os.kill(os.getpid(), signal.SIGKILL)

def test_after():
    pass
"""


def test_a_process_that_dies_costs_one_test_which_is_named(tmp_path):
    """As `make test` runs them: a segmentation fault, a SIGKILL as of a machine short of memory, an end without a word.

    One segmentation fault: what two that come at once say is mixed, letter by letter.
    """
    pytest.importorskip("xdist")
    (tmp_path / "test_it.py").write_text(CRASHING)
    (tmp_path / "test_more.py").write_text(CRASHING.replace("test_crashes", "test_ends").replace(CRASH, "os._exit(3)"))
    hooks = "pytest_collection_modifyitems, pytest_xdist_make_scheduler"
    (tmp_path / "conftest.py").write_text(f"from tests.conftest import {hooks}\n")
    (tmp_path / "pytest.ini").write_text(f"[pytest]\npythonpath = {ROOT}\n")
    command = subprocess.run(["make", "-n", "test"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    options = command.partition("-m pytest ")[2].partition(" -m ")[0].split()
    assert "-n" in options, command
    command = [sys.executable, "-m", "pytest", *options, "-p", "no:cacheprovider", str(tmp_path)]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280)
    said = result.stdout + result.stderr
    assert result.returncode == 1 and "4 failed, 6 passed" in said, said
    for died in ("it.py::test_crashes", "it.py::test_is_killed", "more.py::test_ends", "more.py::test_is_killed"):
        assert f"crashed while running 'test_{died}" in said, said
    assert "Segmentation fault" in said and "in test_crashes" in said, "where it died"


def test_a_process_of_a_test_that_dies_is_told():
    with pytest.raises(AssertionError, match="the process of _sigsegv died, with exit code -11"):
        in_a_process(faulthandler._sigsegv)
    with pytest.raises(AssertionError, match="exit code -9"):
        in_a_process(_kill_itself)


def test_what_a_process_of_a_test_returns_or_raises_comes_back():
    assert in_a_process(divmod, 17, 5) == (3, 2)
    with pytest.raises(ZeroDivisionError) as caught:
        in_a_process(divmod, 17, 0)
    assert "in _work" in caught.value.__notes__[0], "where it was raised"


def _kill_itself():
    os.kill(os.getpid(), signal.SIGKILL)


class Item:
    """A collected test, as far as tiers look at it."""

    nodeid = "tests/test_x.py::test_x"

    def __init__(self, *marks, fixtures=()):
        self.marks, self.fixturenames = marks, fixtures

    def iter_markers(self, name=None):
        return [mark.mark for mark in self.marks if name in (None, mark.name)]


mark = pytest.mark


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (Item(mark.timeout(301)), "may take 300 s, not 301 s"),
        (Item(fixtures=("ray_cluster",)), "mark it ray"),
        (Item(mark.ray, fixtures=("run_alone",)), "mark it ray and thorough"),
        (Item(mark.ray), "take the session's cluster"),
    ],
    ids=["long", "unmarked", "of its own", "without the cluster"],
)
def test_a_test_in_the_wrong_tier_is_refused(item, words):
    with pytest.raises(pytest.UsageError, match=words):
        check_tier(item)


@pytest.mark.parametrize(
    "item",
    [
        Item(),
        Item(mark.gpu, mark.timeout(600)),
        Item(mark.ray, fixtures=("ray_cluster",)),
        Item(mark.ray, mark.thorough, fixtures=("run_alone",)),
    ],
    ids=["plain", "gpu", "the session's cluster", "thorough"],
)
def test_the_others_are_not(item):
    check_tier(item)
