"""Ctrl-C, SIGTERM and their like: what was trained is committed, one line says what is kept, and nothing is left running.

The signals are blocked in all of a verb's threads, and one thread waits for them. So no library's handler is in the way and
nothing is raised in the midst of something else. Ray's own processes inherit the mask: a signal to the whole process group, as
a terminal or `timeout` sends it, does not take them away while they are needed. While a verb trains, the first signal asks its
workers to finish their step and commit. At any other time a run may simply end, since every step can be repeated. A second
signal ends it at once. What comes within a second of the first is no second one: `timeout` signals its command, and then the
command's whole process group.

Only the standard library is loaded here: a page listens before its imports, which take seconds.
"""

import logging
import os
import shlex
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

COMMAND = "csat"  # as pyproject.toml installs it
EXIT_CODES = {
    signal.SIGINT: 130,
    signal.SIGTERM: 143,
    signal.SIGUSR1: 143,  # of a scheduler that warns of its SIGTERM, such as `#SBATCH --signal=USR1@120`
    signal.SIGHUP: 129,  # the terminal went away
}
STOP_WITHIN_S = 22.0  # for the workers to finish a step and commit; after that the run ends as if it had been killed
ONE_WITHIN_S = 1.0  # signals that come together
ASK_WITHIN_S = 5.0  # for the run folder to answer what it holds
IN_WORDS = """Ctrl-C, SIGTERM, SIGUSR1 and SIGHUP end a run within 30 seconds: what is done is committed, and the same command
resumes. A second signal ends it at once."""


class Interrupted(KeyboardInterrupt):
    """Whoever runs the verb asked it to end, and its workers have stopped."""


class _Listener:
    """The state of this process; there is one."""

    def __init__(self):
        self.signum: int | None = None
        self.stop: Callable[[], bool] | None = None
        self.kept: Callable[[], str] | None = None
        self.has_ray = False  # started, or joined
        self.scratch: set[Path] = set()  # folders that go away with the process
        self._ending = threading.Lock()

    def wait(self, signals: set[int]) -> None:
        """What the listening thread does."""
        self.signum = signal.sigwait(signals)
        if self.stop is not None:
            _say(f"{self.name}: finishing the step and writing a checkpoint; a second signal ends at once")
            threading.Thread(target=self._ask, daemon=True).start()
            if (again := _second(signals)) is not None:
                self.signum = again
            else:
                _say(f"the workers have not stopped within {STOP_WITHIN_S:.0f} s")
        self.end()

    @property
    def name(self) -> str:
        return signal.Signals(self.signum).name

    def end(self) -> None:
        """Say what is kept and how to resume, leave no process behind, and end this one. Does not return."""
        with self._ending:  # whoever comes second waits here for the end
            kept = _within(ASK_WITHIN_S, self.kept) if self.kept else "everything: nothing new had started"
            kept = kept or "what the run folder holds, which does not answer now"
            _say(f"interrupted ({self.name}); kept: {kept}\nresume with: {command()}")
            _kill_children()
            for folder in tuple(self.scratch):
                shutil.rmtree(folder, ignore_errors=True)
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            os._exit(EXIT_CODES[self.signum])

    def _ask(self) -> None:
        """Ask the workers to stop. Where none has begun to train there is nothing to wait for."""
        if _within(STOP_WITHIN_S, self.stop) is False:
            self.end()


_listener = _Listener()


def listen() -> None:
    """From here on, signals end this process as the module says. For the main thread of a verb, before any other thread."""
    # What a shell or nohup has told this process to ignore stays ignored.
    signals = {each for each in EXIT_CODES if signal.getsignal(each) is not signal.SIG_IGN}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    threading.Thread(target=_listener.wait, args=(signals,), daemon=True, name="signals").start()


def keeps(kept: Callable[[], str]) -> None:
    """Say here what a verb that is interrupted keeps: read from its run folder when that happens."""
    _listener.kept = kept


def has_ray() -> None:
    """Say here that the verb starts a Ray of its own, which ends with it, or joins one."""
    _listener.has_ray = True


@contextmanager
def scratch_folder(prefix: str) -> Iterator[Path]:
    """A temporary folder that goes away with the context, and where a signal ends the process in it."""
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    _listener.scratch.add(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _listener.scratch.discard(folder)


def leave(code: int) -> None:
    """End the process of a verb that is done, with what it has started, at once. Returns where it has no Ray.

    Ray would end its processes one after the other and wait a second for each to hear SIGTERM, which they have blocked as this
    process has. And on its own way out of a cluster that was joined, beside threads that still wait for an answer, the process
    now and then aborts instead of giving its exit code (Ray 2.60). All that counts is in the run folder by now.
    """
    if not _listener.has_ray:
        return
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    _kill_children()
    os._exit(code)


@contextmanager
def stoppable(stop: Callable[[], bool]) -> Iterator[None]:
    """While the context lasts, an interruption waits for what runs in it to end.

    Args:
        stop: Asks it to end; False: there is nothing that would have to be finished first.

    Raises:
        Interrupted: at the end of the context, if a signal came; also in place of an error that this led to.
    """
    _listener.stop = stop
    try:
        yield
    except Exception as error:
        if _listener.signum is not None:
            raise Interrupted from error
        raise
    finally:
        _listener.stop = None
    if _listener.signum is not None:
        raise Interrupted


def is_interrupted() -> bool:
    """Whether a signal came."""
    return _listener.signum is not None


def end() -> None:
    """End the process, if a signal was the reason; see `_Listener.end`."""
    if _listener.signum is not None:
        _listener.end()


def command() -> str:
    """This process's command line, as a shell takes it: without the interpreter where it was the installed command."""
    _, *called = sys.orig_argv
    if not called or os.path.basename(called[0]) != COMMAND:
        return shlex.join(sys.orig_argv)
    found = shutil.which(COMMAND)
    is_on_path = found is not None and os.path.realpath(found) == os.path.realpath(called[0])
    return shlex.join([COMMAND if is_on_path else called[0], *called[1:]])


def _second(signals: set[int]) -> int | None:
    """The next signal that is one of its own; None where none comes in the time that the workers have."""
    began = time.monotonic()
    while (left := began + STOP_WITHIN_S - time.monotonic()) > 0:
        again = signal.sigtimedwait(signals, left)
        if again is None:
            return None
        if time.monotonic() - began > ONE_WITHIN_S:
            return again.si_signo
    return None


def _within(seconds: float, ask: Callable[[], object]) -> object | None:
    """The answer; None where it does not come in time, or an error comes."""
    answers: list[object] = []
    thread = threading.Thread(target=lambda: answers.append(_quietly(ask)), daemon=True)
    thread.start()
    thread.join(seconds)
    return answers[0] if answers else None


def _quietly(ask: Callable[[], object]) -> object | None:
    try:
        return ask()
    except Exception as error:
        _say(f"{type(error).__name__}: {error}")
        return None


def _kill_children() -> None:
    """SIGKILL to all that this process has started, and what that has started: the Ray of a verb that joined no cluster."""
    import psutil  # not needed by a run that nobody interrupts

    children = psutil.Process().children(recursive=True)
    for child in children:
        with suppress(psutil.Error):  # it is gone
            child.kill()
    deadline = time.monotonic() + 2
    while any(map(_lives, children)) and time.monotonic() < deadline:
        time.sleep(0.01)


def _lives(process) -> bool:
    """Whether a psutil.Process is there, and does not merely wait for whoever inherited it to take note of its end."""
    import psutil

    with suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
