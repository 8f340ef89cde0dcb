"""Work in processes of its own that start quickly: forks of one that has imported the heavy libraries, and done nothing else.

A process that dies, of whatever, fails the test that asked for it, and leaves the others alone.
"""

import multiprocessing
import pickle
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch.multiprocessing

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tests.support.preloaded"])


def in_a_process(work: Callable[..., Any], *arguments: Any) -> Any:
    """What `work(*arguments)` returns or raises in a process of its own.

    Raises:
        AssertionError: the process died.
    """
    ours, theirs = SERVER.Pipe(duplex=False)
    process = SERVER.Process(target=_work, args=(work, arguments, theirs))
    process.start()
    theirs.close()
    try:
        has_returned, value = ours.recv()
    except EOFError:
        process.join()
        raise AssertionError(f"the process of {work.__qualname__} died, with exit code {process.exitcode}") from None
    finally:
        process.kill()  # where the test ran into its time limit
        process.join()
        ours.close()
    if not has_returned:
        raise value
    return value


def in_two_processes(work: Callable[..., None], *arguments: Any) -> None:
    """`work(rank, *arguments)` in two processes at once."""
    torch.multiprocessing.start_processes(work, args=arguments, nprocs=2, start_method="forkserver")


def _work(work: Callable[..., Any], arguments: tuple, results: Connection) -> None:
    try:
        results.send((True, work(*arguments)))
    except BaseException as error:
        error.add_note(traceback.format_exc())
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # it cannot travel
            error = RuntimeError(traceback.format_exc())
        results.send((False, error))
