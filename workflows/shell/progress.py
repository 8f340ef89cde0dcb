"""A run's progress in the terminal: a bar, and a line now and then where the output goes to a file."""

import sys
import threading
import time
from typing import Any

import ray
from tqdm import tqdm

LINE_EVERY_S = 15.0


class ProgressDisplay:
    """Shows a board's figures until the context ends."""

    def __init__(self, board: ray.actor.ActorHandle, *, total: int):
        self.board = board
        self.total = total
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._show, daemon=True)

    def __enter__(self) -> "ProgressDisplay":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join(timeout=10)

    def _show(self) -> None:
        is_terminal = sys.stderr.isatty()
        bar = tqdm(total=self.total, unit="tile", desc="training", disable=not is_terminal)
        last_line, last_step = time.monotonic(), None
        while True:
            is_last = self._stop.wait(1.0)
            try:
                figures = ray.get(self.board.read.remote(), timeout=5)
            except Exception:  # the display must never end a run: the board may be gone with its node
                figures = {}
            if figures and figures["step"] != last_step:
                bar.n = figures["tiles"]
                bar.set_postfix_str(describe(figures, with_tiles=False))
                if not is_terminal and (is_last or time.monotonic() - last_line >= LINE_EVERY_S):
                    print(describe(figures), file=sys.stderr, flush=True)
                    last_line, last_step = time.monotonic(), figures["step"]
            if is_last:
                break
        bar.close()


def describe(figures: dict[str, Any], *, with_tiles: bool = True) -> str:
    """One line: where the run is, how fast, how much of the time the trainer waits, how it learns, how long it will take."""
    eta = figures["eta_s"]
    place = f"step {figures['step']} | {figures['tiles']:,}/{figures['tiles_total']:,} tiles | " if with_tiles else ""
    left = f" | ETA {time.strftime('%H:%M:%S', time.gmtime(eta))}" if eta is not None else ""
    days = f" {int(eta // 86400)}d" if eta is not None and eta >= 86400 else ""
    return (
        f"{place}{figures['tiles_per_s']:.1f} tiles/s | waiting {figures['wait_share']:.0%} | loss {figures['loss']:.4f}"
        f"{left}{days}"
    )
