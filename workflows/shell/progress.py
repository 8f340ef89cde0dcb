"""How far a verb is: a bar on a terminal, a line now and then elsewhere, nothing with --quiet."""

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import ray
from tqdm import tqdm

from workflows.shell import output

T = TypeVar("T")

LINE_EVERY_S = 15.0


class Progress:
    """Shows how much of a known amount of work is done, until the context ends.

    Args:
        what: Is done, such as "tiling".
        total: Of it.
        unit: In the singular, such as "slide".
    """

    def __init__(self, what: str, *, total: int, unit: str):
        self.what, self.total, self.unit = what, total, unit
        manner = output.manner()
        self._is_bar = manner.shows_progress and not manner.is_json and sys.stderr.isatty()
        self._is_lines = manner.shows_progress and not self._is_bar
        self._bar = tqdm(total=total, unit=unit, desc=what, disable=not self._is_bar)
        self._last_line, self._last = time.monotonic(), None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Nothing more is shown; a bar stays as it is."""
        self._bar.close()

    def show(self, done: int, said: str = "", *, is_last: bool = False, **facts: Any) -> None:
        """So much is done; may be called as often as one likes.

        Args:
            said: What a person wants to know beside it.
            is_last: Show it in any case.
            facts: What a program wants to know beside it; JSON-ready.
        """
        if self._is_bar:
            self._bar.n, self._bar.total = done, self.total
            self._bar.set_postfix_str(said)
        elif self._is_lines and (done, said) != self._last and (is_last or time.monotonic() - self._last_line >= LINE_EVERY_S):
            text = f"{self.what}: {done:,}/{self.total:,} {self.unit}s" + (f" | {said}" if said else "")
            output.progress(text, what=self.what, unit=self.unit, done=done, total=self.total, **facts)
            self._last_line, self._last = time.monotonic(), (done, said)


def progress_over(items: Iterable[T], what: str, *, total: int, unit: str) -> Iterator[T]:
    """The items, one after the other, shown as they are taken."""
    with Progress(what, total=total, unit=unit) as progress:
        for number, item in enumerate(items, start=1):
            yield item
            progress.show(number)


class ProgressDisplay:
    """Shows a board's figures until the context ends.

    Args:
        board: A `ProgressBoard`.
        total: Tiles.
        on_first: Called once, by a thread, when there are figures: then the workers train, and this process waits.
    """

    def __init__(self, board: ray.actor.ActorHandle, *, total: int, on_first: Callable[[], object] = lambda: None):
        self.board = board
        self.total = total
        self.on_first = on_first
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._show, daemon=True)

    def __enter__(self) -> "ProgressDisplay":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join(timeout=10)

    def _show(self) -> None:
        is_begun = False
        with Progress("training", total=self.total, unit="tile") as progress:
            while True:
                is_last = self._stop.wait(1.0)
                try:
                    figures = ray.get(self.board.read.remote(), timeout=5)
                except Exception:  # the display must never end a run: the board may be gone with its node
                    figures = {}
                if figures:
                    if not is_begun:
                        # No daemon: a process that ended in the midst of loading a library would abort.
                        threading.Thread(target=self.on_first).start()
                        is_begun = True
                    progress.show(figures["tiles"], describe(figures), is_last=is_last, figures=figures)
                if is_last:
                    return


def describe(figures: dict[str, Any]) -> str:
    """One line: the step, how fast, how much of the time the trainer waits, how it learns, how long it will take."""
    eta = figures["eta_s"]
    left = f" | ETA {time.strftime('%H:%M:%S', time.gmtime(eta))}" if eta is not None else ""
    days = f" {int(eta // 86400)}d" if eta is not None and eta >= 86400 else ""
    return (
        f"step {figures['step']} | {figures['tiles_per_s']:.1f} tiles/s | waiting {figures['wait_share']:.0%} | "
        f"{_losses(figures)}{left}{days}"
    )


def _losses(figures: dict[str, Any]) -> str:
    """Of the only student, or of each by its name."""
    if "loss" in figures:
        return f"loss {figures['loss']:.4f}"
    of_each = {name.removeprefix("loss/"): value for name, value in figures.items() if name.startswith("loss/")}
    return "loss " + ", ".join(f"{name} {value:.4f}" for name, value in of_each.items())
