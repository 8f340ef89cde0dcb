"""The first stage of a prediction: slots of the plan → rows with pixels, and what has to be known of the slide to place them.

No torch: a reader is a small process.
"""

import json
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import lru_cache

import numpy as np

from csat.errors import SlideError
from csat.prediction.slide_frame import SlideFrame, frame_of
from csat.slides.reader import SlideReader
from csat.tiles.planned_reader import PlannedReader
from workflows.prediction.columns import FRAME, READER
from workflows.prediction.who import who

GEOMETRY = ("x_px", "y_px", "level", "read_px", "aspect")  # of a tile, as the manifest has them and `SlideFrame.place` takes
MAX_FRAMES = 1024  # slides whose frames a reader remembers


class FramedReader(PlannedReader):
    """A `PlannedReader` whose rows have the columns FRAME and READER too."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self._frames: OrderedDict[str, str] = OrderedDict()

    def __call__(self, columns: dict[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
        for batch in super().__call__(columns):
            num_rows = len(batch["slide"])
            batch[FRAME] = np.array([self._frame(batch, row) for row in range(num_rows)], object)
            batch[READER] = np.full(num_rows, who(), object)
            yield batch

    def _frame(self, batch: dict[str, np.ndarray], row: int) -> str:
        slide, kind = str(batch["slide"][row]), str(batch["kind"][row])
        if slide not in self._frames:
            tile = {name: float(batch[name][row]) for name in ("mpp", "read_px", "width_px", "aspect", "level")}
            try:
                frame = self.reader.ask(slide, kind, lambda reader: frame_as_read(slide, reader, **tile))
            except SlideError:  # each of its tiles says so
                return ""
            self._frames[slide] = json.dumps(asdict(frame))
            if len(self._frames) > MAX_FRAMES:
                self._frames.popitem(last=False)
        return self._frames[slide]


def frame_as_read(
    slide: str, reader: SlideReader, *, mpp: float, read_px: float, width_px: float, aspect: float, level: float
) -> SlideFrame:
    """The frame of a slide at the resolution that the manifest has it at: perhaps the user gave that.

    Args:
        mpp, read_px, width_px, aspect, level: Of one of its tiles, as the manifest has them.
    """
    frame = frame_of(slide, reader)
    if np.isnan(mpp):
        return replace(frame, mpp_x=None, mpp_y=None)
    read_at = mpp * width_px / read_px / frame.downsamples[int(level)]
    return replace(frame, mpp_x=read_at, mpp_y=read_at / aspect)


def parse_frame(text: str) -> SlideFrame:
    """A cell of the column FRAME."""
    values = json.loads(text)
    for name in ("downsamples", "bounds"):
        values[name] = None if values[name] is None else tuple(values[name])
    return SlideFrame(**values)


frame_of_cell = lru_cache(maxsize=256)(parse_frame)  # for whoever sees the same slide in row after row
