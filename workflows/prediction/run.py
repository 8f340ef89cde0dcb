"""The driver of a prediction: takes the names of parts from the stream, and has a slide's files written when it is complete.

It holds no pixel, no map and no nucleus: a few bytes for each slide, and what is on its way to the files is in the parts.
"""

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from csat.runs.plan import Intervals
from workflows.prediction.assembly import Assembly
from workflows.prediction.columns import FIRST, SLIDE_INDEX, STOP
from workflows.prediction.flow import Flow
from workflows.prediction.job import PredictJob
from workflows.prediction.stream import configure, make_stream
from workflows.shell.progress import Progress

logger = logging.getLogger("predict")


def predict_slides(job: PredictJob) -> Flow:
    """Every slide that is not done: its tiles answered, its files written. Can be killed and called again.

    Returns:
        What this attempt did.

    Raises:
        StorageError, ConfigError: files cannot be written.
        RayError: the stream stopped.
    """
    slides, flow = job.slides, Flow()
    done, answered = job.layout.done(), job.layout.parts.done()
    for number in done & answered.keys():  # killed after the mark, and before its parts were deleted
        job.layout.parts.delete(number)
    todo = [number for number in range(len(slides)) if number not in done]
    answered = {number: answered.get(number, Intervals()) for number in todo}
    num_answered = sum(slides[number].num_tiles for number in done) + sum(map(len, answered.values()))
    if num_answered:
        logger.info("resuming: %d slides are done, %d tiles are answered", len(done), num_answered)
    assembly = Assembly(job)
    reached = _Reached(tiles=num_answered, slides=len(done), num_slides=len(slides), flow=flow)
    with Progress("predicting", total=job.manifest.num_tiles, unit="tile") as progress:
        for number in todo:
            if len(answered[number]) == slides[number].num_tiles:
                assembly.add(number)
        for row in _parts(job, done, answered):
            number = int(row[SLIDE_INDEX])
            before = len(answered[number])
            answered[number] |= Intervals([(int(row[FIRST]), int(row[STOP]))])
            flow.add_part(row)
            reached.tiles += len(answered[number]) - before
            if before < len(answered[number]) == slides[number].num_tiles:
                assembly.add(number)
            reached.slides += _take(assembly, flow, timeout_s=0.0)
            progress.show(reached.tiles, reached.in_words(job.manifest.num_tiles), slides=reached.slides)
        while len(assembly):
            reached.slides += _take(assembly, flow, timeout_s=1.0)
            progress.show(reached.tiles, reached.in_words(job.manifest.num_tiles), slides=reached.slides)
    return flow


def _parts(job: PredictJob, done: set[int], answered: dict[int, Intervals]) -> Iterator[dict[str, Any]]:
    """A row for each part, as it is written."""
    pairs = [(job.slides[number].first, job.slides[number].stop) for number in done]
    whole = Intervals(pairs + [pair for intervals in answered.values() for pair in intervals.pairs()])
    if len(whole) == job.manifest.num_tiles:
        return
    configure(job)
    for batch in make_stream(job, whole).iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=0):
        names = list(batch)
        for values in zip(*batch.values(), strict=True):
            yield dict(zip(names, values, strict=True))


def _take(assembly: Assembly, flow: Flow, *, timeout_s: float) -> int:
    """Slides that are done since the last call."""
    count = 0
    for record in assembly.ended(timeout_s):
        flow.add_slide(record)
        count += 1
    return count


@dataclass(kw_only=True)
class _Reached:
    """How far the whole is, earlier attempts included."""

    tiles: int
    slides: int
    num_slides: int
    flow: Flow

    def in_words(self, num_tiles: int) -> str:
        rate = self.flow.tiles / max(self.flow.seconds, 1e-9)
        left_s = (num_tiles - self.tiles) / rate if rate else None
        eta = "" if left_s is None else f" | ETA {time.strftime('%H:%M:%S', time.gmtime(left_s))}"
        eta += f" {int(left_s // 86400)}d" if left_s is not None and left_s >= 86400 else ""
        return f"{self.slides:,}/{self.num_slides:,} slides | {rate:.1f} tiles/s{eta}"
