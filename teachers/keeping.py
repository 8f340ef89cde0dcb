"""What it takes to keep a teacher's responses, and what it takes to let it answer again: measured on a few tiles.

One actor does either, so its seconds are what is compared. Over some epochs a tile takes

    epochs x answer_s                                    where it is answered again,
    answer_s + keep_s + (epochs - 1) x read_s            where its responses are kept.
"""

import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from csat.columns import POSITION, TEACHER_S
from csat.runs.plan import Plan
from csat.storage import files
from teachers.cached_stage import CachedTeacherStage
from teachers.response_cache import ResponseCache

ENOUGH_S = 4.0  # of answering; a slow teacher is asked about two tiles


@dataclass(frozen=True, kw_only=True)
class Keeping:
    """Of one tile, by one actor.

    Attributes:
        answer_s: Seconds of the teacher.
        keep_s: To compress and write what it said, and to wait until that is on the disk.
        read_s: To read that again, from the disk and not from memory.
        num_bytes: Written.
        free_bytes: Of the disk that it is written to; None: a bucket.
    """

    answer_s: float
    keep_s: float
    read_s: float
    num_bytes: float
    free_bytes: float | None = None

    def seconds(self, epochs: int, *, is_kept: bool) -> float:
        """Of the actor, over so many epochs."""
        if is_kept:
            return self.answer_s + self.keep_s + (epochs - 1) * self.read_s
        return epochs * self.answer_s


def measure_keeping(probe: ResponseCache, columns: Mapping[str, np.ndarray], *, batch_size: int, **teacher: Any) -> Keeping:
    """The stage of a run with a response cache over some tiles: first it asks the teacher, then it reads.

    Args:
        probe: Of no run: its folder is deleted in the end.
        columns: At least two tiles, as a reader gives them, all of them good.
        batch_size, teacher: As `CachedTeacherStage` takes them.

    Raises:
        StorageError, ConfigError, TeacherError: as that.
    """
    num_tiles = len(columns[POSITION])
    plan = Plan([num_tiles], [0], num_epochs=1, seed=0)
    stage = CachedTeacherStage(probe, plan, batch_size=batch_size, **teacher)
    try:
        _pass(stage, columns, 0, 1)  # the teacher is loaded, and warm
        seconds, teacher_s = _pass(stage, columns, 1, 2)
        stop = min(num_tiles, 2 + int(ENOUGH_S / seconds))
        if stop > 2:
            seconds, teacher_s = _pass(stage, columns, 2, stop)
        asked = max(1, stop - 2)
        sizes = {uri: found.size_bytes for uri, found in files.list_info(probe.folder).items()}
        for uri in sizes:
            _forget(uri)
        read_s, _ = _pass(stage, columns, 0, stop)
        free_bytes = shutil.disk_usage(files.local_path(probe.folder)).free if files.is_local(probe.folder) else None
    finally:
        files.delete(probe.folder)
    return Keeping(
        answer_s=teacher_s / asked,
        keep_s=max(0.0, seconds - teacher_s) / asked,
        read_s=read_s / stop,
        num_bytes=sum(sizes.values()) / stop,
        free_bytes=free_bytes,
    )


def _pass(stage: CachedTeacherStage, columns: Mapping[str, np.ndarray], start: int, stop: int) -> tuple[float, float]:
    """Seconds of the stage over some of the rows, and those of the teacher in them."""
    part = {name: column[start:stop] for name, column in columns.items()}
    started = time.perf_counter()
    batches = list(stage(part))
    return time.perf_counter() - started, float(sum(batch[TEACHER_S].sum() for batch in batches))


def _forget(uri: str) -> None:
    """A file on this machine leaves its memory: in the next epoch others will have taken its place."""
    if not files.is_local(uri) or not hasattr(os, "posix_fadvise"):
        return
    with files.open_input(uri) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
