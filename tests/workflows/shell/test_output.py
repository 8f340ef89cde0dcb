"""Lines for a person, or JSON objects for a program; a bar, lines, or nothing."""

import ast
import json
import os
import subprocess
import sys
import termios
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from csat.errors import ConfigError
from workflows.shell import output

ROOT = Path(__file__).resolve().parents[3]
# A verb that says one of everything; what a worker prints comes as Ray forwards it.
VERB = r"""
import logging, sys
from dataclasses import dataclass
from csat.errors import ConfigError
from workflows.shell import command_line, output, progress

@dataclass(frozen=True, kw_only=True)
class Verb:
    tiles: int = 3  # to do

def work(config):
    progress.LINE_EVERY_S = 0.0
    logging.getLogger("verb").info("begun with %d", config.tiles)
    print("(RayTrainWorker pid=12) INFO csat.training.loop: a checkpoint", file=sys.stderr)
    print("(RayTrainWorker pid=12) WARNING csat.training.loop: a slow store", file=sys.stderr)
    print("(SplitCoordinator pid=7) of Ray", file=sys.stderr)
    for _ in progress.progress_over(range(config.tiles), "cutting", total=config.tiles, unit="tile"):
        if config.tiles == 5:
            logging.getLogger("verb").info("meanwhile")
    try:
        raise ValueError("inner")
    except ValueError:
        logging.getLogger("verb").warning("one slide is missing", exc_info="trace" in sys.argv)
    if config.tiles == 4:
        raise ConfigError("4 tiles cannot be")
    output.result("dice 0.9\nreport: x", dice=0.9, report="x")
    return 0

sys.exit(command_line.run(work, Verb, "A verb."))
"""


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    page = tmp_path_factory.mktemp("verb") / "verb.py"
    page.write_text(VERB)
    return [sys.executable, str(page)]


@pytest.fixture
def run(command, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return lambda *arguments: subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=200)


def test_lines_for_a_person(run):
    done = run()
    assert (done.returncode, done.stdout) == (0, "dice 0.9\nreport: x\n")
    lines = done.stderr.splitlines()
    assert lines[0].endswith("INFO begun with 3")
    assert lines[1:3] == ["INFO csat.training.loop: a checkpoint", "WARNING csat.training.loop: a slow store"]
    assert lines[3:6] == [f"cutting: {number}/3 tiles" for number in (1, 2, 3)]
    assert lines[6].endswith("WARNING one slide is missing")
    assert len(lines) == 7


def test_quiet_leaves_warnings_and_the_result(run):
    done = run("--quiet")
    assert (done.returncode, done.stdout) == (0, "dice 0.9\nreport: x\n")
    first, second = done.stderr.splitlines()
    assert first == "WARNING csat.training.loop: a slow store" and second.endswith("WARNING one slide is missing")


@pytest.mark.parametrize("flag", [["--log", "json"], ["--log=json"]])
def test_json_is_one_object_a_line(run, flag):
    done = run(*flag)
    assert (done.returncode, done.stdout) == (0, "")
    objects = [json.loads(line) for line in done.stderr.splitlines()]
    assert all(abs(datetime.now(UTC) - datetime.fromisoformat(each["time"])) < timedelta(minutes=5) for each in objects)
    said = [(each["event"], each["level"], each["message"]) for each in objects]
    assert said == [
        ("log", "info", "begun with 3"),
        ("log", "info", "a checkpoint"),
        ("log", "warning", "a slow store"),
        *(("progress", "info", f"cutting: {number}/3 tiles") for number in (1, 2, 3)),
        ("log", "warning", "one slide is missing"),
        ("result", "info", "dice 0.9\nreport: x"),
    ]
    assert (objects[0]["logger"], objects[1]["logger"]) == ("verb", "csat.training.loop")
    assert (objects[3]["what"], objects[3]["done"], objects[3]["total"]) == ("cutting", 1, 3)
    assert (objects[-1]["dice"], objects[-1]["report"]) == (0.9, "x")


def test_json_of_an_error_has_its_exit_code(run):
    done = run("--log", "json", "--quiet", "--tiles", "4")
    *_, last = (json.loads(line) for line in done.stderr.splitlines())
    assert (done.returncode, done.stdout) == (2, "")
    assert (last["event"], last["exit_code"], last["message"]) == ("error", 2, "error: 4 tiles cannot be")


def on_a_terminal(*command):
    """What a command writes to standard error where that is a terminal of 100 columns."""
    leader, follower = os.openpty()
    termios.tcsetwinsize(follower, (24, 100))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=follower)
    os.close(follower)
    said = b""
    try:
        while chunk := os.read(leader, 4096):
            said += chunk
    except OSError:  # Linux says so when the other end is closed
        pass
    os.close(leader)
    assert process.wait(timeout=60) == 0
    return said.decode()


def test_a_bar_on_a_terminal(command):
    said = on_a_terminal(*command)
    assert "\rcutting:" in said and "3/3" in said and "cutting: 1/3 tiles" not in said


def test_a_line_stands_above_the_bar(command):
    lines = on_a_terminal(*command, "--tiles=5").split("\r\n")
    shown = [line.rpartition("\r")[2] for line in lines]  # what a carriage return leaves to be seen
    assert sum(line.endswith("INFO meanwhile") and "cutting" not in line for line in shown) == 5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--quiet", "--verbose"], "give one of the two"),
        (["--log", "yaml"], "--log is text or json, not 'yaml'"),
        (["--log"], "not ''"),
    ],
)
def test_flags_that_cannot_be(arguments, words):
    with pytest.raises(ConfigError, match=words):
        output.without_options(["--a", "1", *arguments])


def test_flags_of_output_are_no_settings():
    given = ["--a", "1", "--log", "json", "--b=2", "--quiet", "--log=text", "c"]
    assert output.without_options(given) == ["--a", "1", "--b=2", "c"]


def test_nothing_is_printed_past_these_flags():
    """Whatever happens is logged, whatever came out is a result: else --quiet and --log json would not have it."""
    own = {"output.py", "interruption.py", "__main__.py"}
    for path in sorted(path for package in ("csat", "teachers", "workflows") for path in (ROOT / package).rglob("*.py")):
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        printed = [node.lineno for node in calls if isinstance(node.func, ast.Name) and node.func.id == "print"]
        assert not printed or path.name in own, f"{path}:{printed}"
