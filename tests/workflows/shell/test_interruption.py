"""Signals to a verb, without Ray: a script that listens as the pages do, with a child in its process group."""

import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from contextlib import suppress

import psutil
import pytest

from tests.support.verbs import ROOT
from workflows.shell.interruption import EXIT_CODES, ONE_WITHIN_S, scratch_folder

# A verb of the same shape: it starts a child, tells what it is at, and what it keeps.
SCRIPT = """
import subprocess, sys, threading, time
sys.path.insert(0, {root!r})
from workflows.shell import interruption
interruption.listen()
interruption.STOP_WITHIN_S = {within}
child = subprocess.Popen([sys.executable, "-c", "import time; print('child', flush=True); time.sleep(200)"])
interruption.keeps(lambda: "12 of 40 tiles")
asked = threading.Event()
def ask():
    asked.set()
    return {has_workers}
try:
    if {trains}:
        with interruption.stoppable(ask):
            print("ready", flush=True)
            asked.wait(60)
            time.sleep({step_s})  # the step that is finished
            print("committed", flush=True)
    else:
        with interruption.scratch_folder("scratch-") as scratch:
            (scratch / "file").touch()
            print("ready", flush=True)
            time.sleep(60)
except KeyboardInterrupt:
    interruption.end()
sys.exit(7)
"""


def begin(tmp_path, *, trains=True, has_workers=True, step_s=0.1, within=20, **options):
    """(process, with its children, what it says); its group is its own."""
    text = SCRIPT.format(root=str(ROOT), trains=trains, has_workers=has_workers, step_s=step_s, within=within)
    (tmp_path / "verb.py").write_text(text)
    log = tmp_path / "log"
    with log.open("wb") as file:
        options = {"stdout": file, "stderr": subprocess.STDOUT, "start_new_session": True, **options}
        process = subprocess.Popen([sys.executable, str(tmp_path / "verb.py"), "--slides", "a b"], **options)
    deadline = time.monotonic() + 60
    while not {"ready", "child"} <= set(log.read_text().split()):
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)
    process.children = psutil.Process(process.pid).children(recursive=True)
    assert process.children
    return process, log


def end_of(process, log):
    """(exit code, seconds, what it said); no process is left."""
    started = time.monotonic()
    code = process.wait(timeout=60)
    seconds = time.monotonic() - started
    _, alive = psutil.wait_procs(process.children, timeout=30)
    assert not alive, "a process is left behind"
    return code, seconds, log.read_text()


@pytest.mark.parametrize("signum", EXIT_CODES, ids=lambda signum: signal.Signals(signum).name)
def test_the_step_is_finished_and_the_rest_is_said(tmp_path, signum):
    process, log = begin(tmp_path)
    os.killpg(process.pid, signum)  # as a terminal does it: the child outlives it for as long as it is needed
    code, _, said = end_of(process, log)
    assert code == EXIT_CODES[signum]
    assert "committed" in said and f"interrupted ({signal.Signals(signum).name}); kept: 12 of 40 tiles\n" in said
    assert said.rstrip().endswith(f"resume with: {sys.executable} {tmp_path}/verb.py --slides 'a b'")


def test_signals_that_come_together_are_one(tmp_path):
    """As `timeout` sends them: to its command, and then to the command's whole group."""
    process, log = begin(tmp_path, step_s=0.5)
    process.send_signal(signal.SIGTERM)
    while "second signal" not in log.read_text():
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGTERM)
    code, _, said = end_of(process, log)
    assert code == 143 and "committed" in said


def test_a_second_signal_ends_at_once(tmp_path):
    process, log = begin(tmp_path, step_s=60)
    process.send_signal(signal.SIGTERM)
    while "second signal" not in log.read_text():
        time.sleep(0.02)
    time.sleep(ONE_WITHIN_S + 0.5)
    process.send_signal(signal.SIGINT)
    code, seconds, said = end_of(process, log)
    assert code == 130 and seconds < 40 and "committed" not in said and "kept: 12 of 40 tiles" in said


def test_workers_that_do_not_stop_are_not_waited_for_longer_than_said(tmp_path):
    process, log = begin(tmp_path, step_s=60, within=1)
    process.send_signal(signal.SIGTERM)
    code, seconds, said = end_of(process, log)
    assert code == 143 and seconds < 40 and "have not stopped within 1 s" in said


@pytest.mark.parametrize("state", [dict(trains=False), dict(has_workers=False, step_s=60)])
def test_where_nothing_trains_there_is_nothing_to_wait_for(tmp_path, state):
    process, log = begin(tmp_path, **state)
    process.send_signal(signal.SIGINT)
    code, seconds, said = end_of(process, log)
    assert code == 130 and seconds < 40 and "kept: 12 of 40 tiles" in said


def test_a_scratch_folder_goes_away_with_the_process(tmp_path):
    process, log = begin(tmp_path, trains=False, env={**os.environ, "TMPDIR": str(tmp_path)})
    assert [path.name for path in tmp_path.glob("scratch-*/*")] == ["file"]
    process.send_signal(signal.SIGTERM)
    assert end_of(process, log)[0] == 143 and not list(tmp_path.glob("scratch-*"))


def test_a_scratch_folder_goes_away_with_its_context():
    with suppress(ValueError), scratch_folder("scratch-") as scratch:
        (scratch / "file").touch()
        raise ValueError
    assert not scratch.exists()


def test_ctrl_c_in_a_terminal(tmp_path):
    """The terminal's own Ctrl-C, to all that runs in it."""
    ours, theirs = pty.openpty()
    process, log = begin(tmp_path, stdin=theirs, preexec_fn=lambda: _own(theirs), start_new_session=False)
    os.write(ours, b"\x03")
    code, _, said = end_of(process, log)
    assert code == 130 and "committed" in said
    os.close(ours), os.close(theirs)


def test_what_a_shell_has_told_it_to_ignore_stays_ignored(tmp_path):
    """As under nohup; SIGTERM still ends it."""
    process, log = begin(tmp_path, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    process.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert end_of(process, log)[0] == 143


@pytest.mark.parametrize("verb", ["doctor", "pretrain", "finetune", "tune", "evaluate", "predict", "export", "benchmark"])
def test_every_verb_listens_before_its_imports(tmp_path, verb):
    with (tmp_path / "log").open("wb") as log:
        command = [sys.executable, "-v", f"workflows/{verb}.py", "--help"]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=log)
    deadline = time.monotonic() + 60
    while not _blocks(process.pid, signal.SIGINT):  # from then on; it ends a tenth of a second later at the earliest
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 130
    said = (tmp_path / "log").read_text(errors="replace")
    assert "interrupted (SIGINT)" in said and "import 'ray'" not in said


def _blocks(pid, signum):
    with open(f"/proc/{pid}/status") as status:
        (mask,) = (line.split()[1] for line in status if line.startswith("SigBlk"))
    return bool(int(mask, 16) >> (signum - 1) & 1)


def _own(terminal: int) -> None:
    """The terminal becomes that of this process, the leader of a session of its own."""
    os.setsid()
    fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)


DONE = """
import signal, subprocess, sys
sys.path.insert(0, {root!r})
from workflows.shell import interruption
interruption.listen()
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(200)"])  # deaf to SIGTERM, as this process is
if {has_ray}:
    interruption.has_ray()
print(child.pid)
interruption.leave(3)
print("returned", flush=True)
child.kill()
child.wait()
"""


@pytest.mark.parametrize("has_ray", [True, False])
def test_a_verb_that_is_done_leaves_at_once_with_what_it_has_started(has_ray):
    text = DONE.format(root=str(ROOT), has_ray=has_ray)
    ended = subprocess.run([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True, timeout=60)
    child, *rest = ended.stdout.split()
    assert (ended.returncode, rest) == ((3, []) if has_ray else (0, ["returned"]))
    with suppress(psutil.NoSuchProcess):
        assert psutil.Process(int(child)).status() == psutil.STATUS_ZOMBIE, "it waits for nobody but whoever inherited it"
