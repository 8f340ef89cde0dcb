"""A few slides, opened, cut and read as the run would, each by a process of its own, which alone a slide may crash."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from csat.columns import OK, REASON, STATUS
from csat.errors import SlideError
from csat.slides.synthetic import make_slides
from csat.tiles.grid import TilingConfig
from csat.tiles.planned_reader import columns_of
from csat.tiles.sample import Rows, spread
from csat.tiles.sources import SlideRow, list_slides
from csat.tiles.tiling import tile_slide
from workflows.pretraining.config import PretrainConfig
from workflows.pretraining.rehearsal import in_a_process
from workflows.pretraining.stream import StreamConfig, make_reader

KEPT_TILES = 32  # rows of one slide that are kept to calibrate with
READ_TILES = 4  # that are read
CPUS = 0.5  # of the process


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A slide that was read.

    Attributes:
        num_tiles: Of it.
        rows: Some of them, without pixels.
    """

    num_tiles: int
    rows: Rows


def spread_over(slides: Sequence[SlideRow], most: int) -> list[SlideRow]:
    """At most so many, evenly from the first to the last."""
    places = np.unique(np.linspace(0, len(slides) - 1, min(most, len(slides))).round().astype(int))
    return list(dict.fromkeys(slides[place] for place in places.tolist()))


def open_in_process(slide: SlideRow, tiling: TilingConfig, stream: StreamConfig) -> Opened | str:
    """What was found; why it cannot be used, in words."""
    return in_a_process(_open, slide, tiling, stream, cpus=CPUS, gpus=0.0)


def demo_slide(config: PretrainConfig, folder: str) -> SlideRow:
    """One of the synthetic slides that the run would make."""
    (path,) = make_slides(folder, num_slides=1, size_px=config.demo.size_px, seed=config.demo.seed)
    return list_slides([str(path)])[0]


def _open(slide: SlideRow, tiling: TilingConfig, stream: StreamConfig) -> Opened | str:
    try:
        rows = columns_of(tile_slide(slide, tiling, stream.readers.slide_cache()))
    except SlideError as error:
        return f"{error.reason}: {error}"
    read = make_reader(stream)(spread(rows, READ_TILES))
    if (read[STATUS] != OK).all():
        return str(read[REASON][0])
    return Opened(num_tiles=len(rows["slide"]), rows=spread(rows, KEPT_TILES))
